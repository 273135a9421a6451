"""One read into thousands of places in memory.

`os.preadv` takes a buffer object for each place, and making those takes longer than copying the bytes. Here the places
are an array, as the system call wants them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Column", "address_of", "read_columns", "rows_of"]

_MOST = 1024  # IOV_MAX of Linux


@dataclass(frozen=True, slots=True)
class Column:
    """Where parts of rows go: those of row n, `length` bytes, to `memory[n * stride : n * stride + length]`."""

    memory: memoryview
    length: int
    stride: int


def address_of(memory: memoryview) -> int:
    """Where the bytes stand in memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def rows_of(columns: Sequence[Column], count: int) -> list[memoryview]:
    """The places of `count` rows, row by row."""
    return [c.memory[n * c.stride : n * c.stride + c.length] for n in range(count) for c in columns]


def read_columns(fd: int, columns: Sequence[Column], count: int, offset: int) -> int:
    """Read `count` rows that lie behind each other from `offset` on, each one part for every column.

    Returns:
        How many bytes were read; fewer than wanted where the file ends or as `preadv` pleases.

    Raises:
        OSError: as `os.preadv`.
    """
    assert all((count - 1) * column.stride + column.length <= len(column.memory) for column in columns)
    offsets = _offsets(tuple([(column.length, column.stride) for column in columns]), count)
    flat = (offsets + np.array([(address_of(column.memory), 0) for column in columns])).reshape(-1, 2)
    done = 0
    for begin in range(0, len(flat), _MOST):
        some = flat[begin : begin + _MOST]
        got = _preadv(fd, some, offset + done)
        done += got
        if begin + _MOST < len(flat) and got < some[:, 1].sum():
            break
    return done


@lru_cache(32)
def _offsets(columns: tuple[tuple[int, int], ...], count: int) -> npt.NDArray[np.int64]:
    """For each row and column (length, stride): offset in the column's memory, and length."""
    places = np.empty((count, len(columns), 2), np.int64)
    for at, (length, stride) in enumerate(columns):
        places[:, at, 0] = np.arange(count) * stride
        places[:, at, 1] = length
    return places


def _preadv(fd: int, places: npt.NDArray[np.int64], offset: int) -> int:
    first = places.__array_interface__["data"][0]
    while True:
        got: int = _function()(fd, first, len(places), offset)
        if got >= 0:
            return got
        if (number := ctypes.get_errno()) != errno.EINTR:
            raise OSError(number, os.strerror(number))


@cache
def _function() -> Any:
    """`preadv` of the C library, which lets other threads run."""
    function = ctypes.CDLL(None, use_errno=True).preadv
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
    function.restype = ctypes.c_ssize_t
    return function
