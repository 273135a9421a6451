"""What a worker takes from the queue: a destination file, or a part of one where too few files are left for all."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from xxhash import xxh3_128

from mapspec.copying.digests import FileDone
from mapspec.fill import Fill
from mapspec.io.layout import Framing

__all__ = ["Job", "divided", "joined", "put_together"]

# Smaller parts are not worth two workers who wait for each other: writes to one file come one at a time.
_LEAST = 64 << 20
# How much longer than the mean a worker may be busy before a file is divided.
_UNEVEN = 1.02


@dataclass(frozen=True, slots=True)
class Job:
    """A destination file to be written: name, size in bytes, framing, and the fills of its chunks.

    Framing and fills are sorted by offset, and none of them is empty. A part of a file has those that lie between the
    bytes `start` and `stop`; then the file is there already, with its full size.
    """

    file: str
    size: int
    framing: tuple[Framing, ...]
    fills: tuple[Fill, ...]
    start: int = 0
    stop: int | None = None

    @property
    def whole(self) -> bool:
        """Whether this is all of the file."""
        return self.stop is None

    @property
    def end(self) -> int:
        """The byte behind the last one to be written."""
        return self.size if self.stop is None else self.stop


def divided(jobs: Sequence[Job], workers: int) -> list[Job]:
    """The same work, with files cut into a part for each worker where one would else be busy longer than the others.

    Args:
        jobs: whole files, the largest first.
    """
    found: list[Job] = []
    longest = _UNEVEN * sum(job.size for job in jobs) / workers
    loads = [0] * workers  # a heap: whoever has least takes the next
    for job in jobs:
        count = min(workers, job.size // _LEAST)
        parts = _parts(job, count) if loads[0] + job.size > longest and count > 1 else [job]
        for part in parts:
            heapq.heapreplace(loads, loads[0] + part.end - part.start)
        found += parts
    return found


def _parts(job: Job, count: int) -> list[Job]:
    """About equal parts of a file, at most `count`. Chunks side by side in the same rows of a tensor stay together."""
    cuts: list[tuple[int, int]] = [(0, 0)]  # number of fills before it, and offset
    for number, (fill, next_) in enumerate(zip(job.fills, job.fills[1:], strict=False), 1):
        end = fill.chunk.offset + fill.chunk.nbytes
        together = fill.tensor.name == next_.tensor.name and fill.chunk.box[:1] == next_.chunk.box[:1]
        if not together and len(cuts) < count and end * count >= len(cuts) * job.size:
            cuts.append((number, end))
    if len(cuts) == 1:
        return [job]
    cuts.append((len(job.fills), job.size))
    return [
        replace(
            job,
            framing=tuple(one for one in job.framing if start <= one.offset < stop),
            fills=job.fills[first:last],
            start=start,
            stop=stop,
        )
        for (first, start), (last, stop) in itertools.pairwise(cuts)
    ]


def put_together(parts: Sequence[FileDone], framing: Iterable[Framing]) -> FileDone:
    """What has come of a file whose parts are all written.

    Args:
        framing: of the whole file, by offset. These are all the bytes that belong to no chunk.
    """
    rest = xxh3_128()
    for one in framing:
        rest.update(one.data)
    digests = sorted((digest for part in parts for digest in part.digests), key=lambda digest: digest.offset)
    return replace(parts[0], digests=tuple(digests), rest=rest.hexdigest())


def joined(framing: Iterable[Framing]) -> Iterator[Framing]:
    """The same bytes; those that follow on each other, as the end of an item and the head of the next, in one.

    Equal ones are one object: items of one shape come by the thousand.
    """
    at, end, parts = 0, 0, list[bytes]()
    join = functools.cache(b"".join)
    for one in framing:
        if one.offset != end or not parts:
            if parts:
                yield Framing(at, join(tuple(parts)))
            at, parts = one.offset, []
        parts.append(one.data)
        end = one.offset + len(one.data)
    if parts:
        yield Framing(at, join(tuple(parts)))
