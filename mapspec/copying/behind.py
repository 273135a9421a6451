"""Having the disk write while more is copied, and leaving no trace in the page cache where that would do harm.

By itself the kernel waits until a tenth of the memory is to be written, or somebody asks for a file to be on disk:
until then the disk idles, and then everybody waits for it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

from mapspec.io.kernel import advise, available_memory

__all__ = ["Behind", "crowded"]

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
# Bytes that the disk is told of at once.
_RUN = 16 << 20


class Behind:
    """Follows the writes to one file that shall be on disk in the end. For one thread.

    Args:
        fd: the file.
        drop: whether pages leave the cache once they are on disk, but for the last ones. This is for copies that would
            push everything else out of it; else whoever reads the result next finds it there.
    """

    def __init__(self, fd: int, drop: bool) -> None:
        self._fd, self._drop = fd, drop
        self._before: tuple[int, int] | None = None  # offset and length of the run that the disk was told of last
        self._begin()

    def _begin(self) -> None:
        self._low, self._high, self._nbytes = sys.maxsize, 0, 0

    def wrote(self, offset: int, nbytes: int) -> None:
        """These bytes have just been written; a run may lie in several places of the file."""
        self._low, self._high = min(self._low, offset), max(self._high, offset + nbytes)
        self._nbytes += nbytes
        if self._nbytes >= _RUN:
            if (start := _starter()) is not None:
                self._tell(start, (self._low, self._high - self._low))
            self._begin()

    def _tell(self, start: Callable[[int, int, int, int], int], run: tuple[int, int]) -> None:
        start(self._fd, *run, _WRITE)
        if self._drop:
            if self._before is not None:
                start(self._fd, *self._before, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
                advise(self._fd, *self._before, "DONTNEED")
            self._before = run


def crowded(nbytes: int) -> bool:
    """Whether `nbytes` that pass through the page cache would push most other things out of it."""
    available = available_memory()
    return available > 0 and nbytes > available // 2


@cache
def _starter() -> Callable[[int, int, int, int], int] | None:
    """`sync_file_range` of the C library, which lets other threads run; `None` where there is none. It only advises
    here, so what it returns does not matter: the final fsync reports what goes wrong."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function
