"""Bound rules -> rows: one per canonical Megatron tensor, with everything it is made of on both sides.

A row knows three surfaces of the same weight:

    hf        the Hugging Face tensor(s)
    megatron  the canonical tensor: global layer and expert numbers, no parallelism
    stored    the torch_dist tensor(s): in_proj in five keys, all experts of a layer in one

Regions between surfaces depend on the rule alone, so they are computed once per rule and shared by its rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from operator import attrgetter
from typing import NamedTuple

from mapspec.axes import BoundAxis, Position
from mapspec.bind import Bound, BoundDim, BoundRule, Side
from mapspec.frozen import frozen
from mapspec.names import Pattern
from mapspec.open_rules import closed_rules
from mapspec.regions import Piece, Slot, pair
from mapspec.tensors import Box, StoredTensor, numel

__all__ = ["SURFACES", "Column", "Form", "Member", "Row", "Table", "TensorDecl", "build_table"]

SURFACES = ("hf", "megatron", "stored")


class Column(NamedTuple):
    """A form at all positions of its rule: name of the tensor, and leading part of the box in it."""

    names: Sequence[str]
    leads: Sequence[Box]


@dataclass(frozen=True)
class Form:
    """One tensor of a surface, for all rows of a rule.

    Attributes:
        pattern: its name.
        slot: arrangement of the part of it that one row holds.
        stacked: axes that the name has no hole for: the tensor holds all their positions as leading dimensions.
        suffix: what is appended to the name (a segment's name where each has its own key).
        segment: the segment that it holds alone, if any.
    """

    pattern: Pattern
    slot: Slot
    stacked: tuple[BoundAxis, ...]
    suffix: str = ""
    segment: str | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return (*(axis.size for axis in self.stacked), *self.slot.shape)

    def lead(self, position: Mapping[str, int]) -> Box:
        """Leading part of the box that the position has in the tensor."""
        return tuple([(position[axis.name], position[axis.name] + 1) for axis in self.stacked])

    def column(self, positions: Sequence[Position]) -> Column:
        """Names and leading parts of boxes for all positions: there is one for every expert of every layer."""
        template, holes = self.pattern.template + self.suffix.replace("%", "%%"), self.pattern.occurrences
        values = [tuple([position[hole] for hole in holes]) for position in positions]
        if not self.stacked:
            return Column([template % one for one in values], ((),) * len(values))
        names = {one: template % one for one in dict.fromkeys(values)}  # few, since a tensor holds many positions
        return Column([names[one] for one in values], [self.lead(position) for position in positions])


@dataclass(frozen=True, eq=False)
class RuleForms:
    """The surfaces of a rule and the regions between them."""

    rule: BoundRule

    @cached_property
    def surfaces(self) -> Mapping[str, tuple[Form, ...]]:
        """Tensors of each surface."""
        rule = self.rule
        assert rule.dims is not None, "open rules have no forms"
        hf_dims = tuple(dim for dim in rule.dims)
        hf = tuple(self._form(side, hf_dims, padded=False) for side in rule.hf)
        megatron = (self._form(rule.megatron, rule.dims, padded=True),)
        return {"hf": hf, "megatron": megatron, "stored": self._stored(rule.dims)}

    @cached_property
    def axis(self) -> int:
        """Number of the fused (or else the first) dimension; -1 for scalars."""
        dims = self.rule.dims or ()
        return next((i for i, dim in enumerate(dims) if dim.fused), 0 if dims else -1)

    def _slot(self, dims: Sequence[BoundDim], segment: str | None, *, padded: bool) -> Slot:
        shape = [dim.padded if padded and dim.padded is not None else dim.size for dim in dims]
        if self.axis < 0:
            return Slot((), ("",), {"": 1}, -1)
        dim = dims[self.axis]
        order = dim.order if segment is None else tuple(s for s in dim.order if s == segment)
        sizes = dict(dim.sizes) if dim.fused else {"": shape[self.axis]}
        shape[self.axis] = sum(sizes[s] for s in order)
        return Slot(tuple(shape), order, sizes, self.axis)

    def _form(self, side: Side, dims: Sequence[BoundDim], *, padded: bool, suffix: str = "") -> Form:
        slot = self._slot(dims, side.segment, padded=padded)
        if not padded and side.segment is None and slot.axis >= 0 and dims[slot.axis].fused:
            # A single Hugging Face tensor holds the segments one after another, not in Megatron's order.
            listed = tuple(dict.fromkeys(dims[slot.axis].order))
            order = tuple(s for name in dims[slot.axis].sizes for s in dims[slot.axis].order if s == name)
            assert set(listed) == set(order), "every segment occurs"
            slot = Slot(slot.shape, order, slot.sizes, slot.axis)
        return Form(side.pattern, slot, self._stacked(side.pattern), suffix, side.segment)

    def _stored(self, dims: Sequence[BoundDim]) -> tuple[Form, ...]:
        rule = self.rule
        if self.axis < 0 or dims[self.axis].stored_by == "whole":
            return (self._form(rule.stored, dims, padded=True),)
        return tuple(
            self._form(Side(rule.stored.pattern, segment, rule.stored.span), dims, padded=True, suffix=f".{segment}")
            for segment in dims[self.axis].sizes
        )

    def _stacked(self, pattern: Pattern) -> tuple[BoundAxis, ...]:
        """Axes of the positions that the name says nothing about."""
        covered: set[str] = set()
        for hole in pattern.holes:
            axis = self.rule.axes[hole]
            covered.update((hole, *(axis.ravel or ())))
        axes = [a for a in self.rule.positions[0] if a in self.rule.axes]  # what `**` stands for is no axis
        free = [a for a in axes if self.rule.axes[a].ravel is None and a not in covered]
        varying = [a for a in free if len({p[a] for p in self.rule.positions}) > 1 or a in self._holes]
        return tuple(self.rule.axes[a] for a in varying)

    @cached_property
    def _holes(self) -> frozenset[str]:
        """Axes that some name of the rule has a hole for (pinned axes have none)."""
        rule = self.rule
        sides = (rule.megatron, rule.stored, *rule.hf)
        return frozenset(hole for side in sides for hole in side.pattern.holes)

    def region(self, left: str, right: str) -> tuple[Piece, ...]:
        """Pieces between two surfaces, for one position; leading axes of stacked tensors left out."""
        return self._regions[left, right]

    def columns(self, surface: str) -> tuple[Column, ...]:
        """Names of the tensors of a surface, and places in them, at all positions."""
        if surface not in self._columns:
            self._columns[surface] = tuple([form.column(self.rule.positions) for form in self.surfaces[surface]])
        return self._columns[surface]

    @cached_property
    def _columns(self) -> dict[str, tuple[Column, ...]]:
        return {}

    def written(self, number: int) -> Iterator[str]:
        """`repr` of what `Row.pieces` gives between neighbours; most of it is the same for all rows, and made once."""
        for piece, a, a_box, b, b_box in self._texts:
            of_a = a_box or repr(a.leads[number] + piece.left_box)
            of_b = b_box or repr(b.leads[number] + piece.right_box)
            yield f"({a.names[number]!r}, {of_a}, {b.names[number]!r}, {of_b})"

    @cached_property
    def _texts(self) -> tuple[tuple[Piece, Column, str | None, Column, str | None], ...]:
        found = []
        for left, right in pairwise(SURFACES):
            for piece in self.region(left, right):
                # The box as Python writes it, if it is that of every position.
                a_box = None if self.surfaces[left][piece.left].stacked else repr(piece.left_box)
                b_box = None if self.surfaces[right][piece.right].stacked else repr(piece.right_box)
                a, b = self.columns(left)[piece.left], self.columns(right)[piece.right]
                found.append((piece, a, a_box, b, b_box))
        return tuple(found)

    @cached_property
    def _regions(self) -> Mapping[tuple[str, str], tuple[Piece, ...]]:
        slots = {name: [form.slot for form in forms] for name, forms in self.surfaces.items()}
        return {(a, b): pair(slots[a], slots[b]) for a in SURFACES for b in SURFACES if a != b}


@frozen
class Row:
    """One canonical Megatron tensor.

    Attributes:
        forms: surfaces and regions, shared by the rule's rows.
        number: which of the rule's positions it is at.
        megatron: its canonical name.
    """

    forms: RuleForms
    number: int
    megatron: str

    @property
    def rule(self) -> BoundRule:
        """The rule it comes from."""
        return self.forms.rule

    @property
    def position(self) -> Position:
        """Values of the axes."""
        return self.forms.rule.positions[self.number]

    def names(self, surface: str) -> tuple[str, ...]:
        """Names of the tensors it is made of on a surface."""
        return tuple([column.names[self.number] for column in self.forms.columns(surface)])

    def leads(self, surface: str) -> tuple[Box, ...]:
        """Leading part of the box that it has in each of these tensors."""
        return tuple([column.leads[self.number] for column in self.forms.columns(surface)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the canonical tensor."""
        return self.forms.surfaces["megatron"][0].shape

    @property
    def numel(self) -> int:
        """Number of elements of the canonical tensor."""
        return numel(self.shape)

    def pieces(self, left: str, right: str) -> Iterator[tuple[str, Box, str, Box]]:
        """(left tensor, box, right tensor, box) of every piece, boxes in the whole tensors."""
        number, lefts, rights = self.number, self.forms.columns(left), self.forms.columns(right)
        for piece in self.forms.region(left, right):
            a, b = lefts[piece.left], rights[piece.right]
            yield (
                a.names[number], a.leads[number] + piece.left_box,
                b.names[number], b.leads[number] + piece.right_box,
            )  # fmt: skip


@frozen
class Member:
    """A row's share in a tensor of some surface."""

    row: Row
    form: Form


@frozen
class TensorDecl:
    """A tensor that the table expects on a surface: shape, dtype promised by the config, and the rows it serves."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    members: tuple[Member, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return numel(self.shape)


@dataclass(frozen=True)
class Table:
    """All rows of a bound spec, and the inventories that follow from them."""

    bound: Bound
    rows: tuple[Row, ...]
    tied: Mapping[str, str]

    @cached_property
    def by_megatron(self) -> Mapping[str, Row]:
        """Row of each canonical name."""
        return {row.megatron: row for row in self.rows}

    def inventory(self, surface: str) -> Mapping[str, TensorDecl]:
        """Every tensor of a surface, by name. Tied weights appear on the Hugging Face side only."""
        if surface not in self._inventories:
            self._inventories[surface] = self._inventory(surface)
        return self._inventories[surface]

    def forget_inventories(self) -> None:
        """Free their memory, a tenth of what a large conversion takes. Who asks for one again gets it again."""
        self._inventories.clear()

    @cached_property
    def _inventories(self) -> dict[str, Mapping[str, TensorDecl]]:
        """Those that were asked for: few need all surfaces, and each takes a while for a large model."""
        return {}

    def _inventory(self, surface: str) -> Mapping[str, TensorDecl]:
        members: defaultdict[str, list[Member]] = defaultdict(list)
        left_out = self.tied if surface != "hf" else {}
        for forms, rows in groupby(self.rows, attrgetter("forms")):
            columns = list(zip(forms.surfaces[surface], forms.columns(surface), strict=True))
            for row in rows:
                if row.megatron not in left_out:
                    for form, column in columns:
                        members[column.names[row.number]].append(Member(row, form))
        return {
            name: TensorDecl(name, found[0].form.shape, found[0].row.forms.rule.dtype, tuple(found))
            for name, found in members.items()
        }

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """torch_dist keys of the byte objects that a strict load asks for."""
        out: dict[str, None] = {}
        for objects in self.bound.objects:
            for position in objects.positions:
                for pattern in objects.names:
                    name = pattern.fill(position)
                    count = objects.each.size if objects.each else 1
                    out.update(dict.fromkeys(f"{name}/shard_{i}_{count}" for i in range(count)))
        return tuple(out)

    @cached_property
    def hash(self) -> str:
        """Hex digest of what the table does: equal tables have equal hashes, however their specs are written."""
        digest = hashlib.sha256()
        for row in sorted(self.rows, key=lambda r: r.megatron):
            head = f"{row.megatron} {row.rule.dtype} {self.tied.get(row.megatron, '')}\n"
            digest.update("".join([head, *row.forms.written(row.number)]).encode())
        digest.update("\n".join(sorted(self.objects)).encode())
        return digest.hexdigest()


def build_table(bound: Bound, surface: str | None = None, tensors: Mapping[str, StoredTensor] | None = None) -> Table:
    """Write out every row of a bound spec. `mapspec.prove` checks what comes out.

    Args:
        bound: the bound spec.
        surface, tensors: a checkpoint and the side it is on; without one, rules that end in `**` make no rows.
    """
    rows = [row for rule in bound.rules if rule.dims is not None for row in _rows(rule)]
    tied = {name.fill({}): to.fill({}) for name, to, _ in bound.ties}
    table = Table(bound, tuple(rows), tied)
    if surface is None or tensors is None or all(rule.dims is not None for rule in bound.rules):
        return table
    closed = closed_rules(bound, surface, tensors, table.inventory(surface))
    return Table(bound, (*rows, *(row for rule in closed for row in _rows(rule))), tied)


def _rows(rule: BoundRule) -> Iterator[Row]:
    forms = RuleForms(rule)
    names = forms.columns("megatron")[0].names if rule.positions else ()
    for number, name in enumerate(names):
        yield Row(forms, number, name)
