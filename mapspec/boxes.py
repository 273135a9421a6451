"""Arithmetic of boxes: what two have in common, and whether some cover a tensor exactly once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

from mapspec.tensors import Box, box_shape, numel, whole

__all__ = ["intersect", "show_box", "tiling_fault"]


def intersect(a: Box, b: Box) -> Box | None:
    """The common box, or `None` where there is none. Boxes of rank 0 meet."""
    out = []
    for (a0, a1), (b0, b1) in zip(a, b, strict=True):
        start, stop = max(a0, b0), min(a1, b1)
        if start >= stop:
            return None
        out.append((start, stop))
    return tuple(out)


def tiling_fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Say how `boxes` fail to cover a tensor of that shape (in elements) exactly once; `None` if they do.

    Interval arithmetic only: bounds, then volumes, then overlaps. A cover of the right volume without overlaps within
    bounds leaves nothing out.
    """
    if len(boxes) == 1 and boxes[0] == whole(shape):
        return None
    return _fault(tuple(shape), tuple(boxes))


@lru_cache(8)  # the experts of one layer lie as those of the next
def _fault(shape: tuple[int, ...], boxes: tuple[Box, ...]) -> str | None:
    for box in boxes:
        if len(box) != len(shape) or any(not 0 <= a <= b <= n for (a, b), n in zip(box, shape, strict=True)):
            return f"{show_box(box)} lies outside of {list(shape)}"
    pair = None if _is_grid(shape, boxes) else _overlap(shape, boxes)
    if pair:
        return f"{show_box(pair[0])} and {show_box(pair[1])} overlap"
    covered, size = sum(math.prod(box_shape(box)) for box in boxes), numel(shape)
    if covered != size:
        return f"{covered:,} of {size:,} elements are covered"
    return None


def _is_grid(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether the boxes are the cells of one grid, each once: such cells cannot overlap, and nearly all are such."""
    cells = 1
    for axis in range(len(shape)):
        spans = sorted({box[axis] for box in boxes})
        if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
            return False
        cells *= len(spans)
    return cells == len(boxes) == len(set(boxes))


def _overlap(shape: Sequence[int], boxes: Sequence[Box]) -> tuple[Box, Box] | None:
    """Two boxes that overlap. Sweep along the axis with most starts, so that few boxes are open at a time."""
    solid = [box for box in boxes if math.prod(box_shape(box))]
    axis = max(range(len(shape)), key=lambda a: len({box[a][0] for box in solid}), default=None)
    if axis is None:
        return (solid[0], solid[1]) if len(solid) > 1 else None
    active: list[Box] = []
    for box in sorted(solid, key=lambda b: b[axis][0]):
        active = [other for other in active if other[axis][1] > box[axis][0]]
        for other in active:
            if intersect(other, box) is not None:
                return other, box
        active.append(box)
    return None


def show_box(box: Box) -> str:
    """A box as Python slices: `[0:8, 16:32]`."""
    return "[" + ", ".join(f"{a}:{b}" for a, b in box) + "]"
