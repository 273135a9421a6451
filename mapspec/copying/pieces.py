"""A fill, taken apart into boxes that each come from one place in one source file.

A part names a box of a source tensor; that tensor may be cut into many chunks, and a chunk's rows may be wider than
the box. A `Piece` is what is left when both are resolved: a box of the destination, a byte to start from, and how many
bytes to step per axis. Everything that reads works on pieces.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, product

from mapspec.boxes import intersect
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.fill import Fill, Part
from mapspec.frozen import frozen
from mapspec.tensors import Box, StoredTensor, box_shape, itemsize, numel

__all__ = ["BoxIndex", "Piece", "Run", "dense_strides", "pieces_of", "runs_of", "straight"]

type Run = tuple[int, str | None, int, int]
"""Bytes that are contiguous on both sides: offset within the destination chunk, source file (`None`: zeros), offset in
that file, length."""


@frozen
class Piece:
    """A box of the destination tensor, all of whose elements come from one chunk of one source tensor.

    Attributes:
        box: in elements of the destination tensor.
        file: source file; `None` for zeros.
        start: offset in that file of the box's first element.
        strides: bytes from an element to the next along each axis of `box`.
        dtype: of the source, a key of `DTYPES`.
        origin, limit: first byte of the source chunk, and the one after its last.
    """

    box: Box
    file: str | None
    start: int
    strides: tuple[int, ...]
    dtype: str
    origin: int
    limit: int

    def start_of(self, box: Box) -> int:
        """Offset in the source file of the first element of `box`, which lies within `self.box`."""
        return self.start + sum(
            (inner[0] - outer[0]) * stride for inner, outer, stride in zip(box, self.box, self.strides, strict=True)
        )


def dense_strides(shape: Sequence[int], item: int) -> tuple[int, ...]:
    """Bytes from an element to the next along each axis of a row-major array."""
    strides = []
    for extent in reversed(shape):
        strides.append(item)
        item *= extent
    return tuple(reversed(strides))


class BoxIndex:
    """Boxes of one tensor, to be looked up by what they overlap.

    The boxes are sorted along the axis on which most of them differ, so a look-up among the 512 chunks of a tensor
    touches the few that matter, whether they are rows, columns or a grid.
    """

    __slots__ = ("_axis", "_boxes", "_order", "_places", "_reach", "_starts")

    def __init__(self, boxes: Sequence[Box]) -> None:
        self._boxes = boxes
        self._places = {box: at for at, box in enumerate(boxes)}
        axes = range(len(boxes[0]) if boxes else 0)
        self._axis = max(axes, key=lambda axis: len({box[axis][0] for box in boxes}), default=-1)
        if self._axis < 0:
            return
        self._order = sorted(range(len(boxes)), key=lambda at: boxes[at][self._axis])
        self._starts = [boxes[at][self._axis][0] for at in self._order]
        self._reach = list(accumulate((boxes[at][self._axis][1] for at in self._order), max))

    def place_of(self, box: Box) -> int | None:
        """Position of exactly that box, or `None`."""
        return self._places.get(box)

    def overlapping(self, box: Box) -> Iterator[tuple[int, Box]]:
        """Position and common elements of every box that shares elements with `box`."""
        if self._axis < 0:
            yield from ((at, ()) for at in range(len(self._boxes)))
            return
        start, stop = box[self._axis]
        for at in self._order[bisect_right(self._reach, start) : bisect_left(self._starts, stop)]:
            if (common := intersect(self._boxes[at], box)) is not None:
                yield at, common


def pieces_of(
    name: str, box: Box, parts: Sequence[Part], indexes: dict[int, tuple[StoredTensor, BoxIndex]]
) -> list[Piece]:
    """The pieces that make up `box` of the destination tensor `name`.

    Args:
        name: only for messages.
        box: what the parts tile, in elements of the destination.
        parts: as in `Fill`.
        indexes: look-up of the source tensors seen so far, by identity; kept by the caller between calls.

    Raises:
        ConvertError: the chunks of a source tensor do not cover what is asked of them (MS706).
    """
    pieces: list[Piece] = []
    for part in parts:
        if numel(box_shape(part.box)) == 0:
            continue
        if part.source is None:
            pieces.append(Piece(part.box, None, 0, (0,) * len(part.box), "uint8", 0, 0))
            continue
        before = len(pieces)
        pieces.extend(_pieces_of_part(part, part.source, indexes))
        held = sum(numel(box_shape(piece.box)) for piece in pieces[before:])
        if held != numel(box_shape(part.box)):
            raise ConvertError(
                Diagnostic(
                    "MS706",
                    f"the chunks of `{part.source.name}` hold {held} of the {numel(box_shape(part.box))} elements "
                    f"that `{name}` takes from {_text(part.source_box)}",
                    where=part.source.name,
                    help="the source checkpoint is incomplete; check it with `mapspec verify`",
                )
            )
    total = sum(numel(box_shape(piece.box)) for piece in pieces)
    if total != numel(box_shape(box)):
        raise AssertionError(f"parts of {name} have {total} elements, its chunk has {numel(box_shape(box))}")
    if len(pieces) > 1:
        index = BoxIndex([piece.box for piece in pieces])
        for at, piece in enumerate(pieces):
            if any(other != at for other, _ in index.overlapping(piece.box)):
                raise AssertionError(f"parts of {name} overlap at {_text(piece.box)}")
    if any(intersect(piece.box, box) != piece.box for piece in pieces):
        raise AssertionError(f"parts of {name} reach beyond {_text(box)}")
    return pieces


def _pieces_of_part(
    part: Part, source: StoredTensor, indexes: dict[int, tuple[StoredTensor, BoxIndex]]
) -> Iterator[Piece]:
    axes, source_axes = len(part.box), len(part.source_box)
    # Axes are matched from the last one; those that only one side has must have extent 1.
    extra = source_axes - axes
    shape, source_shape = box_shape(part.box), box_shape(part.source_box)
    common = min(axes, source_axes)
    same = shape[axes - common :] == source_shape[source_axes - common :]
    if not same or math.prod(shape[: axes - common]) * math.prod(source_shape[: source_axes - common]) != 1:
        raise AssertionError(f"{_text(part.box)} cannot be filled from {_text(part.source_box)} of {source.name}")
    item = itemsize(source.dtype)
    for at, held in _index_of(source, indexes).overlapping(part.source_box):
        chunk = source.chunks[at]
        strides = dense_strides(box_shape(chunk.box), item)
        start = chunk.offset + sum(
            (inner[0] - outer[0]) * stride for inner, outer, stride in zip(held, chunk.box, strides, strict=True)
        )
        box = tuple(
            interval
            if axis + extra < 0
            else (
                interval[0] + held[axis + extra][0] - part.source_box[axis + extra][0],
                interval[0] + held[axis + extra][1] - part.source_box[axis + extra][0],
            )
            for axis, interval in enumerate(part.box)
        )
        steps = tuple(0 if axis + extra < 0 else strides[axis + extra] for axis in range(axes))
        yield Piece(box, chunk.file, start, steps, source.dtype, chunk.offset, chunk.offset + chunk.nbytes)


def straight(fill: Fill, indexes: dict[int, tuple[StoredTensor, BoxIndex]]) -> Run | None:
    """The run that the whole chunk is copied by, if it lies as one in one chunk of its source; else `None`.

    Nearly every chunk of a checkpoint is of that kind, so this takes little arithmetic. The offset is that in the
    file, not that in the chunk. `indexes` as in `pieces_of`.
    """
    chunk = fill.chunk
    if len(fill.parts) != 1 or fill.parts[0].box != chunk.box:
        return None
    source, box = fill.parts[0].source, fill.parts[0].source_box
    if source is None or source.dtype != fill.tensor.dtype:
        return None
    held = source.chunks[0]
    if len(source.chunks) > 1:
        index = _index_of(source, indexes)
        at = index.place_of(box)
        if at is None:
            at = next((at for at, _ in index.overlapping(box)), None)
        if at is None:
            return None
        held = source.chunks[at]
    if held.box == box:
        return (chunk.offset, held.file, held.offset, held.nbytes) if held.nbytes == chunk.nbytes else None
    offset, nbytes, step, whole = held.offset, itemsize(source.dtype), itemsize(source.dtype), True
    for (start, stop), (low, high) in zip(reversed(box), reversed(held.box), strict=True):
        if start < low or stop > high or not (whole or stop - start == 1):
            return None
        whole = whole and (start, stop) == (low, high)
        offset += (start - low) * step
        nbytes *= stop - start
        step *= high - low
    return (chunk.offset, held.file, offset, nbytes) if nbytes == chunk.nbytes else None


def _index_of(source: StoredTensor, indexes: dict[int, tuple[StoredTensor, BoxIndex]]) -> BoxIndex:
    known = indexes.get(id(source))
    if known is None:
        known = indexes[id(source)] = (source, BoxIndex([chunk.box for chunk in source.chunks]))
    return known[1]


def runs_of(pieces: Sequence[Piece], box: Box, dtype: str, shortest: int) -> list[Run] | None:
    """The pieces as runs in ascending order of the destination, or `None` where that does not pay.

    It does not pay where a piece is strided with runs shorter than `shortest` bytes, and it is not possible where the
    dtype changes.
    """
    item = itemsize(dtype)
    target = dense_strides(box_shape(box), item)
    runs: list[Run] = []
    for piece in pieces:
        if piece.file is not None and piece.dtype != dtype:
            return None
        shape = box_shape(piece.box)
        axis, length = len(shape), item
        while axis and (
            shape[axis - 1] == 1
            or (target[axis - 1] == length and (piece.file is None or piece.strides[axis - 1] == length))
        ):
            axis -= 1
            length *= shape[axis]
        if length < shortest and math.prod(shape[:axis]) > 1:
            return None
        first = sum((inner[0] - outer[0]) * step for inner, outer, step in zip(piece.box, box, target, strict=True))
        for at in product(*(range(extent) for extent in shape[:axis])):
            there = first + sum(n * step for n, step in zip(at, target[:axis], strict=True))
            here = piece.start + sum(n * step for n, step in zip(at, piece.strides[:axis], strict=True))
            runs.append((there, piece.file, here, length))
    if len(runs) > 1:
        runs.sort()
    return runs


def _text(box: Box) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in box)}]"
