"""What each chunk of a checkpoint to be written is made of.

This is the copy plan: the last form before bytes move. `mapspec.plan` makes it out of regions, `mapspec.copy`
executes it. It knows nothing of specs, directions or formats.
"""

from __future__ import annotations

from mapspec.frozen import frozen
from mapspec.tensors import Box, Chunk, StoredTensor

__all__ = ["Fill", "Part"]


@frozen
class Part:
    """A box of the destination tensor and the box of the source tensor with the same elements in the same order.

    The two boxes have equal extents once leading axes of extent 1 are dropped (an expert's `[out, in]` against
    `[1, out, in]` of the stacked tensor). `source` is `None` where the destination is filled with zeros.
    """

    box: Box
    source: StoredTensor | None
    source_box: Box


@frozen
class Fill:
    """One chunk of one destination tensor, and the parts that tile its box.

    Where `tensor.dtype` differs from a source's dtype, the values are cast on the way: the planner has listed it.
    """

    tensor: StoredTensor
    chunk: Chunk
    parts: tuple[Part, ...]
