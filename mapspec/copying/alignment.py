"""How much memory a copying thread takes, and where in it bytes of a file stand so that the kernel copies them fast.

Reads and writes copy between a buffer and the page cache with `rep movsb`. On many processors of AMD and Intel that is
four to six times slower where the destination begins a little behind the source, as addresses within a page: 1 to 31
bytes where it was measured, up to 63 by glibc, whose memcpy steps around it (`Avoid_Short_Distance_REP_MOVSB`); the
kernel does not. The page cache holds a byte of a file at its offset within a page, so the distance is known
beforehand, and buffers can be placed.
"""

from __future__ import annotations

import math
import mmap

__all__ = ["PAGE", "SCRATCH_BYTES", "STAGE", "pages", "period_of", "place", "slow"]

PAGE = 4096
# Source bytes that a thread holds at once where it cannot read them to where they belong.
STAGE = 4 << 20
# What one thread takes at most: the block, the staging memory and what numpy makes on the way; values before a cast.
SCRATCH_BYTES = {"gather": 3 * STAGE, "cast": 6 * STAGE}
_NEAR = 64
# At least as far from each other as what is too near, also within the shortest period that is looked at, so that a
# source and a target together leave one of them.
_PLACES = (0, PAGE // 2, PAGE // 4, _NEAR, 2 * _NEAR, 3 * _NEAR)
_SHORTEST_PERIOD = 2 * _NEAR


def slow(source: int, target: int, period: int | None = None) -> bool:
    """Whether copying from `source` to `target`, addresses or offsets in a file, is one of the slow cases.

    Args:
        period: for rows that stand at other distances on both sides, see `period_of`.
    """
    return 0 < (target - source) % (period or PAGE) < _NEAR


def period_of(source: int, target: int) -> int:
    """The distances of rows that come every `source` bytes and go every `target` bytes repeat modulo this number.

    Where it is so small that hardly any place would do, it is that of a single row: few of the others are slow then.
    """
    period = math.gcd(source - target, PAGE)
    return period if period >= _SHORTEST_PERIOD else PAGE


def place(source: int | None = None, target: int | None = None, period: int | None = None) -> int:
    """Where in a page to put bytes that are read from offset `source` of a file and written to `target` of another.

    Args:
        period: of what is read, see `slow`.
    """
    for at in _PLACES:
        if (source is None or not slow(source, at, period)) and (target is None or not slow(at, target)):
            return at
    raise AssertionError("two distances cannot rule out all places")


def pages(nbytes: int) -> memoryview:
    """Memory that begins with a page, and is not there before it is used."""
    return memoryview(mmap.mmap(-1, nbytes))
