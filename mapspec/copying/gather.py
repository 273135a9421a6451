"""Filling a block of a destination from pieces that are strided on either side, or that change their dtype.

The destination is walked in blocks that are contiguous in its file. For each block the source bytes are read in as few
and as long runs as they lie there, and put in place by strided assignment in memory, which is some ten times faster
than one read per short row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from mapspec.copying.alignment import PAGE, STAGE, pages, place, slow
from mapspec.copying.casts import CASTABLE, caster
from mapspec.copying.pieces import BoxIndex, Piece, dense_strides
from mapspec.copying.rows import SHORTEST, Rows
from mapspec.copying.source import SourceFiles
from mapspec.tensors import Box, box_shape, itemsize, numel

__all__ = ["UNSIGNED", "Gather", "Scratch"]

type Array = npt.NDArray[Any]

# Unsigned integers stand for elements of any dtype of that size: bits are moved, never interpreted.
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

_BLOCK = 1 << 20
_SMALLEST = 1 << 16
# A run with this much distance to the next is read by itself; closer ones are read together with what is between.
_FAR = 1 << 16


class Scratch:
    """Memory of one worker: page-aligned, made when first needed, reused for every block.

    Attributes:
        block: for a finished block of the destination, and a page to place it in.
        held: file, first and last offset of the source bytes in the staging memory, where they may serve again.
    """

    __slots__ = ("_cast", "_stage", "_staged", "block", "held")

    def __init__(self) -> None:
        self.block = pages(STAGE + PAGE)
        self._stage: memoryview | None = None
        self._staged = memoryview(b"")
        self._cast: memoryview | None = None
        self.held: tuple[str, int, int] | None = None

    def stage(self, source: int, length: int) -> memoryview:
        """Staging memory for `length` bytes, at most `STAGE`, from offset `source` of a file.

        What was in it is lost, and `held` forgets it.
        """
        if self._stage is None:
            self._stage = pages(STAGE + PAGE)
        self.held = None
        low = place(source)
        self._staged = self._stage[low : low + length]
        return self._staged

    def staged(self) -> memoryview:
        """The staging memory as it was last filled."""
        return self._staged

    def cast(self) -> memoryview:
        """Room for the source values of a block before their dtype changes."""
        if self._cast is None:
            self._cast = pages(2 * STAGE)
        return self._cast


class Gather:
    """The pieces of one destination box, block by block.

    Args:
        box: in elements of the destination tensor.
        dtype: of the destination.
        pieces: what the box is made of, see `mapspec.copying.pieces.pieces_of`.

    Attributes:
        block_bytes: how long a block gets at most, so that what is read for it fits the staging memory.
    """

    __slots__ = ("_box", "_cast", "_dtype", "_index", "_item", "_pieces", "_strides", "block_bytes")

    def __init__(self, box: Box, dtype: str, pieces: Sequence[Piece]) -> None:
        self._box, self._dtype, self._pieces = box, dtype, pieces
        self._item = itemsize(dtype)
        self._index = BoxIndex([piece.box for piece in pieces])
        self._strides = dense_strides(box_shape(box), self._item)
        self.block_bytes = max(_SMALLEST, min(_BLOCK, STAGE // self._spread()))
        changing = {piece.dtype for piece in pieces if piece.file is not None and piece.dtype != dtype}
        if changing and not (changing | {dtype}) <= CASTABLE:
            raise AssertionError(f"no cast from {sorted(changing)} to {dtype}")
        self._cast: dict[str, Callable[[Array], Array]] = {source: caster(source, dtype) for source in changing}

    def blocks(self, most: int = _BLOCK) -> Iterator[tuple[Box, int, int]]:
        """Boxes in the order of their bytes, each with its offset in the destination box and its length in bytes,
        which is at most `most` where an element is not longer."""
        shape = box_shape(self._box)
        if not shape:
            yield self._box, 0, self._item
            return
        if numel(shape) == 0:
            return
        wanted = min(self.block_bytes, most)
        axis = next(axis for axis in range(len(shape)) if self._strides[axis] <= wanted or axis == len(shape) - 1)
        step = max(1, wanted // self._strides[axis])
        low = self._box[axis][0]
        inner = self._box[axis + 1 :]
        for at in product(*(range(*interval) for interval in self._box[:axis])):
            outer = tuple((n, n + 1) for n in at)
            offset = sum((n - i[0]) * s for n, i, s in zip(at, self._box, self._strides, strict=False))
            for begin in range(0, shape[axis], step):
                end = min(begin + step, shape[axis])
                box = (*outer, (low + begin, low + end), *inner)
                yield box, offset + begin * self._strides[axis], (end - begin) * self._strides[axis]

    def _spread(self) -> int:
        """How many bytes of a source file one byte of the destination stretches over, at most."""
        spread = 1
        for piece in self._pieces:
            shape = box_shape(piece.box)
            outer = next((axis for axis, extent in enumerate(shape) if extent > 1), None)
            if piece.file is not None and outer is not None and piece.strides[outer] <= _FAR:
                row = numel(shape[outer + 1 :]) * itemsize(piece.dtype)
                spread = max(spread, -(-piece.strides[outer] // row))
        return spread

    def read(self, box: Box, out: memoryview, files: SourceFiles, scratch: Scratch) -> None:
        """Put the elements of `box`, one of `blocks`, into `out` in row-major order. Raises `ReadProblem`."""
        whole = np.frombuffer(out, UNSIGNED[self._item]).reshape(box_shape(box))
        for at, common in self._index.overlapping(box):
            piece = self._pieces[at]
            # the ellipsis makes a view of a scalar, too
            where: tuple[Any, ...] = tuple(slice(a - i[0], b - i[0]) for (a, b), i in zip(common, box, strict=True))
            into = whole[(*where, ...)]
            if piece.file is None:
                into[...] = 0
            elif piece.dtype == self._dtype:
                _read(into, piece, piece.start_of(common), files, scratch)
            else:
                item = itemsize(piece.dtype)
                values = np.frombuffer(scratch.cast(), UNSIGNED[item], numel(into.shape)).reshape(into.shape)
                _read(values, piece, piece.start_of(common), files, scratch)
                into[...] = self._cast[piece.dtype](values)

    def rows(self) -> Rows | None:
        """The box as rows of one piece, each a run on both sides and not short; `None` where it is something else."""
        axis, piece = self._row_axis(), self._pieces[0]
        if len(self._pieces) != 1 or axis is None or self._strides[axis] < SHORTEST:
            return None
        if piece.file is None or piece.dtype != self._dtype or self._strides[axis + 1 :] != piece.strides[axis + 1 :]:
            return None
        start, stop = self._box[axis]
        return Rows(piece.file, piece.start, piece.strides[axis], self._strides[axis], stop - start)

    def slabs(self) -> list[tuple[int, Rows]] | None:
        """The rows of the box as parts that lie side by side, each with its offset in the row; `None` where the box is
        something else, or a part is short or not one run of its file."""
        axis, shape, found, end = self._row_axis(), box_shape(self._box), [], 0
        if axis is None:
            return None
        for piece in sorted(self._pieces, key=lambda piece: piece.box):
            part = box_shape(piece.box)
            dense = dense_strides(part, self._item)
            length = dense[axis]
            if piece.file is None or piece.dtype != self._dtype or length < SHORTEST:
                return None
            if piece.box[axis] != self._box[axis] or piece.strides[axis:] != dense[axis:]:
                return None
            if part[axis + 2 :] != shape[axis + 2 :]:
                return None
            found.append((end, Rows(piece.file, piece.start, length, length, shape[axis])))
            end += length
        return found if end == self._strides[axis] else None

    def _row_axis(self) -> int | None:
        return next((axis for axis, extent in enumerate(box_shape(self._box)) if extent > 1), None)


def _read(into: Array, piece: Piece, start: int, files: SourceFiles, scratch: Scratch) -> None:
    """Fill `into` with the elements that begin at byte `start` and step as the piece does."""
    assert piece.file is not None
    item = into.itemsize
    # Axes of extent 1 have nothing to step over; without them the outermost stride is a real distance.
    kept = [axis for axis, extent in enumerate(into.shape) if extent > 1]
    strides = tuple(piece.strides[axis] for axis in kept)
    shape = tuple(into.shape[axis] for axis in kept)
    span = item + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if span == into.nbytes:
        if into.flags.c_contiguous and (span > STAGE or not slow(start, into.__array_interface__["data"][0])):
            files.read_into(memoryview(into.reshape(-1).view(np.uint8)), piece.file, start)
            return
        if span <= STAGE:
            staged = scratch.stage(start, span)
            files.read_into(staged, piece.file, start)
            into[...] = np.frombuffer(staged, into.dtype).reshape(into.shape)
            return
    elif strides[0] <= _FAR and span <= STAGE:
        # Whole rows of the source chunk, so that the next column slab finds them already here.
        begin = start - (start - piece.origin) % strides[0]
        end = min(piece.limit, start + span + -(start + span - piece.origin) % strides[0])
        if end - begin > STAGE:
            begin, end = start, start + span
        if scratch.held != (piece.file, begin, end):
            staged = scratch.stage(begin, end - begin)
            files.read_into(staged, piece.file, begin)
            scratch.held = (piece.file, begin, end)
        rows: Array = np.ndarray(shape, into.dtype, scratch.staged(), start - begin, strides)
        into[...] = rows.reshape(into.shape)
        return
    elif strides[0] > _FAR:
        axis = kept[0]
        for at in range(into.shape[axis]):
            row = into[(slice(None),) * axis + (slice(at, at + 1),)]
            _read(row, piece, start + at * strides[0], files, scratch)
        return
    axis, half = kept[0], shape[0] // 2
    _read(into[(slice(None),) * axis + (slice(0, half),)], piece, start, files, scratch)
    _read(into[(slice(None),) * axis + (slice(half, None),)], piece, start + half * strides[0], files, scratch)
