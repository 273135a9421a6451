"""Reading tensors for verification: one as a whole, or two side by side in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mapspec.copying.gather import UNSIGNED, Gather, Scratch
from mapspec.copying.pieces import BoxIndex, pieces_of
from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.errors import CheckpointError
from mapspec.fill import Part
from mapspec.tensors import Box, StoredTensor, box_shape, itemsize, whole

__all__ = ["first_difference", "read_tensor"]


def read_tensor(stored: StoredTensor, root: Path) -> npt.NDArray[Any]:
    """A whole tensor in memory, as bits.

    Returns:
        An array of the tensor's shape whose elements are the unsigned integers with the same bits (`uint16` for
        bfloat16 and float16, and so on). Use `.view` where numpy knows the dtype.

    Raises:
        CheckpointError: a file cannot be read (MS703).
        ConvertError: the chunks leave holes (MS706).
    """
    array: npt.NDArray[Any] = np.empty(stored.shape, UNSIGNED[itemsize(stored.dtype)])
    box = whole(stored.shape)
    out = memoryview(array.reshape(-1).view(np.uint8))
    with _Side(box, stored.dtype, (Part(box, stored, box),), root, stored.name) as side:
        for part, offset, length in side.gather.blocks():
            side.read(part, out[offset : offset + length])
    return array


def first_difference(
    box: Box,
    dtype: str,
    left: Sequence[Part],
    right: Sequence[Part],
    *,
    left_root: Path,
    right_root: Path,
    name: str = "tensor",
) -> tuple[int, ...] | None:
    """Where two descriptions of the same destination box differ, bit by bit.

    Args:
        box: the destination's box, which `left` and `right` each tile.
        dtype: of the destination. Values of another dtype are cast to it before they are compared.
        left, right: parts as in `Fill`; `left_root` and `right_root` are the folders of their sources.
        name: of the destination, for messages.

    Returns:
        Index in the destination tensor of the first element that differs, in row-major order, or `None`. Equal bits
        are equal; so are NaNs of equal bits, while zeros of different sign are not.

    Raises:
        CheckpointError, ConvertError: as `read_tensor`.
    """
    bits = UNSIGNED[itemsize(dtype)]
    with _Side(box, dtype, left, left_root, name) as one, _Side(box, dtype, right, right_root, name) as other:
        # The side that wants the smaller blocks sets the pace; any block of it is as good for the other.
        steps = one.gather.blocks() if one.gather.block_bytes <= other.gather.block_bytes else other.gather.blocks()
        for part, _, length in steps:
            a, b = one.scratch.block[:length], other.scratch.block[:length]
            one.read(part, a)
            other.read(part, b)
            unequal = np.frombuffer(a, bits) != np.frombuffer(b, bits)
            if unequal.any():
                at = np.unravel_index(int(unequal.argmax()), box_shape(part))
                return tuple(int(n) + start for n, (start, _) in zip(at, part, strict=True))
    return None


class _Side:
    """One of the sides of a comparison: what to gather, from which files, into which memory."""

    def __init__(self, box: Box, dtype: str, parts: Sequence[Part], root: Path, name: str) -> None:
        indexes: dict[int, tuple[StoredTensor, BoxIndex]] = {}
        self.gather = Gather(box, dtype, pieces_of(name, box, parts, indexes))
        self.scratch = Scratch()
        self._files = SourceFiles(root, 2)
        self._root, self._name = root, name

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, box: Box, out: memoryview) -> None:
        try:
            self.gather.read(box, out, self._files, self.scratch)
        except ReadProblem as problem:
            help_ = "fetch the file again, or write the checkpoint again"
            raise CheckpointError(problem.finding(self._root, f"while reading `{self._name}`", help_)) from problem
