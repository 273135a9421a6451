"""What a variant leaves open: each rule without tensors and each tensor without a rule, with the line to write."""

from __future__ import annotations

from collections.abc import Iterator

from mapspec.authoring.loose import Loose, Wanted, loose_ends, prefixes
from mapspec.authoring.trial import Evidence, Trial
from mapspec.collapse import collapse
from mapspec.diagnostics import Diagnostic, Note
from mapspec.names import join, parse_name
from mapspec.text import Tree, parse_yaml

__all__ = ["incomplete"]

_SHOWN = 3


def incomplete(trial: Trial, evidence: Evidence, text: str) -> list[Diagnostic]:
    """MS863 for everything that is open, at the place in the variant where the answer goes.

    Args:
        trial: the draft as far as it came.
        evidence: config and tensors.
        text: of the variant's file.
    """
    if trial.table is None or evidence.tensors is None:
        return []
    tree = parse_yaml(text, str(evidence.path))
    wanted, loose = loose_ends(trial, evidence)
    return [*(_wants(trial, tree, want) for want in wanted), *(_is_loose(trial, tree, have) for have in loose)]


def _wants(trial: Trial, tree: Tree, want: Wanted) -> Diagnostic:
    live = want.live
    shapes = {shape for inner in want.at.values() for shape in inner.values()}
    shape = f" of shape {list(next(iter(shapes)))}" if len(shapes) == 1 else ""
    path = (*live.path(trial), *(() if live.segment is None else (live.segment,)))
    count = sum(len(inner) for inner in want.at.values())
    message = f"the checkpoint has nothing for `{live.rest}`{shape}, which {_plural(count, 'tensor')} of the parent are"
    rule = ".".join(str(part) for part in path[:4])
    help_ = (
        f"if they have another name, write it here as `{'.'.join(str(part) for part in path)}`; "
        f"if the model has none, write `{rule}: null`"
    )
    notes = (Note("the rule that asks for them", live.rule.span),)
    return Diagnostic("MS863", message, tree.span(path), notes=notes, help=help_)


def _is_loose(trial: Trial, tree: Tree, have: Loose) -> Diagnostic:
    patterns = [pattern for pattern, _ in collapse(_names(trial, have))]
    shown = ", ".join(f"`{pattern}`" for pattern in patterns[:_SHOWN])
    shape = f" of shape {list(have.shape)}" if have.shape is not None else ""
    message = f"no rule takes {_plural(have.count, 'tensor')}{shape}: {shown}"
    reason = "or a reason under `passthrough` or `ignore_hf`"
    if not have.blocks:
        help_ = f"give them a block and a mount here, {reason}"
        return Diagnostic("MS863", message, tree.span(()), help=help_)
    block = have.blocks[0]
    rule = f"a rule with `hf: {have.rest}`, whose key is the Megatron-Core name"
    help_ = f"write below `blocks.{block}.tensors` here {rule}, {reason}"
    return Diagnostic("MS863", message, tree.span(("blocks", block, "tensors"), of_key=True), help=help_)


def _names(trial: Trial, have: Loose) -> Iterator[str]:
    heads = prefixes(trial)
    pattern = parse_name(have.rest)
    for (mount, indices), inner in have.at.items():
        head = heads.get(mount)
        for own in inner:
            values = dict(zip(pattern.holes, own, strict=True))
            if head is not None:
                values |= dict(zip(head.holes, indices, strict=True))
            yield (pattern if head is None else join(head, pattern)).fill(values)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
