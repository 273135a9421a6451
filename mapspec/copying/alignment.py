"""How much memory a copying thread takes, and where in it bytes of a file stand so that the kernel copies them fast.

Reads and writes copy between a buffer and the page cache with `rep movsb`. On many processors of AMD and Intel that is
four to six times slower where the destination begins a little behind the source, as addresses within a page: 1 to 31
bytes where it was measured, up to 63 by glibc, whose memcpy steps around it (`Avoid_Short_Distance_REP_MOVSB`); the
kernel does not. The page cache holds a byte of a file at its offset within a page, so the distance is known
beforehand, and buffers can be placed.
"""

from __future__ import annotations

import mmap

__all__ = ["PAGE", "SCRATCH_BYTES", "STAGE", "pages", "place", "slow"]

PAGE = 4096
# Source bytes that a thread holds at once where it cannot read them to where they belong.
STAGE = 4 << 20
# What one thread takes at most: the block, the staging memory and what numpy makes on the way; values before a cast.
SCRATCH_BYTES = {"gather": 3 * STAGE, "cast": 6 * STAGE}
_NEAR = 64
# Farther from each other than what is too near, so that a source and a target together leave one of them.
_PLACES = (0, PAGE // 2, PAGE // 4)


def slow(source: int, target: int) -> bool:
    """Whether copying from `source` to `target`, addresses or offsets in a file, is one of the slow cases."""
    return 0 < (target - source) % PAGE < _NEAR


def place(source: int | None = None, target: int | None = None) -> int:
    """Where in a page to put bytes that are read from offset `source` of a file and written to `target` of another."""
    for at in _PLACES:
        if (source is None or not slow(source, at)) and (target is None or not slow(at, target)):
            return at
    raise AssertionError("two distances cannot rule out three places")


def pages(nbytes: int) -> memoryview:
    """Memory that begins with a page, and is not there before it is used."""
    return memoryview(mmap.mmap(-1, nbytes))
