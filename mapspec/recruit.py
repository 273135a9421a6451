"""Whether a conversion's workers are processes, and making them before anything large is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from stat import S_ISREG

from mapspec.copy import Task, work
from mapspec.crew import Crew, Processes, can_fork
from mapspec.io.filesystem import access_to, with_changes
from mapspec.io.remote import RemotePath, located
from mapspec.memory import processes_within
from mapspec.outputs import Output
from mapspec.prepare import Request

__all__ = ["recruited"]

# Bytes for each worker from which on it pays to make a process of it, which takes some milliseconds.
_APART = 32 << 20


@contextmanager
def recruited(request: Request, output: Output) -> Iterator[Crew[Task] | None]:
    """A crew of processes, gone at the end; `None` where threads do: for little data, for one worker, and for object
    stores, whose connections cannot be shared with forked processes.

    Raises:
        MapspecError: as `located` and `with_changes`; MS708 where no process can be made.
    """
    source, reference = located(request.source), located(request.reference or "")
    count = 1
    if can_fork() and not any(isinstance(path, RemotePath) for path in (source, reference, output.destination)):
        there = access_to(output.destination).threads
        count = output.threads or max(with_changes(access_to(source), request.io).threads, there)
        count = processes_within(count, output.max_memory)
    if count > 1:
        count = min(count, _bytes_below(source) // _APART)
    if count < 2:
        yield None
        return
    with Processes(work, count, "copy") as crew:
        yield crew


def _bytes_below(folder: Path) -> int:
    """Bytes of the files in a folder and in those right below it, where all weights are; each counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in chain(folder.glob("*"), folder.glob("*/*")):
        with suppress(OSError):
            status = path.stat()
            if S_ISREG(status.st_mode):
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
