"""Reading source files: few open at a time, every byte that was asked for or an exception that says why not."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mapspec.copying.ahead import Ahead
from mapspec.copying.vectored import Column, read_columns, rows_of
from mapspec.diagnostics import Diagnostic, Note
from mapspec.io.filesystem import Access, access_to
from mapspec.io.kernel import advise
from mapspec.io.remote import RemotePath, is_url, located

__all__ = ["ReadProblem", "SourceFiles"]

_MOST_OPEN = 64


class ReadProblem(Exception):  # noqa: N818
    """A source file did not give its bytes. The engine turns it into a finding that names the tensor."""

    def __init__(self, file: str, offset: int, what: str) -> None:
        super().__init__(file, offset, what)
        self.file, self.offset, self.what = file, offset, what
        self.wanted_by = ""  # the file that was being written

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
        access: how to read; by default what the file system of `root` is read best with.
    """

    __slots__ = ("_access", "_ahead", "_most", "_open", "_remote", "_root")

    def __init__(self, root: Path, sharers: int = 1, access: Access | None = None) -> None:
        self._root = root
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = _MOST_OPEN if soft == resource.RLIM_INFINITY else soft // (4 * sharers)
        self._most = max(1, min(_MOST_OPEN, allowed))
        self._open: OrderedDict[str, int] = OrderedDict()
        self._remote: dict[str, RemotePath] = {}
        self._access = access
        self._ahead: Ahead | None = None

    @property
    def access(self) -> Access:
        """How these files are read."""
        if self._access is None:
            self._access = access_to(self._root)
        return self._access

    @property
    def window(self) -> int:
        """How many bytes ahead `expect` is to be told of reads; 0 where that is of no use."""
        return self.access.read * self.access.ahead

    def expect(self, file: str, offset: int, length: int) -> None:
        """`length` bytes from `offset` on will be read, after everything that was expected before."""
        if (path := self._elsewhere(file)) is not None:
            self._asking().expect(path, offset, length)
        elif length:
            with suppress(ReadProblem, OSError):  # the read itself says what is wrong
                advise(self._fd(file, offset), offset, length, "WILLNEED")

    def read_into(self, view: memoryview, file: str, offset: int) -> None:
        """Fill `view` (bytes) with what stands in `file` from `offset` on. Raises `ReadProblem`."""
        path = None if file in self._open else self._elsewhere(file)
        fd = self._fd(file, offset) if path is None else -1
        while len(view):
            try:
                got = os.preadv(fd, [view], offset) if path is None else self._asking().read_into(view, path, offset)
            except OSError as error:
                raise ReadProblem(file, offset, f"could not be read: {error.strerror or error}") from error
            if got == 0:
                size = os.fstat(fd).st_size if path is None else path.stamp().nbytes
                raise ReadProblem(file, offset, f"ends at byte {size}, but byte {offset} is needed")
            if got == len(view):
                return
            offset += got
            view = view[got:]

    def read_rows(self, columns: Sequence[Column], count: int, file: str, offset: int) -> None:
        """Fill `count` rows of the columns with what stands in `file` from `offset` on, row by row.

        Raises `ReadProblem`.
        """
        got = 0
        if file in self._open or self._elsewhere(file) is None:
            try:
                got = read_columns(self._fd(file, offset), columns, count, offset)
            except OSError as error:
                raise ReadProblem(file, offset, f"could not be read: {error.strerror or error}") from error
            if got == count * sum(column.length for column in columns):
                return
        for view in rows_of(columns, count):  # after a short read, what is lacking
            if got < len(view):
                self.read_into(view[got:], file, offset + got)
            offset += len(view)
            got = max(0, got - len(view))

    def forget(self, file: str, offset: int, length: int) -> None:
        """These bytes have been read and are not needed again: the page cache may do without them."""
        if (fd := self._open.get(file)) is not None:
            advise(fd, offset, length, "DONTNEED")

    def _elsewhere(self, file: str) -> RemotePath | None:
        """The file as one that is not on this machine, or `None`. Files of the reference come as URL or full path."""
        if file in self._remote:
            return self._remote[file]
        path = located(file) if is_url(file) else self._root / file if not file.startswith("/") else None
        if isinstance(path, RemotePath):
            self._remote[file] = path
            return path
        return None

    def _asking(self) -> Ahead:
        if self._ahead is None:
            access = self.access if isinstance(self._root, RemotePath) else access_to(next(iter(self._remote.values())))
            self._ahead = Ahead(access.read, access.ahead)
        return self._ahead

    def _fd(self, file: str, offset: int) -> int:
        fd = self._open.get(file)
        if fd is not None:
            if len(self._open) > 1:
                self._open.move_to_end(file)
            return fd
        while True:
            self._close_oldest()
            try:
                fd = os.open(file if file.startswith("/") else self._root / file, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                if self.make_room(error):
                    continue
                raise ReadProblem(file, offset, f"could not be opened: {error.strerror}") from error
        self._open[file] = fd
        return fd

    def make_room(self, error: OSError) -> bool:
        """Where a file could not be opened for want of descriptors, keep fewer open from now on.

        Returns:
            Whether some were closed, so that it may be tried again.
        """
        if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
            return False
        self._most = max(1, len(self._open) // 2)
        self._close_oldest()
        return True

    def _close_oldest(self) -> None:
        """Close so many files that one more may be open."""
        while len(self._open) >= self._most:
            os.close(self._open.popitem(last=False)[1])

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._ahead is not None:
            self._ahead.close()
