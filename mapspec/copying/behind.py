"""Having the disk write while more is copied, and leaving no trace in the page cache.

This is for copies that would push everything else out of the cache. For smaller ones the kernel's own write-back was
as fast when measured, and whoever reads the result next finds it in the cache.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["Behind", "crowded"]

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
_LAG = 16


class Behind:
    """Follows the writes to one file. For one thread.

    Args:
        fd: the file. Its pages leave the cache once they are on disk.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: deque[tuple[int, int]] = deque()

    def wrote(self, offset: int, nbytes: int) -> None:
        """These bytes have just been written: the disk may begin with them."""
        start = _starter()
        if start is None:
            return
        start(self._fd, offset, nbytes, _WRITE)
        self._waiting.append((offset, nbytes))
        if len(self._waiting) > _LAG:
            offset, nbytes = self._waiting.popleft()
            start(self._fd, offset, nbytes, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
            os.posix_fadvise(self._fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def crowded(nbytes: int) -> bool:
    """Whether `nbytes` that pass through the page cache would push most other things out of it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return False
    free = next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("MemAvailable")), nbytes)
    return nbytes > free // 2


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
