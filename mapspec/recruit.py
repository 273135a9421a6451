"""Whether a conversion's workers are processes, and making them before anything large is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
        count = min(processes_within(count, output.max_memory), _bytes_below(source) // _APART)
    if count < 2:
        yield None
        return
    with Processes(work, count, "copy") as crew:
        yield crew


def _bytes_below(folder: Path) -> int:
    total = 0
    for where, _, files in folder.walk(follow_symlinks=True) if folder.is_dir() else ():
        for name in files:
            with suppress(OSError):
                total += (where / name).stat().st_size
    return total
