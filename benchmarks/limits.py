"""What the machine itself needs: the bytes of a checkpoint moved without a thought, and its disk read and written.

Called by once.py. A converter that is much slower leaves something to be gained; none can be much faster.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["bare", "disk_reads", "disk_writes"]

_BLOCK = 1 << 20
_WORKERS = 2
# Requests at a time that gave the most; a single one leaves a fifth.
_READERS, _WRITERS = 4, 4


def bare(source: Path, target: Path, fsync: bool) -> Callable[[], None]:
    """Two processes that copy whole files in blocks of 1 MiB, and look at nothing: no digests, no chunks."""
    files = _data_files(source)

    def copy(worker: int) -> None:
        view = memoryview(mmap.mmap(-1, _BLOCK))
        for path in files[worker::_WORKERS]:
            size = path.stat().st_size
            read, write = os.open(path, os.O_RDONLY), os.open(target / path.name, os.O_WRONLY | os.O_CREAT)
            os.posix_fallocate(write, 0, size)
            for at in range(0, size, _BLOCK):
                some = view[: min(_BLOCK, size - at)]
                os.preadv(read, [some], at)
                os.pwrite(write, some, at)
            if fsync:
                os.fsync(write)
            os.close(read)
            os.close(write)

    def run() -> None:
        target.mkdir()
        _together(copy, _WORKERS)

    return run


def disk_reads(source: Path, target: Path, fsync: bool) -> Callable[[], None]:
    """Every block of the source, past the page cache."""
    blocks = [(path, at) for path in _data_files(source) for at in range(0, path.stat().st_size, _BLOCK)]

    def read(worker: int) -> None:
        view, path, fd = memoryview(mmap.mmap(-1, _BLOCK)), Path(), -1
        for wanted, at in _part(blocks, worker, _READERS):
            if wanted != path:
                path, fd = wanted, os.open(wanted, os.O_RDONLY | os.O_DIRECT)
            os.preadv(fd, [view], at)

    return lambda: _together(read, _READERS)


def disk_writes(source: Path, target: Path, fsync: bool) -> Callable[[], None]:
    """As many bytes as the source has, past the page cache, into new files."""
    each = sum(path.stat().st_size for path in _data_files(source)) // _WRITERS // _BLOCK * _BLOCK

    def write(worker: int) -> None:
        view = memoryview(mmap.mmap(-1, _BLOCK))
        view[:] = os.urandom(_BLOCK)
        fd = os.open(target / str(worker), os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(fd, 0, each)
        for at in range(0, each, _BLOCK):
            os.pwrite(fd, view, at)
        os.fsync(fd)

    def run() -> None:
        target.mkdir()
        _together(write, _WRITERS)

    return run


def _data_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.distcp")])


def _part[T](items: list[T], worker: int, count: int) -> Iterator[T]:
    yield from items[worker * len(items) // count : (worker + 1) * len(items) // count]


def _together(work: Callable[[int], None], count: int) -> None:
    processes = []
    for worker in range(count):
        if (process := os.fork()) == 0:
            code = 1
            try:
                work(worker)
                code = 0
            finally:
                os._exit(code)
        processes.append(process)
    assert all(os.waitpid(process, 0)[1] == 0 for process in processes)
