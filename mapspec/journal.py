"""What of a conversion is finished, on disk, so that a later run can go on where this one was cut off.

Beside the `checkpoint` folder that is being filled lies `journal` with a file of JSON lines for each process and run.
Its first line says what is being made, the others name a finished file each, with size and digests. A line is written
after the file that it names is on disk, and a finished file is touched again only after a line that says so; so
whatever happens, a file with a line is complete. A last line that was cut off counts for nothing.

A journal is locked (`flock`) for as long as its process lives: the kernel gives the lock up when the process ends,
however it ends. On NFS the lock holds across hosts. On a file system without locks (some Lustre mounts) the journal
says so, and whoever wants to go on looks for the process that is named in it; that works on its own host only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.copying.digests import Digest, FileDone
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.io.unwritable import write_problem
from mapspec.publish import sync

__all__ = ["FORMAT_VERSION", "Journal", "Leftover", "finished_in", "take"]

FORMAT_VERSION = 1

_FOLDER = "journal"
_RELEASED = "released"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Journal:
    """The journal of one process. Appends from one thread at a time.

    Args:
        partial: the hidden folder, see `mapspec.publish`.
        run: how often this conversion was begun before; `rank`: which of the processes this is.
        header: what is being made, in JSON's types.
        fsync: whether finished files are on disk when they are added, and the lines shall be.

    Raises:
        ConvertError: it cannot be written (MS702, MS704), or another process has it (MS771).
    """

    def __init__(self, partial: Path, run: int, rank: int, header: Mapping[str, Any], *, fsync: bool = True) -> None:
        self._path = partial / _FOLDER / f"{run:04d}-{rank:05d}.jsonl"
        self._fsync = fsync
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConvertError(write_problem(error, self._path)) from error
        locked = _lock(self._fd)
        if locked is False:
            raise ConvertError(_held(partial, {}))
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid()), "locked": bool(locked)}
        self._add({"format_version": FORMAT_VERSION, "fsync": fsync, **owner, **header})
        if fsync:
            sync(self._path.parent)
            sync(partial)

    def add(self, done: FileDone) -> None:
        """A file is finished. Raises `ConvertError`."""
        self._add({
            "file": done.file, "size": done.size, "rest": done.rest,
            "digests": [[d.offset, d.nbytes, d.hex] for d in done.digests],
        })  # fmt: skip

    def again(self, file: str) -> None:
        """A file of an earlier run is not as it should be and will be written again. Raises `ConvertError`."""
        self._add({"again": file})

    def _add(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            if self._fsync:
                os.fsync(self._fd)
        except OSError as error:
            raise ConvertError(write_problem(error, self._path)) from error

    def close(self) -> None:
        """This process is at an end, well or badly: others may go on."""
        if self._fd < 0:
            return
        try:
            self._add({"closed": True})
        except ConvertError:
            pass  # only matters where there are no locks; there, too, the process can be looked for
        finally:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Leftover:
    """A hidden folder of an earlier run, taken over by this process.

    Attributes:
        path: the hidden folder.
        header: what was being made; `None` if not even that was written.
        finished: files that are complete, by name.
        synced: whether all of them were on disk before they were said to be complete.
        runs: how often the conversion was begun.
    """

    path: Path
    header: Mapping[str, Any] | None
    finished: Mapping[str, FileDone]
    synced: bool
    runs: int
    _held: Sequence[int]

    def release(self) -> None:
        """Let others have it."""
        for fd in self._held:
            os.close(fd)

    @property
    def nbytes(self) -> int:
        """Size of the finished files."""
        return sum(done.size for done in self.finished.values())


def take(partial: Path) -> Leftover:
    """Read the journals of a hidden folder and keep other processes from it, until `release` or the end of this one.

    Raises:
        ConvertError: a process is at work in it (MS771), it cannot be told (MS772), or it cannot be opened (MS704).
    """
    held: list[int] = []
    finished: dict[str, FileDone] = {}
    header: Mapping[str, Any] | None = None
    synced = True
    paths = sorted((partial / _FOLDER).glob("*.jsonl"))
    try:
        for path in paths:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            held.append(fd)
            locked = _lock(fd)
            lines = _lines(path)
            first = lines[0] if lines else {}
            if locked is False:
                raise ConvertError(_held(partial, first))
            if not (first.get("locked") or {"closed": True} in lines):
                _look_for(partial, first)
            if first.get("format_version") != FORMAT_VERSION:
                continue
            header = first
            synced = synced and bool(first.get("fsync"))
            _replay(lines[1:], finished)
    except BaseException as error:
        for fd in held:
            os.close(fd)
        if isinstance(error, OSError):
            raise ConvertError(write_problem(error, partial)) from error
        raise
    runs = 1 + max((int(path.name[:4]) for path in paths if path.name[:4].isdigit()), default=-1)
    return Leftover(partial, header, finished, synced, runs, tuple(held))


def finished_in(partial: Path) -> dict[str, FileDone]:
    """The files that the journals of a hidden folder call finished, whoever is at work in it."""
    finished: dict[str, FileDone] = {}
    for path in sorted((partial / _FOLDER).glob("*.jsonl")):
        _replay(_lines(path)[1:], finished)
    return finished


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that is no JSON object: nothing that follows one that was cut off can be relied on."""
    out = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        out.append(value)
    return out


def _replay(lines: Sequence[Mapping[str, Any]], finished: dict[str, FileDone]) -> None:
    for line in lines:
        if "again" in line:
            finished.pop(line["again"], None)
        elif "file" in line:
            digests = tuple(Digest(offset, nbytes, text) for offset, nbytes, text in line["digests"])
            finished[line["file"]] = FileDone(line["file"], line["size"], digests, line["rest"])


def _lock(fd: int) -> bool | None:
    """Whether this process has the lock now; `None` where the file system knows no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno == errno.EACCES:
            return False
        raise
    return True


def _look_for(partial: Path, owner: Mapping[str, Any]) -> None:
    """Make sure, without locks, that the process is gone."""
    if not owner or (partial / _FOLDER / _RELEASED).exists():
        return
    host, pid = owner.get("host"), int(owner.get("pid", 0))
    if host == socket.gethostname():
        if _began(pid) == owner.get("began") is not None:
            raise ConvertError(_held(partial, owner))
        return
    message = f"it cannot be told whether process {pid} on `{host}` is still at work: this file system has no locks"
    help_ = f"if it is over, run `touch {partial / _FOLDER / _RELEASED}` and convert again with --resume"
    raise ConvertError(Diagnostic("MS772", message, where=str(partial), help=help_))


def _began(pid: int) -> str | None:
    """When a process of this host began, in ticks since boot; with the number it names a process for good."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def _held(partial: Path, owner: Mapping[str, Any]) -> Diagnostic:
    who = f"process {owner['pid']} on `{owner['host']}`" if "host" in owner else "another process"
    help_ = "wait until it is over, or end it; then convert again with --resume"
    return Diagnostic("MS771", f"{who} is at work in this folder", where=str(partial), help=help_)
