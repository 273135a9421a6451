"""What the rows of a rule have in common: equal effects are equal values, however the rules are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mapspec.bound import BoundRule
from mapspec.table import Row, RuleForms
from mapspec.tensors import Box

__all__ = ["Forms", "Sides", "Signature", "arrangement", "rule_key", "sources"]

type Elements = tuple[tuple[str, Box, Box], ...]
"""(source tensor, box there, box in the Megatron tensor) of every piece."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything about a rule's rows but names.

    Attributes:
        shape, hf_shapes, stored_shapes: of whole tensors (stacked axes in front).
        hf_region, stored_region: (source number, box there, box in the Megatron tensor) of every piece.
        split: (dimension, group, pieces cut one by one) for every dimension that tensor parallelism cuts; `parallel`:
            axes that are dealt to ranks.
        dtype, accepts, keep: what the role says.
        pads: dimensions that may be padded.
    """

    shape: tuple[int, ...]
    hf_shapes: tuple[tuple[int, ...], ...]
    stored_shapes: tuple[tuple[int, ...], ...]
    hf_region: tuple[tuple[int, Box, Box], ...]
    stored_region: tuple[tuple[int, Box, Box], ...]
    split: tuple[tuple[int, str, tuple[tuple[int, int], ...]], ...]
    parallel: tuple[str, ...]
    dtype: str
    accepts: tuple[str, ...]
    keep: bool
    pads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sides:
    """Names of one row: (name, place of the row in it) of every tensor that it is made of."""

    megatron: str
    hf: tuple[tuple[str, Box], ...]
    stored: tuple[tuple[str, Box], ...]


class Forms:
    """A rule's surfaces and its signature, each computed when it is first asked for."""

    def __init__(self, rule: BoundRule, forms: RuleForms | None = None) -> None:
        self.rule = rule
        self.forms = forms or RuleForms(rule)

    @cached_property
    def signature(self) -> Signature:
        rule, forms = self.rule, self.forms
        assert rule.dims is not None, "open rules have no signature"
        surfaces = forms.surfaces
        return Signature(
            surfaces["megatron"][0].shape,
            tuple(form.shape for form in surfaces["hf"]),
            tuple(form.shape for form in surfaces["stored"]),
            tuple((p.left, p.left_box, p.right_box) for p in forms.region("hf", "megatron")),
            tuple((p.left, p.left_box, p.right_box) for p in forms.region("stored", "megatron")),
            tuple(
                (i, dim.split, _cut_runs(dim.order, dim.sizes) if dim.split_by == "segment" else ())
                for i, dim in enumerate(rule.dims)
                if dim.split is not None
            ),
            tuple(sorted({a.parallel for a in rule.axes.values() if a.parallel and a.name in self.holes})),
            rule.dtype,
            tuple(sorted(rule.role.accepts)),
            rule.role.keep is not None,
            tuple(i for i, dim in enumerate(rule.dims) if dim.pads),
        )

    @cached_property
    def holes(self) -> frozenset[str]:
        """Axes that the rule's names count."""
        rule = self.rule
        return frozenset(hole for side in (rule.megatron, rule.stored, *rule.hf) for hole in side.pattern.occurrences)


def _cut_runs(order: tuple[str, ...], sizes: object) -> tuple[tuple[int, int], ...]:
    """(first row, rows) of every run that is cut by itself."""
    out, start = [], 0
    for segment in order:
        size = sizes[segment]  # type: ignore[index]
        out.append((start, size))
        start += size
    return tuple(out)


def rule_key(rule: BoundRule) -> tuple[object, ...]:
    """Equal keys mean equal rows. Cheap: positions are compared as they are, nothing is written out."""
    sides = (rule.megatron, rule.stored, *rule.hf)
    return (
        rule.dims,
        tuple((str(side.pattern), side.segment) for side in sides),
        rule.dtype,
        tuple(sorted(rule.role.accepts)),
        rule.role.keep is not None,
        tuple(sorted((a.name, a.parallel, a.size) for a in rule.axes.values() if a.parallel)),
    )


def sides_of(row: Row) -> Sides:
    """Names of a row on all surfaces."""
    hf, stored = (tuple(zip(row.names(side), row.leads(side), strict=True)) for side in ("hf", "stored"))
    return Sides(row.megatron, hf, stored)


def sources(sides: Sides, signature: Signature) -> Elements:
    """Where every element of the Megatron tensor comes from, by name, in the order of the Megatron tensor."""
    return tuple(
        sorted(
            ((sides.hf[number][0], sides.hf[number][1] + left, right) for number, left, right in signature.hf_region),
            key=lambda item: item[2],
        )
    )


def arrangement(rule: BoundRule) -> str:
    """The fused dimension as it lies on the Megatron side: `2 x (q 64, k 16, v 16)`; empty where nothing is fused."""
    dim = next((d for d in rule.dims or () if d.fused), None)
    if dim is None:
        return ""
    return _periodic([f"{segment} {dim.sizes[segment]}" for segment in dim.order])


def _periodic(words: list[str]) -> str:
    """Words with what repeats written once: `2 x (q 64, k 16)`."""
    out: list[str] = []
    at = 0
    while at < len(words):
        best = (1, 1)  # (length of the group, how often)
        for length in range(1, min(8, (len(words) - at) // 2) + 1):
            group = words[at : at + length]
            times = 1
            while words[at + times * length : at + (times + 1) * length] == group:
                times += 1
            if times > 1 and length * times > best[0] * best[1]:
                best = (length, times)
        length, times = best
        text = ", ".join(words[at : at + length])
        out.append(f"{times} x ({text})" if times > 1 else text)
        at += length * times
    return ", ".join(out)
