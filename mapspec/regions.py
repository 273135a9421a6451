"""Regions: which elements of one tensor are which elements of another.

A piece pairs a box of a tensor on the left with a box of a tensor on the right that holds the same elements in the
same order. A list of pieces is the one intermediate form of mapspec: read from left to right or from right to left
it is a conversion, intersected with what a rank owns it is a shard, laid over file offsets it is a copy plan, and
counting what it covers is the proof.

Within a region all boxes have the same rank; tensors that hold several positions of an axis (all experts of a
layer, say) get their leading axes when a row is made, see `mapspec.table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mapspec.boxes import intersect
from mapspec.tensors import Box

__all__ = ["Piece", "Slot", "clip", "compose", "flip", "pair"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The elements of `left_box` in the left tensor number `left` are those of `right_box` in the right one."""

    left: int
    left_box: Box
    right: int
    right_box: Box


@dataclass(frozen=True, slots=True)
class Slot:
    """How one tensor of a side is arranged along the fused axis.

    Attributes:
        shape: extents of the tensor.
        order: segments along axis `axis`, one after another; `("",)` for a dimension that is not fused.
        sizes: number of rows of each segment.
        axis: the fused axis; -1 where the tensor has no axis at all.
    """

    shape: tuple[int, ...]
    order: tuple[str, ...]
    sizes: dict[str, int]
    axis: int


def pair(left: Sequence[Slot], right: Sequence[Slot]) -> tuple[Piece, ...]:
    """Join two sides by segment occurrence: the n-th `q` of the left is the n-th `q` of the right.

    Neighbouring pieces that continue each other on both sides are merged. Elements that only one side has (padding)
    are in no piece.
    """
    places: dict[tuple[str, int], tuple[int, int]] = {}
    for number, segment, start, occurrence in _runs(right):
        places[segment, occurrence] = (number, start)
    lines: list[tuple[int, int, int, int, int]] = []
    for number, segment, start, occurrence in _runs(left):
        if (segment, occurrence) not in places:
            continue
        other, other_start = places[segment, occurrence]
        size = min(left[number].sizes[segment], right[other].sizes[segment])
        if lines:
            n, a, m, b, length = lines[-1]
            if (n, m) == (number, other) and a + length == start and b + length == other_start:
                lines[-1] = (n, a, m, b, length + size)
                continue
        lines.append((number, start, other, other_start, size))
    return tuple(
        Piece(n, _rows(left[n], a, length, right[m]), m, _rows(right[m], b, length, left[n]))
        for n, a, m, b, length in lines
    )


def _runs(side: Sequence[Slot]) -> Iterator[tuple[int, str, int, int]]:
    """(tensor, segment, first row, how many of that segment came before) of every run of a side."""
    seen: dict[str, int] = {}
    for number, slot in enumerate(side):
        start = 0
        for segment in slot.order:
            occurrence = seen.get(segment, 0)
            seen[segment] = occurrence + 1
            yield number, segment, start, occurrence
            start += slot.sizes[segment]


def _rows(slot: Slot, start: int, length: int, other: Slot) -> Box:
    if slot.axis < 0:
        return ()
    box = [(0, min(n, m)) for n, m in zip(slot.shape, other.shape, strict=True)]
    box[slot.axis] = (start, start + length)
    return tuple(box)


def flip(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same pairs with left and right exchanged."""
    return tuple(Piece(p.right, p.right_box, p.left, p.left_box) for p in pieces)


def _follow(common: Box, box: Box, other: Box) -> Box:
    """Where the part `common` of `box` lies in `other`, its partner."""
    return tuple(
        (start - b0 + o0, stop - b0 + o0) for (start, stop), (b0, _), (o0, _) in zip(common, box, other, strict=True)
    )


def clip(piece: Piece, box: Box) -> Piece | None:
    """The part of the piece that lies in `box` of its right tensor."""
    common = intersect(piece.right_box, box)
    if common is None:
        return None
    return Piece(piece.left, _follow(common, piece.right_box, piece.left_box), piece.right, common)


def compose(first: Sequence[Piece], second: Sequence[Piece]) -> tuple[Piece, ...]:
    """left -> middle and middle -> right give left -> right."""
    out = []
    for a in first:
        for b in second:
            if a.right != b.left:
                continue
            common = intersect(a.right_box, b.left_box)
            if common is not None:
                left_box = _follow(common, a.right_box, a.left_box)
                out.append(Piece(a.left, left_box, b.right, _follow(common, b.left_box, b.right_box)))
    return tuple(out)
