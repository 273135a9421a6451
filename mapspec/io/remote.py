"""Folders in object stores and behind URLs, read as if they were local ones, with as few requests as will do.

fsspec does the talking; credentials, endpoints and retries are its settings (`AWS_*`, `FSSPEC_*`, its config files). A
folder is listed once, with sizes. `RemotePath` answers questions about files from that list, so that the readers of
checkpoints, which ask often, need no request for it; it holds small files in memory. Bytes of large files are asked for
by range.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path, PosixPath
from typing import Any, Self

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.stamp import Stamp

__all__ = ["RemotePath", "RemoteStore", "is_url", "located"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SMALL = 1 << 20  # files up to this size are kept once they have been read
_GAP = 1 << 16  # ranges that are nearer to each other are asked for together: a request costs more than 64 KiB do
_VERSIONS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "sha",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether the text names something by protocol (`s3://bucket/folder`)."""
    return isinstance(text, RemotePath) or (isinstance(text, str) and bool(_URL.match(text)))


def located(text: str | Path) -> Path:
    """The path that a user's text means: a `RemotePath` for a URL, `file://` and all else on this machine.

    Raises:
        CheckpointError: MS790 where a package for the protocol is not installed, MS791 where the URL makes no sense.
    """
    if isinstance(text, Path) or not _URL.match(text):
        return Path(text) if isinstance(text, str) else text
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    return RemoteStore(text).path()


class RemoteStore:
    """One folder behind a URL, and what has been asked of it so far.

    Attributes:
        protocol: `s3`, `gs`, `hf`, `https` and so on.
        requests: how many requests were made; several pages of one listing count once.
        nbytes: how many bytes they brought.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = url.partition("://")[0]
        self.fs, self._root = _open(self.url)
        self.requests = self.nbytes = 0
        self._listing: dict[str, Mapping[str, Any]] | None = None
        self._folders: set[str] = set()
        self._small: dict[str, bytes] = {}
        self._warm: dict[str, list[tuple[int, bytes]]] = {}
        self._lock = threading.Lock()

    def path(self) -> RemotePath:
        """The folder itself."""
        return RemotePath(self.url, store=self)

    def key(self, name: str) -> str:
        """What the store calls the file `name` of the folder."""
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def count(self, nbytes: int, requests: int = 1) -> None:
        """Take note of requests that were made."""
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes

    def listing(self) -> Mapping[str, Mapping[str, Any]]:
        """Every file below the folder by its name within it, with what the store says of it."""
        if self._listing is None:
            self.count(0)
            self.fs.invalidate_cache()  # instances are shared, and another part of the program may have asked before
            try:
                found = self.fs.find(self._root, detail=True)
            except FileNotFoundError:
                found = {}
            except Exception as error:
                raise _cannot_list(self.url, error) from error
            start = len(self.key(""))
            self._listing = {name[start:].strip("/"): info for name, info in found.items()}
            self._listing.pop("", None)
            for name in self._listing:
                while name := name.rpartition("/")[0]:
                    self._folders.add(name)
        return self._listing

    def refresh(self) -> None:
        """Forget the listing, so that the next question asks the store again."""
        self._listing = None
        self._folders.clear()

    def is_folder(self, name: str) -> bool:
        """Whether files lie below it."""
        listing = self.listing()
        return name in self._folders or (not name and bool(listing))

    def stamp(self, name: str) -> Stamp:
        """Size and version of a file. Raises `FileNotFoundError`."""
        info = self.listing().get(name)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", f"{self.url}/{name}")
        if info.get("size") is None:  # listings of web servers have no sizes
            self.count(0)
            info = {**info, **self.fs.info(self.key(name))}
            assert self._listing is not None
            self._listing[name] = info
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        return Stamp(int(info.get("size") or 0), version)

    def warm(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """Fetch ranges (name, first byte, the one after the last) that will be read soon, many at once.

        They are kept until `cool`. Near ones are asked for together.
        """
        wanted: list[tuple[str, int, int]] = []
        for name, start, stop in sorted(ranges):
            if wanted and wanted[-1][0] == name and start - wanted[-1][2] <= _GAP:
                wanted[-1] = (name, wanted[-1][1], max(stop, wanted[-1][2]))
            elif stop > start:
                wanted.append((name, start, stop))
        names, starts, stops = ([one[at] for one in wanted] for at in range(3))
        try:
            parts = self.fs.cat_ranges([self.key(str(name)) for name in names], starts, stops)
        except Exception as error:
            raise _as_os_error(error) from error
        self.count(sum(map(len, parts)), len(parts))
        for (name, start, _), part in zip(wanted, parts, strict=True):
            self._warm.setdefault(name, []).append((start, part))

    def cool(self, name: str) -> None:
        """Forget what `warm` has kept of a file."""
        self._warm.pop(name, None)

    def fetch(self, name: str, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer only where the file ends.

        Raises:
            OSError: the store does not give them.
        """
        for start, part in self._warm.get(name, ()):
            if start <= offset and offset + count <= start + len(part):
                return part[offset - start : offset - start + count]
        if not count:
            return b""
        parts: list[bytes] = []
        got = 0
        while got < count:
            try:
                data: bytes = self.fs.cat_file(self.key(name), start=offset + got, end=offset + count)
            except Exception as error:
                raise _as_os_error(error) from error
            self.count(len(data))
            if len(data) > count - got:
                raise OSError(errno.EIO, f"the server gave {len(data):,} bytes where {count - got:,} were asked for")
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def read(self, name: str) -> bytes:
        """A whole file. Raises `OSError`."""
        if name in self._small:
            return self._small[name]
        size = self.stamp(name).nbytes
        data = self.fetch(name, 0, size)
        if len(data) != size:
            raise OSError(errno.EIO, f"has {size:,} bytes, but only {len(data):,} came")
        if size <= _SMALL:
            self._small[name] = data
        return data


class RemotePath(PosixPath):
    """A file or folder of a `RemoteStore`, with what the readers of checkpoints ask of a path.

    It stands where a `Path` does, but no call of the operating system takes it.
    """

    __slots__ = ("store",)

    def __init__(self, *segments: str | os.PathLike[str], store: RemoteStore) -> None:
        super().__init__(*(str(segment) for segment in segments))
        self.store = store

    def __new__(cls, *segments: str | os.PathLike[str], store: RemoteStore) -> Self:
        return super().__new__(cls, *segments)

    def with_segments(self, *pathsegments: str | os.PathLike[str]) -> Self:
        return type(self)(*pathsegments, store=self.store)

    def __str__(self) -> str:
        text = super().__str__()
        start = f"{self.store.protocol}:/"
        return f"{start}/{text[len(start) :].lstrip('/')}" if text.startswith(start) else text

    def __reduce__(self) -> Any:
        return located, (str(self),)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not a file of this machine")

    @property
    def key(self) -> str:
        """Its name within the store's folder; empty for the folder itself."""
        return str(self)[len(self.store.url) :].strip("/")

    def stamp(self) -> Stamp:
        """Size and version. Raises `FileNotFoundError`."""
        return self.store.stamp(self.key)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.store.is_folder(self.key):
            return os.stat_result((stat.S_IFDIR, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, self.stamp().nbytes, 0, 0, 0))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.key in self.store.listing()

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self.store.is_folder(self.key)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def resolve(self, strict: bool = False) -> Self:
        return self

    def read_bytes(self) -> bytes:
        return self.store.read(self.key)

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def iterdir(self) -> Generator[Self]:
        start = f"{self.key}/" if self.key else ""
        names = {name[len(start) :].partition("/")[0] for name in self.store.listing() if name.startswith(start)}
        for name in sorted(names):
            yield self / name

    def glob(self, pattern: str, **_: Any) -> Generator[Self]:
        """Files and folders that match, part by part; there is no `**`."""
        first, slash, rest = pattern.partition("/")
        assert first != "**"
        for below in self.iterdir():
            if fnmatch.fnmatchcase(below.name, first):
                yield from below.glob(rest) if slash else (below,)

    def walk(self, *_: Any, **__: Any) -> Iterator[tuple[Self, list[str], list[str]]]:
        folders = sorted(path.name for path in self.iterdir() if path.is_dir())
        yield self, folders, sorted(path.name for path in self.iterdir() if path.is_file())
        for name in folders:
            yield from (self / name).walk()


def _open(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    help_ = f'pip install "mapspec[remote]", and the package of fsspec for `{protocol}`, for example s3fs or gcsfs'
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        message = f"reading `{protocol}://` is done by fsspec, which is not installed"
        raise CheckpointError(Diagnostic("MS790", message, where=url, help=help_)) from None
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        message = f"the package for `{protocol}://` is not installed: {error}"
        raise CheckpointError(Diagnostic("MS790", message, where=url, help=help_)) from None
    except Exception as error:
        message = f"the URL cannot be opened: {error}"
        help_ = "check protocol, bucket and folder; fsspec lists the protocols it knows"
        raise CheckpointError(Diagnostic("MS791", message, where=url, help=help_)) from error
    return fs, str(root)


def _cannot_list(url: str, error: Exception) -> CheckpointError:
    message = f"the folder cannot be listed: {_what(error)}"
    help_ = "check the URL, the credentials and the network; see the documentation of fsspec for its settings"
    return CheckpointError(Diagnostic("MS792", message, where=url, help=help_))


def _as_os_error(error: Exception) -> OSError:
    if isinstance(error, OSError) and error.strerror:
        return error
    return OSError(errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO, _what(error))


def _what(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
