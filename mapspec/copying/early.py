"""Having the disk read while there is nothing to copy yet: imports and planning take a second, in which it would idle.

What is read stays in the page cache, where the copy finds it. A source that is there already costs nothing. A process
of its own does it: a thread would wait for the interpreter between two reads, which is busy just then.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from mapspec.crew import Post, Processes, can_fork
from mapspec.errors import ConvertError
from mapspec.io.kernel import advise, available_memory

__all__ = ["reading_early"]

# Python's modules come from a disk, too, often the same one: each of their reads waits for one of these at most.
_STEP = 1 << 20
# Of the memory that is available, so that nothing that others need soon leaves the cache.
_PART = 8


def reading_early(source: Path) -> ExitStack:
    """Begin to read the data files of a checkpoint, one after the other; leaving the context ends it.

    What goes wrong is nothing to it: who needs the bytes will be told.

    Args:
        source: folder of a checkpoint, or above that of its only iteration: which of several is meant is found out
            later, and nothing is read of them.
    """
    stack = ExitStack()
    if can_fork():
        with suppress(ConvertError):
            stack.enter_context(Processes[None](partial(_read, source), 1, "reading early"))
    return stack


def _read(source: Path, post: Post[None]) -> None:
    left = available_memory() // _PART
    with suppress(OSError):
        for path in _data_files(source):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe in its place is not waited for
            try:
                size = min(os.fstat(fd).st_size, left)
                left -= size
                _into_cache(fd, size, post)
            finally:
                os.close(fd)


def _into_cache(fd: int, size: int, post: Post[None]) -> None:
    for at in range(0, size, _STEP):
        if post.stopped:
            return
        end = min(at + _STEP, size)
        advise(fd, at, end - at, "WILLNEED")
        os.pread(fd, 1, end - 1)  # waits until it is there


def _data_files(source: Path) -> list[Path]:
    files = sorted([*source.glob("*.safetensors"), *source.glob("*.distcp")]) or sorted(source.glob("*/*.distcp"))
    return files if len({path.parent for path in files}) == 1 else []
