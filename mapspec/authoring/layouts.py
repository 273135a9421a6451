"""Guesses about layout: tensors fused, cut into segments or gated otherwise than the parent has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mapspec.authoring.catalogue import catalogue
from mapspec.authoring.draft import Change
from mapspec.authoring.loose import Live, Loose, Shapes, Wanted, live_rules
from mapspec.authoring.prefixes import nested
from mapspec.authoring.similar import alike, words
from mapspec.authoring.trial import Trial
from mapspec.table import RuleForms

__all__ = ["layout_changes"]

type Lives = Mapping[tuple[str, str, str | None], Live]


def layout_changes(trial: Trial, wanted: Sequence[Wanted], loose: Sequence[Loose]) -> Iterator[Change]:
    """Every other layout that the shapes allow."""
    lives = live_rules(trial)
    yield from _fused(trial, wanted, loose)
    yield from _cut(trial, wanted, loose)
    yield from _gated(trial, lives, loose)


def _rows(at: Shapes, rows: int) -> Shapes:
    """The same places, with tensors of another number of rows."""
    return {place: {own: (rows, *shape[1:]) for own, shape in inner.items()} for place, inner in at.items()}


def _fused(trial: Trial, wanted: Sequence[Wanted], loose: Sequence[Loose]) -> Iterator[Change]:
    """One tensor where the parent has one per segment."""
    by_rule: dict[tuple[str, str], list[Wanted]] = {}
    for want in wanted:
        if want.live.segment is not None:
            by_rule.setdefault((want.live.block, want.live.key), []).append(want)
    for (block, key), wants in by_rule.items():
        rule = wants[0].live.rule
        if len(wants) != len(rule.hf) or rule.dims is None:
            continue
        rows = rule.dims[RuleForms(rule).axis].size
        for have in loose:
            if block in have.blocks and have.at == _rows(wants[0].at, rows):
                segments = [want.live.segment for want in wants]
                listed = ", ".join(f"`{want.live.rest}`" for want in wants)
                why = (
                    f"{listed} are gone, and this has their {rows} rows together; read as all of "
                    f"{', then all of '.join(str(s) for s in segments)}. Shapes cannot tell this from another order: "
                    "compare logits"
                )
                path = wants[0].live.path(trial)
                yield Change(f"`{key}` is fused as `{have.rest}`", nested(path, have.rest), why, path)


def _cut(trial: Trial, wanted: Sequence[Wanted], loose: Sequence[Loose]) -> Iterator[Change]:
    """One tensor per segment where the parent has a single one."""
    for want in wanted:
        rule = want.live.rule
        if want.live.segment is not None or rule.dims is None:
            continue
        dim = rule.dims[RuleForms(rule).axis]
        if not dim.fused:
            continue
        chosen: dict[str, Loose] = {}
        for segment, size in dim.sizes.items():
            rows = size * dim.order.count(segment)
            fitting = [
                have for have in loose
                if want.live.block in have.blocks and have.at == _rows(want.at, rows) and have not in chosen.values()
            ]  # fmt: skip
            if fitting:
                chosen[segment] = max(fitting, key=lambda have: _is_segment(have, segment, want.live.rest))
        if len(chosen) == len(dim.sizes):
            names = {segment: have.rest for segment, have in chosen.items()}
            sizes = ", ".join(f"{s} {dim.sizes[s] * dim.order.count(s)}" for s in names)
            why = f"`{want.live.rest}` is gone, and these have the rows of its segments: {sizes}"
            path = want.live.path(trial)
            yield Change(f"`{want.live.rest}` is cut into segments", nested(path, names), why, path)


def _is_segment(have: Loose, segment: str, rest: str) -> tuple[bool, float]:
    return segment.lower() in words(have.rest), alike(rest, have.rest)


# --- gates ---------------------------------------------------------------------------------------------------------


def _gated(trial: Trial, lives: Lives, loose: Sequence[Loose]) -> Iterator[Change]:
    """A gate beside what the parent has, or above it in one tensor."""
    known = catalogue().gated
    for live in lives.values():
        dims = live.rule.dims
        if live.segment is not None or not dims or dims[0].fused:
            continue
        if not any(name in live.key for name in known.parameters):
            continue
        beside = [have for have in loose if live.block in have.blocks and have.at == live.at]
        gates = [have for have in beside if known.gate.intersection(words(have.rest))]
        ups = [have for have in beside if known.up.intersection(words(have.rest)) and have not in gates]
        for gate in gates:
            gone = any(decl.members[0].row.rule is live.rule for decl in trial.missing)
            up = ups[0].rest if gone and ups else live.rest
            names = {"gate": gate.rest, "up": up}
            why = f"`{gate.rest}` has the shape of `{up}` and the name of a gate; Megatron-Core keeps the gate above it"
            yield _with_gate(trial, live, names, why)
        for have in loose:
            both = _rows(live.at, 2 * dims[0].size)
            if (
                live.block in have.blocks
                and have.at == both
                and (have.rest == live.rest or known.both.intersection(words(have.rest)))
            ):
                why = (
                    f"`{have.rest}` has twice the rows of `{live.rest}`; read as the gate above what it gates. "
                    "Shapes cannot tell this from the other order: compare logits"
                )
                yield _with_gate(trial, live, have.rest, why)


def _with_gate(trial: Trial, live: Live, names: Any, why: str) -> Change:
    assert trial.linked is not None
    assert live.rule.dims is not None
    spec = trial.linked.top.spec
    known = catalogue().gated
    first, *others = spec.blocks[live.block].tensors[live.key].shape or ()
    old = spec.dims[first]
    name = f"gated_{first}"
    dim: dict[str, Any] = {"segments": {"gate": old.size, "up": old.size}, "split_by": "segment"}
    if old.split is not None:
        dim["split"] = old.split
    path = live.path(trial)
    rule = {"shape": [name, *others]}
    patch = nested(path, names)
    patch["blocks"][live.block]["tensors"][live.key].update(rule)
    patch["dims"] = {name: dim}
    facts = {"fields": {field: (value, None) for field, value in known.fields.items()}, "reason": known.reason}
    return Change(f"`{live.key}` is gated", patch, why, ("blocks", live.block, "tensors", live.key), facts)
