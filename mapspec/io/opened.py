"""One open file of a checkpoint: every byte that was asked for, and what tells whether the file is still the same."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mapspec.diagnostics import Diagnostic, Note
from mapspec.io.filesystem import access_to
from mapspec.io.kernel import advise
from mapspec.io.remote import RemotePath
from mapspec.io.stamp import Stamp

__all__ = ["OpenedFile", "Stamp", "changed", "opened"]

_SHOWN = 5


class OpenedFile(Protocol):
    """A file that is open for reading at any place; `stamp` was taken when it was opened."""

    stamp: Stamp

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; fewer only where the file ends. Raises `OSError`."""

    def warm(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Say which bytes will be read soon, as (first, the one after the last), by the first."""


class _LocalFile:
    __slots__ = ("_fd", "stamp")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.stamp = Stamp.of(os.fstat(fd))

    def read(self, offset: int, count: int) -> bytes:
        # The kernel may give less at a time than was asked for.
        data = os.pread(self._fd, count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]
        left = count - len(data)
        while left and (data := os.pread(self._fd, left, offset + count - left)):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def warm(self, ranges: Sequence[tuple[int, int]]) -> None:
        # One after the other, each would take the disk or the network a turn; thus it has many to choose from.
        size = self.stamp.nbytes
        for start, stop in _together((start, min(stop, size)) for start, stop in ranges if start < size):
            advise(self._fd, start, stop - start, "WILLNEED")


class _RemoteFile:
    __slots__ = ("_key", "_store", "stamp")

    def __init__(self, path: RemotePath) -> None:
        self._store, self._key = path.store, path.key
        self.stamp = path.stamp()

    def read(self, offset: int, count: int) -> bytes:
        return self._store.fetch(self._key, offset, max(0, min(count, self.stamp.nbytes - offset)))

    def warm(self, ranges: Sequence[tuple[int, int]]) -> None:
        size = self.stamp.nbytes
        self._store.warm([(self._key, start, min(stop, size)) for start, stop in ranges if start < size])


def _together(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same, those in one that lie within a page of each other."""
    first = end = 0
    for start, stop in ranges:
        if start > end + mmap.PAGESIZE:
            if end > first:
                yield first, end
            first = start
        end = max(end, stop)
    if end > first:
        yield first, end


@contextmanager
def opened(path: Path) -> Iterator[OpenedFile]:
    """Open a file for reading; links are followed. Raises `OSError`."""
    if isinstance(path, RemotePath):
        try:
            yield _RemoteFile(path)
        finally:
            path.store.cool(path.key)
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _LocalFile(fd)
    finally:
        os.close(fd)


def changed(root: Path, stamps: Mapping[str, Stamp]) -> Diagnostic | None:
    """What to say if files below `root` are not the ones that were stamped (MS707)."""
    notes = []
    loose = access_to(root).place == "user space"
    if isinstance(root, RemotePath):
        root.store.refresh()
    for file, before in stamps.items():
        try:
            path = root / file
            now = path.stamp() if isinstance(path, RemotePath) else Stamp.of(path.stat())
        except OSError as error:
            notes.append(Note(f"`{file}`: {error.strerror}"))
            continue
        if (what := before.difference(now.loosely(before) if loose else now)) is not None:
            notes.append(Note(f"`{file}`: {what}"))
    if not notes:
        return None
    more = [Note(f"and {len(notes) - _SHOWN} more")] if len(notes) > _SHOWN else []
    files = "a file" if len(notes) == 1 else f"{len(notes):,} files"
    return Diagnostic(
        "MS707",
        f"{files} of the source changed while being read",
        where=str(root),
        notes=(*notes[:_SHOWN], *more),
        help="wait until nothing writes to the source any more, then start again",
    )
