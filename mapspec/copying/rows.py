"""Rows: runs of equal length at equal distances, read from one run of a file to where each of them belongs.

A weight cut by columns is such rows on one side. The kernel deals them out while it copies them from the page cache
(`preadv`), so they pass through memory once less than if they were read as they lie and moved then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from mapspec.copying.alignment import period_of, slow
from mapspec.copying.lane import Lane
from mapspec.copying.source import SourceFiles
from mapspec.copying.vectored import Column, address_of

__all__ = ["SHORTEST", "Rows", "collect", "deal", "side_by_side"]

# Shorter rows are moved in memory: the kernel takes longer to step from one to the next than to copy them.
SHORTEST = 512
# With a period below this, one row in eight or fewer is slow, which costs less than to move all of them in memory.
_RARELY = 512


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` runs of `length` bytes in `file`, the first at `start`, each `stride` bytes behind the one before."""

    file: str
    start: int
    stride: int
    length: int
    count: int


def side_by_side(slabs: Sequence[Rows | None]) -> list[Rows] | None:
    """The same rows if they lie behind each other and make up whole rows of the source; else `None`."""
    rows = [slab for slab in slabs if slab is not None]
    if len(rows) < 2 or len(rows) < len(slabs):
        return None
    first = rows[0]
    starts = accumulate((slab.length for slab in rows), initial=first.start)
    follows = all(
        (slab.file, slab.start, slab.stride, slab.count) == (first.file, start, first.stride, first.count)
        for slab, start in zip(rows, starts, strict=False)
    )
    return rows if follows and sum(slab.length for slab in rows) == first.stride else None


def deal(slabs: Sequence[tuple[int, Rows]], lanes: Sequence[Lane], files: SourceFiles) -> None:
    """Write rows that are `side_by_side`, each slab to its own place of the destination. Raises `ReadProblem`.

    Args:
        slabs: with the offset in the destination file where the slab begins.
        lanes: one for each slab, with room for one of its rows at least.
    """
    file, start, stride, count = slabs[0][1].file, slabs[0][1].start, slabs[0][1].stride, slabs[0][1].count
    step = min(lane.most // rows.length for lane, (_, rows) in zip(lanes, slabs, strict=True))
    for begin in range(0, count, step):
        taken = min(step, count - begin)
        columns = []
        for lane, (at, rows) in zip(lanes, slabs, strict=True):
            source, period = rows.start + begin * stride, period_of(stride, rows.length)
            room = lane.room(at + begin * rows.length, taken * rows.length, source, period)
            columns.append(Column(room, rows.length, rows.length))
        files.read_rows(columns, taken, file, start + begin * stride)
    for lane in lanes:
        lane.flush()


def collect(
    at: int, slabs: Sequence[tuple[int, Rows]], lane: Lane, files: SourceFiles, stage: Callable[[int, int], memoryview]
) -> None:
    """Write rows that are put together from slabs, each of which lies as one run in its file. Raises `ReadProblem`.

    Args:
        at: offset in the destination file where the first row begins.
        slabs: with the offset in the row where the slab's part begins.
        lane: has room for one row at least.
        stage: gives memory for bytes that would be slow to read to where they belong, see `Scratch.stage`.
    """
    stride, count = sum(rows.length for _, rows in slabs), slabs[0][1].count
    step = lane.most // stride
    for begin in range(0, count, step):
        taken = min(step, count - begin)
        room = lane.room(at + begin * stride, taken * stride)
        for offset, rows in slabs:
            start = rows.start + begin * rows.length
            period = period_of(rows.length, stride)
            if period >= _RARELY and slow(start, address_of(room) + offset, period):
                staged = stage(start, taken * rows.length)
                files.read_into(staged, rows.file, start)
                whole = np.frombuffer(room, np.uint8).reshape(taken, stride)
                whole[:, offset : offset + rows.length] = np.frombuffer(staged, np.uint8).reshape(taken, rows.length)
            else:
                files.read_rows([Column(room[offset:], rows.length, stride)], taken, rows.file, start)
    lane.flush()
