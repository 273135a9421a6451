"""Moving the values of one parameter: from the files of a checkpoint, or into them.

A parameter is moved in blocks of a few MiB through memory of the host, wherever the parameter itself is. Of a file
exactly the runs that the rank owns are read or written: a row-parallel weight takes one read per row, 1 KiB or more
in real models. Out of the page cache that takes about twice the time of reading whole rows at TP 8 (16,384 rows of
16 KiB: 0.2 s against 0.1 s on a busy machine), but an eighth of the bytes, and those are what ranks share a disk or a
network for. Only where runs are shorter than 512 bytes and there are thousands of them, whole rows are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_128

from mapspec.copying.gather import Gather, Scratch
from mapspec.copying.pieces import Piece, dense_strides, runs_of
from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.errors import CheckpointError, ConvertError
from mapspec.io.unwritable import write_problem
from mapspec.live.pieces import blocks_of
from mapspec.tensors import Box, box_shape, itemsize, numel

__all__ = ["CountedFiles", "Reader", "Writer", "Written", "slices"]

_BLOCK = 4 << 20
_SHORT_RUN = 512
_MANY_RUNS = 4096
_LONG_RUN = 1 << 16


class CountedFiles(SourceFiles):
    """Source files that know how many bytes were read, and in how many requests."""

    __slots__ = ("nbytes", "requests")

    def __init__(self, root: Path, sharers: int = 1) -> None:
        super().__init__(root, sharers)
        self.nbytes = self.requests = 0

    def read_into(self, view: memoryview, file: str, offset: int) -> None:
        self.nbytes += len(view)
        self.requests += 1
        super().read_into(view, file, offset)


class Reader:
    """Fills parameters from the files below `root`. For one thread.

    Args:
        files: how they are read; closed with the reader.
        pinned: whether the host memory is page-locked, for parameters on a GPU.
    """

    def __init__(self, root: Path, files: CountedFiles | None = None, *, pinned: bool = False) -> None:
        self._root, self._files = root, files or CountedFiles(root)
        self._staged = torch.empty(_BLOCK, dtype=torch.uint8, pin_memory=pinned)
        self._view = memoryview(self._staged.numpy())
        self._scratch = Scratch()

    @property
    def nbytes(self) -> int:
        """Bytes read so far."""
        return self._files.nbytes

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, pieces: Iterable[Piece]) -> None:
        """Overwrite the target; values are cast to its dtype where a piece has another.

        Raises:
            CheckpointError: MS703 where a file does not give its bytes.
        """
        for piece in pieces:
            if piece.file is None:
                target[slices(piece.box)].zero_()
                continue
            for block in blocks_of(piece.box, piece.dtype, _BLOCK):
                try:
                    values = self._read(piece, block)
                except ReadProblem as problem:
                    doing = f"while filling `{name}`; the model is partly overwritten"
                    help_ = "fetch the file again, then load again"
                    raise CheckpointError(problem.finding(self._root, doing, help_)) from problem
                target[slices(block)].copy_(values)

    def _read(self, piece: Piece, block: Box) -> Tensor:
        """The block's values as a tensor in the staging memory, in the dtype of the file."""
        shape, item = box_shape(block), itemsize(piece.dtype)
        nbytes = numel(shape) * item
        part = _part(piece, block)
        # Where each request waits for an answer, whole rows cost less than thousands of short ones.
        shortest = _LONG_RUN if self._files.window else _shortest(piece)
        runs = runs_of([part], block, piece.dtype, shortest)
        if runs is None:
            gather = Gather(block, piece.dtype, [part])
            gather.read(block, self._view[:nbytes], self._files, self._scratch)
        else:
            for at, file, offset, length in runs:
                assert file is not None
                self._files.read_into(self._view[at : at + length], file, offset)
        return self._staged[:nbytes].view(getattr(torch, piece.dtype)).view(shape)


class Written(NamedTuple):
    """Bytes that were written in one piece: file, offset, length, and their digest (32 hexadecimal digits)."""

    file: str
    offset: int
    nbytes: int
    hex: str


class Writer:
    """Writes parameters into files below `root` that have their full size already.

    Attributes:
        nbytes: how many bytes were written.
        written: what was written in one piece each, with digests of the memory that it was written from. Parts of a
            row-parallel weight, which stand in thousands of rows, are not among it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, int] = {}
        self.nbytes = 0
        self.written: list[Written] = []

    def write(self, source: Tensor, pieces: Iterable[Piece]) -> None:
        """Write the elements of `source` to where the pieces say, in their dtype.

        Raises:
            ConvertError: MS702 or MS704.
        """
        for piece in pieces:
            if piece.file is None:
                continue
            blocks = ((block, _values(source, block, piece)) for block in blocks_of(piece.box, piece.dtype, _BLOCK))
            if _in_one_piece(piece):
                self.stream(piece.file, piece.start, (data for _, data in blocks))
                continue
            for block, data in blocks:
                for at, file, offset, length in runs_of([_part(piece, block)], block, piece.dtype, 1) or ():
                    assert file is not None
                    self.put(file, offset, data[at : at + length])

    def stream(self, file: str, offset: int, blocks: Iterable[memoryview]) -> None:
        """Write blocks one after the other from an offset on, and take their digest."""
        digest, at = xxh3_128(), offset
        for data in blocks:
            digest.update(data)
            self.put(file, at, data)
            at += len(data)
        if at > offset:
            self.written.append(Written(file, offset, at - offset, digest.hexdigest()))

    def put(self, file: str, offset: int, data: memoryview | bytes) -> None:
        """Write bytes at an offset."""
        try:
            fd = self._fd(file)
            view = memoryview(data)
            self.nbytes += len(view)
            while len(view):
                done = os.pwrite(fd, view, offset)
                offset, view = offset + done, view[done:]
        except OSError as error:
            raise ConvertError(write_problem(error, self._root / file)) from error

    def _fd(self, file: str) -> int:
        if file not in self._open:
            if len(self._open) >= 64:
                self._finish(*self._open.popitem())
            self._open[file] = os.open(self._root / file, os.O_WRONLY | os.O_CLOEXEC)
        return self._open[file]

    def close(self, *, fsync: bool) -> None:
        """Close the files, on disk if asked for."""
        while self._open:
            self._finish(*self._open.popitem(), fsync=fsync)

    def _finish(self, file: str, fd: int, *, fsync: bool = True) -> None:
        try:
            if fsync:
                os.fsync(fd)
        except OSError as error:
            raise ConvertError(write_problem(error, self._root / file)) from error
        finally:
            os.close(fd)


def slices(box: Box) -> Any:
    """The box as an index; the ellipsis makes a view of a scalar, too."""
    return (*(slice(start, stop) for start, stop in box), ...)


def _values(source: Tensor, block: Box, piece: Piece) -> memoryview:
    """The bytes of a block of the source in row-major order, in the piece's dtype."""
    values = source[slices(block)].detach().to(getattr(torch, piece.dtype)).contiguous().cpu()
    return memoryview(values.reshape(-1).view(torch.uint8).numpy())


def _in_one_piece(piece: Piece) -> bool:
    """Whether the file has the elements of the piece one after the other, in row-major order."""
    shape = box_shape(piece.box)
    dense = dense_strides(shape, itemsize(piece.dtype))
    return all(n == 1 or here == there for n, here, there in zip(shape, piece.strides, dense, strict=True))


def _part(piece: Piece, block: Box) -> Piece:
    return Piece(block, piece.file, piece.start_of(block), piece.strides, piece.dtype, piece.origin, piece.limit)


def _shortest(piece: Piece) -> int:
    """The shortest run that is read by itself."""
    nbytes = numel(box_shape(piece.box)) * itemsize(piece.dtype)
    return _SHORT_RUN if nbytes > _SHORT_RUN * _MANY_RUNS else 1
