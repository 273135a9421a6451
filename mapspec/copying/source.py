"""Reading source files: few open at a time, every byte that was asked for or an exception that says why not."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Note

__all__ = ["ReadProblem", "SourceFiles"]

_MOST_OPEN = 64


class ReadProblem(Exception):  # noqa: N818
    """A source file did not give its bytes. The engine turns it into a finding that names the tensor."""

    def __init__(self, file: str, offset: int, what: str) -> None:
        super().__init__(file, offset, what)
        self.file, self.offset, self.what = file, offset, what

    def finding(self, root: Path, doing: str, help: str) -> Diagnostic:
        """The finding (MS703) for a file below `root`; `doing` says what its bytes were needed for."""
        return Diagnostic(
            "MS703", f"`{self.file}` {self.what}", where=str(root / self.file), notes=(Note(doing),), help=help
        )


class SourceFiles:
    """The files below `root`, opened when needed; the least recently used is closed first. For one thread.

    Args:
        root: folder of the source checkpoint.
        sharers: how many such objects the process uses at once, which bounds what each may keep open.
    """

    __slots__ = ("_most", "_open", "_root")

    def __init__(self, root: Path, sharers: int = 1) -> None:
        self._root = root
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = _MOST_OPEN if soft == resource.RLIM_INFINITY else soft // (4 * sharers)
        self._most = max(1, min(_MOST_OPEN, allowed))
        self._open: OrderedDict[str, int] = OrderedDict()

    def read_into(self, view: memoryview, file: str, offset: int) -> None:
        """Fill `view` (bytes) with what stands in `file` from `offset` on. Raises `ReadProblem`."""
        fd = self._fd(file, offset)
        while len(view):
            try:
                got = os.preadv(fd, [view], offset)
            except OSError as error:
                raise ReadProblem(file, offset, f"could not be read: {error.strerror}") from error
            if got == 0:
                size = os.fstat(fd).st_size
                raise ReadProblem(file, offset, f"ends at byte {size}, but byte {offset} is needed")
            offset += got
            view = view[got:]

    def _fd(self, file: str, offset: int) -> int:
        fd = self._open.get(file)
        if fd is not None:
            if len(self._open) > 1:
                self._open.move_to_end(file)
            return fd
        while True:
            while len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            try:
                fd = os.open(self._root / file, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._open:
                    self._most = max(1, len(self._open) // 2)
                    continue
                raise ReadProblem(file, offset, f"could not be opened: {error.strerror}") from error
        self._open[file] = fd
        return fd

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1])
