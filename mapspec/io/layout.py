"""Where the bytes of a checkpoint that does not exist yet will lie.

Each format knows how to lay out its files (`safetensors_io`, `torch_dist`); filling them is the same work for both
and lives in `mapspec.copy`. So writing a checkpoint is: lay out, fill, put the small files beside it, publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mapspec.frozen import frozen
from mapspec.tensors import Box, StoredTensor

__all__ = ["Framing", "Layout", "NewTensor"]


@frozen
class NewTensor:
    """A tensor to be written: name, dtype (a key of `DTYPES`), shape, and the boxes it is cut into.

    The boxes tile the tensor; `(whole(shape),)` leaves it in one piece.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


@frozen
class Framing:
    """Bytes of a file that are not tensor data: headers, archive records, padding."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a checkpoint to be written.

    Attributes:
        tensors: every tensor with its chunks placed; chunk offsets are those of the raw tensor bytes.
        file_sizes: final size in bytes of each data file, by path relative to the checkpoint's folder.
        framing: what stands in each data file around the tensors.
        small_files: files written whole after all data files (index, metadata), by relative path.
    """

    tensors: Mapping[str, StoredTensor]
    file_sizes: Mapping[str, int]
    framing: Mapping[str, tuple[Framing, ...]]
    small_files: Mapping[str, bytes]
