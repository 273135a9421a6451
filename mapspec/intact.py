"""`mapspec verify DIR`: is a checkpoint still what was written? Its certificate against one read of every file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapspec.certificate import Certificate, FileRecord, read_certificate
from mapspec.collapse import collapse
from mapspec.copying.ahead import Ahead
from mapspec.copying.alignment import pages
from mapspec.copying.digests import Digester
from mapspec.crew import Post, Tally, Threads
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.filesystem import access_to
from mapspec.io.kernel import advise
from mapspec.io.remote import RemotePath, located
from mapspec.io.torch_dist import TRACKER
from mapspec.progress import NoProgress, Progress
from mapspec.sources import MANIFEST

__all__ = ["Checked", "check_intact"]

_BLOCK = 1 << 20
_NAMED = 10


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        folder: where the certificate lies.
        certificate: what was promised.
        tensors, files, nbytes: how many were checked; bytes of all files.
        findings: what is no longer as it was written; empty if nothing.
    """

    folder: Path
    certificate: Certificate
    tensors: int
    files: int
    nbytes: int
    findings: tuple[Diagnostic, ...]


def check_intact(path: Path | str, *, threads: int | None = None, progress: Progress | None = None) -> Checked:
    """Check a checkpoint that mapspec wrote. Every byte is read once, in bounded memory.

    Args:
        path: folder of the checkpoint; for Megatron-Core the iteration's folder or the one above.
        threads: readers; by default as many as the file system is read best with.
        progress: told after every block.

    Raises:
        CheckpointError: there is no certificate (MS730), or it is damaged (MS731).
    """
    path = located(path)
    home = _home(path)
    certificate = read_certificate(home / MANIFEST)
    todo = {home / name: record for name, record in certificate.files.items()}
    if home != path:
        todo |= {path / name: record for name, record in certificate.above.items()}
    findings = _Readers(todo, progress or NoProgress()).run(threads or access_to(path).threads)
    findings += [_extra(home, name) for name in _unknown(home, certificate)]
    tensors = {chunk[0] for record in todo.values() for chunk in record.chunks}
    nbytes = sum(record.size for record in todo.values())
    ordered = tuple(sorted(findings, key=Diagnostic.sort_key))
    return Checked(home, certificate, len(tensors), len(todo), nbytes, ordered)


def _home(path: Path) -> Path:
    """The folder with the certificate: `path` itself, or an iteration's folder below it."""
    if (path / MANIFEST).is_file():
        return path
    below = sorted(p.parent for p in path.glob(f"*/{MANIFEST}") if p.parent.name.startswith(("iter_", "release")))
    if len(below) > 1 and (path / TRACKER).is_file():
        text = (path / TRACKER).read_bytes()[:64].decode("utf-8", "replace").strip()
        below = [folder for folder in below if folder.name in (text, f"iter_{text:0>7}")] or below
    if len(below) == 1:
        return below[0]
    message = f"there is no `{MANIFEST}`, so nothing says what this checkpoint has to be"
    help_ = "only what mapspec wrote can be verified alone; compare it with another: `mapspec verify A B`"
    if below:
        message = f"there are several: {', '.join(f'`{folder.name}`' for folder in below)}"
        help_ = f"name one of them, for example {below[-1]}"
    raise CheckpointError(Diagnostic("MS730", message, where=str(path), help=help_))


def _unknown(home: Path, certificate: Certificate) -> Iterator[str]:
    """Files that the certificate does not know. Hidden ones are not looked at: no loader reads them."""
    for folder, below, files in home.walk():
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__pycache__")
        for name in sorted(files):
            relative = (folder / name).relative_to(home).as_posix()
            if not name.startswith(".") and relative not in certificate.files and relative != MANIFEST:
                yield relative


def _extra(home: Path, name: str) -> Diagnostic:
    help_ = "move it elsewhere; if another tool wrote this folder anew, its certificate no longer applies"
    return Diagnostic(
        "MS737", "the file was not there when the checkpoint was written", where=str(home / name), help=help_
    )


class _Readers:
    """Threads that each read one file after the other, the largest first."""

    def __init__(self, todo: dict[Path, FileRecord], progress: Progress) -> None:
        self._todo = sorted(todo.items(), key=lambda item: -item[1].size)
        self._progress = progress
        self._findings: list[Diagnostic] = []

    def run(self, count: int) -> list[Diagnostic]:
        self._progress.start(sum(record.size for _, record in self._todo))
        try:
            Threads(_work, "mapspec-verify").run(self._todo, count, self._hear)
        finally:
            self._progress.finish()
        return self._findings

    def _hear(self, message: tuple[str, int] | list[Diagnostic]) -> None:
        if isinstance(message, tuple):
            self._progress.advance(message[1], message[0])
        else:
            self._findings += message


type _Task = tuple[Path, FileRecord]


def _work(post: Post[_Task]) -> None:
    buffer, tally = pages(_BLOCK), Tally(post)
    for path, record in post.jobs():
        post.tell(list(_check(path, record, buffer, tally.add)))
        tally.flush()


def _check(
    path: Path, record: FileRecord, buffer: memoryview, read: Callable[[str, int], None]
) -> Iterator[Diagnostic]:
    """What is wrong with a file; `read` is called with its name and the number of bytes after each block."""
    digester = Digester([(offset, nbytes) for _, offset, nbytes, _ in record.chunks])
    size = 0
    try:
        for got in _blocks(path, buffer):
            digester.update(size, buffer[:got])
            size += got
            read(path.name, got)
    except FileNotFoundError:
        yield _missing(path, record)
    except OSError as error:
        message = f"the file could not be read: {error.strerror}"
        yield Diagnostic("MS739", message, where=str(path), help="check the disk, then verify again")
    else:
        yield from _compared(path, record, digester, size)


def _blocks(path: Path, buffer: memoryview) -> Iterator[int]:
    """Read a file through the buffer: after each block, how many bytes of it are there."""
    if isinstance(path, RemotePath):
        yield from _fetched(path, buffer)
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe in its place is not waited for
    try:
        advise(fd, 0, 0, "SEQUENTIAL")
        at = 0
        while got := os.preadv(fd, [buffer], at):
            yield got
            at += got
    finally:
        os.close(fd)


def _fetched(path: RemotePath, buffer: memoryview) -> Iterator[int]:
    access = access_to(path)
    ahead = Ahead(access.read, access.ahead)
    size, at = path.stamp().nbytes, 0
    ahead.expect(path, 0, size)
    try:
        while at < size and (got := ahead.read_into(buffer[: size - at], path, at)):
            yield got
            at += got
    finally:
        ahead.close()


def _compared(path: Path, record: FileRecord, digester: Digester, size: int) -> Iterator[Diagnostic]:
    """What a file that has been read says against its record."""
    where = str(path)
    seen, rest = digester.so_far()
    if not record.chunks:
        if rest != record.rest:
            sizes = f": it has {size:,} bytes instead of {record.size:,}" if size != record.size else ""
            help_ = "restore it from where the checkpoint came from, or convert again"
            yield Diagnostic("MS738", f"the file is not as it was written{sizes}", where=where, help=help_)
        return
    lost = [chunk for chunk in record.chunks if chunk[1] + chunk[2] > size]
    changed = [c for c, hex_ in zip(record.chunks, seen, strict=True) if c[1] + c[2] <= size and hex_ != c[3]]
    if changed and len(lost) + len(changed) == len(record.chunks) > 1 and rest != record.rest:
        held = _tensors(record.chunks)
        message = f"the certificate no longer applies to this file: of the {held} that it held, none is in its place"
        help_ = "another tool has written it, or two files were exchanged; restore it, or convert again"
        yield Diagnostic("MS735", message, where=where, help=help_)
        return
    if size < record.size:
        gone = f"; lost: {_named(lost)}" if lost else ""
        yield Diagnostic("MS734", f"the file has {size:,} of its {record.size:,} bytes{gone}", where=where, help=_AGAIN)
    yield from _changed(where, changed)
    if size > record.size:
        message = f"the file has {size:,} bytes instead of {record.size:,}"
        yield Diagnostic("MS734", message, where=where, help=_AGAIN)
    elif rest != record.rest and size == record.size:
        message = "the bytes around the tensors (header, framing) are not as they were written"
        yield Diagnostic("MS736", message, where=where, help=_AGAIN)


_AGAIN = "restore the file from a copy, or convert again"


def _changed(where: str, changed: Sequence[tuple[str, int, int, str]]) -> Iterator[Diagnostic]:
    if len(changed) > _NAMED:
        message = f"{_tensors(changed)} are not as they were written: {_named(changed)}"
        yield Diagnostic("MS732", message, where=where, help=_AGAIN)
        return
    for name, offset, nbytes, _ in changed:
        message = f"`{name}` is not as it was written (bytes {offset:,} to {offset + nbytes:,} of the file)"
        yield Diagnostic("MS732", message, where=where, help=_AGAIN)


def _missing(path: Path, record: FileRecord) -> Diagnostic:
    held = f"; it held {_named(record.chunks)}" if record.chunks else ""
    return Diagnostic("MS733", f"the file is gone{held}", where=str(path), help=_AGAIN)


def _tensors(chunks: Sequence[tuple[str, int, int, str]]) -> str:
    count = len({chunk[0] for chunk in chunks})
    return f"{count:,} tensor{'s' if count != 1 else ''}"


def _named(chunks: Sequence[tuple[str, int, int, str]]) -> str:
    """The tensors of chunks, as patterns."""
    patterns = [pattern for pattern, _ in collapse(list(dict.fromkeys(chunk[0] for chunk in chunks)))]
    more = f" and {len(patterns) - _NAMED} more" if len(patterns) > _NAMED else ""
    return ", ".join(f"`{pattern}`" for pattern in patterns[:_NAMED]) + more
