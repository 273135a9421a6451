"""What the operating system can be asked for about files, memory and processors. Linux knows all of it, other systems a
part: there, nothing is advised, room is not promised, memory is unknown, and all processors count."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal

__all__ = ["advise", "available_memory", "cores", "reserve"]


def advise(fd: int, offset: int, length: int, what: Literal["WILLNEED", "DONTNEED", "SEQUENTIAL"]) -> None:
    """Say what will happen to a range of a file (length 0: to its end), see posix_fadvise(2). Raises `OSError`."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, getattr(os, f"POSIX_FADV_{what}"))


def reserve(fd: int, size: int) -> None:
    """Give a new file its size, with room on the disk where the file system can promise that.

    Raises:
        OSError: there is no room, or no right to it.
    """
    if not hasattr(os, "posix_fallocate"):
        os.ftruncate(fd, size)
        return
    try:
        if size:
            os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.ftruncate(fd, size)


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that the system could give out without swapping; 0 where it does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("MemAvailable")), 0)
