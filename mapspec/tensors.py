"""What mapspec knows of a tensor without its values: dtype, shape, and where its bytes lie.

Both checkpoint formats come down to this: a tensor is cut into boxes, and each box lies in some file as one
row-major run of bytes. A safetensors tensor is a single box; a `torch_dist` tensor may be cut into many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from mapspec.frozen import frozen

__all__ = ["DTYPES", "FLOATS", "Box", "Chunk", "StoredTensor", "box_shape", "itemsize", "numel", "whole"]

type Box = tuple[tuple[int, int], ...]
"""Half-open interval `(start, stop)` per axis, in elements. The box of a scalar is `()`."""

# name -> bytes per element. The names are torch's own, without the `torch.` in front.
DTYPES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Dtypes that values may be cast between."""


def itemsize(dtype: str) -> int:
    """Bytes per element of `dtype`."""
    return DTYPES[dtype]


def numel(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of that shape; 1 for a scalar."""
    return math.prod(shape)


def whole(shape: Sequence[int]) -> Box:
    """The box that covers a tensor of that shape. Equal ones are mostly one object: a model has few shapes."""
    return _whole(tuple(shape))


@lru_cache(maxsize=1024)
def _whole(shape: tuple[int, ...]) -> Box:
    return tuple([(0, n) for n in shape])


def box_shape(box: Box) -> tuple[int, ...]:
    """Extent of the box per axis."""
    return tuple([stop - start for start, stop in box])


@frozen
class Chunk:
    """A box of a tensor that lies in `file` as `nbytes` row-major bytes from `offset` on.

    `file` is relative to the checkpoint's folder.
    """

    box: Box
    file: str
    offset: int
    nbytes: int


@frozen
class StoredTensor:
    """A tensor of a checkpoint: name, dtype (a key of `DTYPES`), global shape, and its chunks."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor in bytes."""
        return numel(self.shape) * itemsize(self.dtype)
