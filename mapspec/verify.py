"""`mapspec verify A B`: are two checkpoints the same weights, bit for bit? In bounded memory, each byte read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mapspec.collapse import collapse
from mapspec.copy import first_difference
from mapspec.diagnostics import Diagnostic, Span
from mapspec.errors import MapspecError
from mapspec.fill import Part
from mapspec.io.opened import changed
from mapspec.names import Pattern
from mapspec.prepare import Prepared, Request, prepare
from mapspec.sources import Source, open_source
from mapspec.tensors import Box, StoredTensor, box_shape, itemsize, numel, whole

__all__ = ["Verified", "verify"]


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of a comparison.

    Attributes:
        left, right: the two checkpoints.
        tensors: how many tensors were compared.
        nbytes: their bytes, on one side.
        findings: what differs; empty where the two are the same.
    """

    left: Path
    right: Path
    tensors: int
    nbytes: int
    findings: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two descriptions of the same tensor (or box of one)."""

    name: str
    box: Box
    left_dtype: str
    right_dtype: str
    left: tuple[Part, ...]
    right: tuple[Part, ...]


def verify(left: Path, right: Path, request: Request | None = None) -> Verified:
    """Compare two checkpoints of any kinds.

    Args:
        left, right: checkpoint folders. Where one is Hugging Face and the other Megatron-Core, the mapping says which
            elements belong together; otherwise tensors of equal names are compared.
        request: options of the mapping (spec, flavours, sets); its source is not used.

    Raises:
        MapspecError: a checkpoint cannot be read, or the mapping does not cover it.
    """
    a, b = open_source(left), open_source(right)
    if a.kind == b.kind == "hf" and a.tensors.keys() != b.tensors.keys() and (both := _both_planned(a, b, request)):
        findings, pairs = _by_plans(*both)
    elif a.kind == b.kind:
        findings, pairs = _by_name(a, b)
    elif a.kind == "hf":
        findings, pairs = _by_mapping(b, a, request)
        pairs = [
            replace(p, left=p.right, right=p.left, left_dtype=p.right_dtype, right_dtype=p.left_dtype) for p in pairs
        ]
    else:
        findings, pairs = _by_mapping(a, b, request)
    nbytes = sum(numel(box_shape(pair.box)) * itemsize(pair.left_dtype) for pair in pairs)
    for pair in pairs:
        found = _compare(pair, a, b)
        if found is not None:
            findings.append(found)
    findings += [found for one in (a, b) if (found := changed(one.root, one.stamps)) is not None]
    return Verified(left, right, len(pairs), nbytes, tuple(findings))


def _by_name(a: Source, b: Source) -> tuple[list[Diagnostic], list[_Pair]]:
    findings = [*_only(a, a.tensors, b.tensors), *_only(b, b.tensors, a.tensors)]
    pairs = []
    for name, left in a.tensors.items():
        right = b.tensors.get(name)
        if right is None:
            continue
        if left.shape != right.shape:
            message = f"`{name}` has shape {list(left.shape)} in one and {list(right.shape)} in the other"
            findings.append(Diagnostic("MS802", message, where=str(b.path)))
        else:
            pairs.append(_pair(name, left, right))
    return findings, pairs


def _both_planned(a: Source, b: Source, request: Request | None) -> tuple[Prepared, Prepared] | None:
    """Plans of two Hugging Face folders that spell the same mapping differently; `None` where they do not."""
    options = replace(request or Request(a.path), run_config=False, reference=None)
    try:
        one, other = (prepare(replace(options, source=source.path)) for source in (a, b))
    except MapspecError:
        return None
    spelled = one.table.bound.flavours != other.table.bound.flavours
    return (one, other) if spelled and not (one.plan.findings or other.plan.findings) else None


def _by_plans(one: Prepared, other: Prepared) -> tuple[list[Diagnostic], list[_Pair]]:
    """Pairs of what both folders would become on the Megatron side, where their spellings no longer differ."""
    right = {target.name: target for target in other.plan.targets}
    pairs = []
    for target in one.plan.targets:
        twin = right.get(target.name)
        if twin is not None and twin.shape == target.shape:
            boxes = zip(target.boxes, one.plan.parts[target.name], other.plan.parts[target.name], strict=True)
            pairs += [_Pair(target.name, box, target.dtype, twin.dtype, a, b) for box, a, b in boxes]
    lefts = {target.name: target.shape for target in one.plan.targets}
    rights = {name: target.shape for name, target in right.items()}
    findings = []
    for path, names in (
        (one.source.path, lefts.items() - rights.items()),
        (other.source.path, rights.items() - lefts.items()),
    ):
        if names:
            shown = ", ".join(f"`{name}` {list(shape)}" for name, shape in sorted(names)[:6])
            findings.append(Diagnostic("MS801", f"{len(names):,} tensors are only here: {shown}", where=str(path)))
    return findings, pairs


def _only(one: Source, mine: Mapping[str, StoredTensor], others: Mapping[str, StoredTensor]) -> Iterator[Diagnostic]:
    alone = [name for name in mine if name not in others]
    if alone:
        patterns = [pattern for pattern, _ in collapse(alone)]
        shown = ", ".join(f"`{p}`" for p in patterns[:6]) + (f" and {len(patterns) - 6} more" if patterns[6:] else "")
        yield Diagnostic("MS801", f"{len(alone):,} tensors are only here: {shown}", where=str(one.path))


def _pair(name: str, left: StoredTensor, right: StoredTensor) -> _Pair:
    box = whole(left.shape)
    return _Pair(name, box, left.dtype, right.dtype, (Part(box, left, box),), (Part(box, right, box),))


def _by_mapping(megatron: Source, hf: Source, request: Request | None) -> tuple[list[Diagnostic], list[_Pair]]:
    """Pairs with Megatron on the left: what each Hugging Face tensor would be made of, and what it is."""
    options = request or Request(megatron.path)
    prepared = prepare(replace(options, source=megatron.path, reference=hf.path)).require()
    targets = {target.name: target for target in prepared.plan.targets}
    covered = set(targets) | _listed(prepared.table.bound.passthrough, hf.tensors)
    covered |= _listed(prepared.table.bound.ignore_hf, hf.tensors)
    findings = []
    for here, names in ((hf, set(hf.tensors) - covered), (megatron, set(targets) - set(hf.tensors))):
        if names:
            patterns = ", ".join(f"`{pattern}`" for pattern, _ in collapse(sorted(names))[:6])
            findings.append(
                Diagnostic("MS801", f"{len(names):,} tensors are only here: {patterns}", where=str(here.path))
            )
    pairs = []
    for name, target in targets.items():
        tensor = hf.tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != target.shape:
            message = f"`{name}` has shape {list(tensor.shape)}, Megatron's would have {list(target.shape)}"
            findings.append(Diagnostic("MS802", message, where=str(hf.path)))
            continue
        box = whole(target.shape)
        parts = prepared.plan.parts[name][0]
        pairs.append(_Pair(name, box, target.dtype, tensor.dtype, parts, (Part(box, tensor, box),)))
    return findings, pairs


def _listed(patterns: Sequence[tuple[Pattern, str, Span]], names: Mapping[str, StoredTensor]) -> set[str]:
    """Names that some of the patterns match."""
    return {name for name in names if any(pattern.match(name) for pattern, _, _ in patterns)}


def _compare(pair: _Pair, a: Source, b: Source) -> Diagnostic | None:
    left_dtype, right_dtype = pair.left_dtype, pair.right_dtype
    if left_dtype != right_dtype:
        message = f"`{pair.name}` is {left_dtype} in one and {right_dtype} in the other"
        help_ = "values are compared bit for bit only; convert one of the two with --dtype or --cast first"
        return Diagnostic("MS802", message, where=str(b.path), help=help_)
    at = first_difference(
        pair.box, left_dtype, pair.left, pair.right, left_root=a.root, right_root=b.root, name=pair.name
    )
    if at is None:
        return None
    sources = sorted({part.source.name for part in pair.left + pair.right if part.source is not None} - {pair.name})
    made = f" (made of {', '.join(f'`{s}`' for s in sources[:4])})" if sources else ""
    return Diagnostic("MS803", f"`{pair.name}` differs first at {list(at)}{made}", where=str(b.path))
