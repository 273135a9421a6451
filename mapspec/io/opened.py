"""One open file of a checkpoint: every byte that was asked for, and what tells whether the file is still the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Note

__all__ = ["LocalFile", "Stamp", "changed", "opened"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written or replaced.

    Attributes:
        nbytes: size of the file.
        version: time of the last change in nanoseconds.
        inode: device and number of the file, which another file of the same name does not have.
    """

    nbytes: int
    version: int | str
    inode: tuple[int, int]

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """The stamp of a local file."""
        return cls(stat.st_size, stat.st_mtime_ns, (stat.st_dev, stat.st_ino))


class LocalFile:
    """A file that is open for reading at any place."""

    __slots__ = ("_fd", "stamp")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.stamp = Stamp.of(os.fstat(fd))

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; fewer only where the file ends. The kernel may give less at a time."""
        data = os.pread(self._fd, count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]
        left = count - len(data)
        while left and (data := os.pread(self._fd, left, offset + count - left)):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


@contextmanager
def opened(path: Path) -> Iterator[LocalFile]:
    """Open a file for reading; links are followed. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield LocalFile(fd)
    finally:
        os.close(fd)


def changed(root: Path, stamps: Mapping[str, Stamp]) -> Diagnostic | None:
    """What to say if files below `root` are not the ones that were stamped (MS707)."""
    notes = []
    for file, before in stamps.items():
        try:
            now = Stamp.of((root / file).stat())
        except OSError as error:
            notes.append(Note(f"`{file}`: {error.strerror}"))
            continue
        if now != before:
            notes.append(Note(f"`{file}`: {_difference(before, now)}"))
    if not notes:
        return None
    more = [Note(f"and {len(notes) - _SHOWN} more")] if len(notes) > _SHOWN else []
    what = "a file" if len(notes) == 1 else f"{len(notes):,} files"
    return Diagnostic(
        "MS707",
        f"{what} of the source changed while being read",
        where=str(root),
        notes=(*notes[:_SHOWN], *more),
        help="wait until nothing writes to the source any more, then start again",
    )


def _difference(before: Stamp, now: Stamp) -> str:
    if before.nbytes != now.nbytes:
        return f"had {before.nbytes:,} bytes, has {now.nbytes:,}"
    return "was replaced by another file" if before.inode != now.inode else "was written to"
