"""Do the chunks of a tensor cover it exactly once?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from mapspec.tensors import Box, box_shape, numel, whole

__all__ = ["tiling_problem"]


def tiling_problem(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """What keeps `boxes` from covering a tensor of `shape` (in elements) exactly once, in words; `None` if they do."""
    if len(boxes) == 1 and boxes[0] == whole(shape):
        return None
    for box in boxes:
        if len(box) != len(shape) or any(not 0 <= a <= b <= n for (a, b), n in zip(box, shape, strict=True)):
            return f"the chunk {_words(box)} reaches beyond its shape {list(shape)}"
    total = numel(shape)
    covered = sum(math.prod(box_shape(box)) for box in boxes)
    if total == 0:
        return None
    if covered < total:
        return f"its chunks hold {covered} of {total} elements"
    pair = None if _is_grid(shape, boxes) else _overlap(shape, boxes)
    if pair:
        return f"the chunks {_words(pair[0])} and {_words(pair[1])} overlap"
    return None


def _words(box: Box) -> str:
    return "[" + ", ".join(f"{a}:{b}" for a, b in box) + "]"


def _is_grid(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    # Different cells of one grid cannot overlap, and almost every checkpoint is cut along a grid.
    cells = 1
    for axis in range(len(shape)):
        spans = sorted({box[axis] for box in boxes})
        if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
            return False
        cells *= len(spans)
    return cells == len(boxes) == len(set(boxes))


def _overlap(shape: Sequence[int], boxes: Sequence[Box]) -> tuple[Box, Box] | None:
    # Sweep along the axis with most starts, so that few boxes are open at a time.
    solid = [box for box in boxes if math.prod(box_shape(box))]
    axis = max(range(len(shape)), key=lambda a: len({box[a][0] for box in solid}), default=None)
    if axis is None:
        return (solid[0], solid[1]) if len(solid) > 1 else None
    open_boxes: list[Box] = []
    for box in sorted(solid, key=lambda b: b[axis][0]):
        open_boxes = [other for other in open_boxes if other[axis][1] > box[axis][0]]
        for other in open_boxes:
            if all(a < d and c < b for (a, b), (c, d) in zip(box, other, strict=True)):
                return other, box
        open_boxes.append(box)
    return None
