"""A job as a worker is to do it: numbers and few objects, in the order of the bytes of the destination.

The tables of a large checkpoint are hundreds of thousands of objects. A worker that is a process of its own would have
a copy of each that it looks at; a program is small, and is gone when its file is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter

from mapspec.copying.jobs import Job, joined
from mapspec.copying.pieces import BoxIndex, Run, pieces_of, runs_of, straight
from mapspec.fill import Fill
from mapspec.nogc import gc_paused
from mapspec.tensors import Box, StoredTensor

__all__ = ["Program", "Step", "compiled"]

type Step = Run | tuple[int, bytes] | list[Fill]
"""A run to be copied, with its offset in the destination file; bytes to be put at an offset; or chunks that have to be
gathered, together as they lie side by side in the same rows of a tensor: what is read for one serves the others."""

# Strided pieces with runs of at least this length are read run by run, shorter ones are gathered.
_SHORTEST_RUN = 1 << 16


@dataclass(frozen=True, slots=True)
class Program:
    """How to write a destination file, or a part of it.

    Attributes:
        file: relative to the checkpoint's folder.
        size: of the whole file in bytes.
        whole: whether this is all of it, and the file is still to be made.
        steps: what to do, by the offset of the first byte.
        spans: offset and length of each chunk, by offset.
    """

    file: str
    size: int
    whole: bool
    steps: tuple[Step, ...]
    spans: tuple[tuple[int, int], ...]


@gc_paused()
def compiled(job: Job, indexes: dict[int, tuple[StoredTensor, BoxIndex]]) -> Program:
    """The program of a job.

    Args:
        indexes: as in `pieces_of`.

    Raises:
        ConvertError: the chunks of a source tensor do not cover what is asked of them (MS706).
    """
    spans = tuple((fill.chunk.offset, fill.chunk.nbytes) for fill in job.fills)
    return Program(job.file, job.size, job.whole, tuple(_merged(_steps(job, indexes))), spans)


def _merged(steps: Iterator[Step]) -> Iterator[Step]:
    """The same with runs in one that follow on each other on both sides."""
    at, file, offset, length = nothing = (0, None, 0, 0)  # a run that may go on
    for step in steps:
        if isinstance(step, tuple) and len(step) == 4:
            if step[1] == file and at + length == step[0] and (file is None or offset + length == step[2]):
                length += step[3]
                continue
            if length:
                yield at, file, offset, length
            at, file, offset, length = step
            continue
        if length:
            yield at, file, offset, length
            at, file, offset, length = nothing
        yield step
    if length:
        yield at, file, offset, length


def _steps(job: Job, indexes: dict[int, tuple[StoredTensor, BoxIndex]]) -> Iterator[Step]:
    rows: dict[tuple[str, Box], list[Fill]] = {}  # of most jobs, nobody asks
    done: set[int] = set()  # offsets of chunks that came with an earlier one
    end = job.start
    framing: Iterator[tuple[int, bytes | Fill]] = ((one.offset, one.data) for one in joined(job.framing))
    chunks: Iterator[tuple[int, bytes | Fill]] = ((fill.chunk.offset, fill) for fill in job.fills)
    for offset, what in merge(framing, chunks, key=itemgetter(0)):
        _in_order(job.file, end, offset)
        if isinstance(what, bytes):
            end = offset + len(what)
            yield offset, what
            continue
        end = offset + what.chunk.nbytes
        if offset in done:
            continue
        runs = _runs(what, indexes)
        if runs is not None:
            yield from runs
            continue
        rows = rows or _by_rows(job.fills)
        group = [what]
        for other in rows[what.tensor.name, what.chunk.box[:1]]:
            waits = other.chunk.offset > offset and other.chunk.offset not in done
            if waits and _runs(other, indexes) is None:
                group.append(other)
                done.add(other.chunk.offset)
        yield group
    _in_order(job.file, end, job.end)


def _runs(fill: Fill, indexes: dict[int, tuple[StoredTensor, BoxIndex]]) -> list[Run] | None:
    """The runs that a chunk is copied by, by offset in the file; `None` where it has to be gathered."""
    if (run := straight(fill, indexes)) is not None:
        return [run]
    chunk = fill.chunk
    pieces = pieces_of(fill.tensor.name, chunk.box, fill.parts, indexes)
    runs = runs_of(pieces, chunk.box, fill.tensor.dtype, _SHORTEST_RUN)
    if runs is None:
        return None
    return [(chunk.offset + at, file, offset, length) for at, file, offset, length in runs]


def _by_rows(fills: Sequence[Fill]) -> dict[tuple[str, Box], list[Fill]]:
    """Chunks that lie side by side in the same rows of a tensor."""
    found: dict[tuple[str, Box], list[Fill]] = {}
    for fill in fills:
        found.setdefault((fill.tensor.name, fill.chunk.box[:1]), []).append(fill)
    return found


def _in_order(file: str, end: int, start: int) -> None:
    if start < end:
        raise AssertionError(f"layout of {file} writes byte {start} twice")
