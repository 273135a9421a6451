"""A checkpoint in an object store: file by file, and last the files by which it is found.

Object stores rename nothing and write nothing at random places. A file is therefore made on this machine, sent as a
whole (fsspec sends large ones in parts, which become an object together or not at all), and removed here; so the disk
holds a few files at a time, not the checkpoint. The files that make readers take a folder for a checkpoint
(`config.json`; `.metadata` and the tracker) are sent last. After an error nothing of what was sent stays, as far as the
store lets us.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.io.remote import RemotePath, is_url

__all__ = ["Upload", "uploading"]

_SENDERS = 4
# Names by which a folder is known to hold a checkpoint, so that --overwrite removes checkpoints and nothing else.
_KNOWN = (".safetensors", ".safetensors.index.json", ".distcp", "config.json", ".metadata", "mapspec.json")


class Upload:
    """Files on their way to a store.

    Attributes:
        folder: where files are made before they are sent.
    """

    def __init__(self, folder: Path, target: RemotePath, replaced: Sequence[str]) -> None:
        self.folder = folder
        self._target, self._replaced = target, replaced
        self._pool = ThreadPoolExecutor(_SENDERS, thread_name_prefix="mapspec-upload")
        self._room = threading.Semaphore(_SENDERS)
        self._pending: list[Future[None]] = []
        self.sent: list[str] = []

    def ship(self, name: str) -> None:
        """Send a finished file of the folder and remove it here. Waits while enough files are on their way.

        Raises:
            ConvertError: MS795 where a file that was sent before did not arrive.
        """
        self._clear()
        self._room.acquire()
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        self._pending.append(self._pool.submit(self._send_and_free, name))
        for future in done:
            future.result()

    def rest(self, last: Sequence[str]) -> None:
        """Wait for what is on its way, then send all files that are left, those of `last` in their order at the end."""
        self._clear()
        for future in self._pending:
            future.result()
        left = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        for future in [self._pool.submit(self._send, name) for name in sorted(left - set(last))]:
            future.result()
        for name in last:
            self._send(name)

    def _clear(self) -> None:
        """Remove the checkpoint that is replaced, once, before anything is sent; first what makes it a checkpoint."""
        replaced, self._replaced = self._replaced, ()
        for name in sorted(replaced, key=lambda name: not name.endswith((".json", ".metadata", ".txt"))):
            try:
                self._target.store.fs.rm_file(self._target.store.key(name))
            except Exception as error:
                message = f"`{name}` cannot be replaced: {' '.join(str(error).split())}"
                help_ = "check what the credentials allow"
                raise ConvertError(Diagnostic("MS795", message, where=str(self._target), help=help_)) from error

    def close(self) -> None:
        """End the threads; what has not begun is not sent."""
        self._pool.shutdown(cancel_futures=True)

    def undo(self) -> None:
        """Remove what was sent, as far as the store lets us; the files that a reader looks for first."""
        for name in reversed(self.sent):
            with suppress(Exception):
                self._target.store.fs.rm_file(self._target.store.key(f"{self._target.key}/{name}".lstrip("/")))

    def _send_and_free(self, name: str) -> None:
        try:
            self._send(name)
        finally:
            self._room.release()

    def _send(self, name: str) -> None:
        store, path = self._target.store, self.folder / name
        key = store.key(f"{self._target.key}/{name}".lstrip("/"))
        size = path.stat().st_size
        try:
            try:
                store.fs.put_file(str(path), key)
            except FileNotFoundError:  # stores have no folders, but some of what fsspec knows does
                store.fs.makedirs(key.rpartition("/")[0], exist_ok=True)
                store.fs.put_file(str(path), key)
            self.sent.append(name)
            held = store.fs.info(key)["size"]
        except Exception as error:
            raise _lost(self._target / name, " ".join(str(error).split()) or type(error).__name__) from error
        if held != size:
            raise _lost(self._target / name, f"{held:,} of its {size:,} bytes arrived")
        store.count(size)
        path.unlink()


@contextmanager
def uploading(
    target: RemotePath, *, overwrite: bool = False, sources: Sequence[Path | str] = (), last: Sequence[str] = ()
) -> Iterator[Upload]:
    """Make files in `Upload.folder`; on a normal end all of them are in the store.

    Args:
        target: the folder to make.
        overwrite: whether a checkpoint that is there may be replaced. It is removed when the first file of the new one
            is sent: a store has no rename to exchange the two with.
        sources: folders that are being read.
        last: files of the folder that are sent last, in this order.

    Raises:
        ConvertError: the destination is taken (MS710) or overlaps a source (MS711); a file did not arrive (MS795).
    """
    replaced = _check(target, overwrite, [str(source).rstrip("/") for source in sources if is_url(source)])
    home = Path(tempfile.mkdtemp(prefix="mapspec-upload-"))
    folder = home / "checkpoint"
    folder.mkdir()
    upload = Upload(folder, target, replaced)
    try:
        try:
            yield upload
            upload.rest(last)
        except BaseException:
            upload.close()
            upload.undo()
            raise
    finally:
        upload.close()
        shutil.rmtree(home, ignore_errors=True)
    target.store.refresh()


def _check(target: RemotePath, overwrite: bool, sources: Sequence[str]) -> list[str]:
    """The objects that will be replaced."""
    where = str(target)
    for source in sources:
        if where == source or where.startswith(f"{source}/") or source.startswith(f"{where}/"):
            message = f"the destination overlaps the source `{source}`"
            help_ = "choose a destination beside the source"
            raise ConvertError(Diagnostic("MS711", message, where=where, help=help_))
    target.store.refresh()
    start = f"{target.key}/" if target.key else ""
    there = [name for name in target.store.listing() if name.startswith(start)]
    if target.is_file():
        help_ = "name a folder that does not exist yet"
        raise ConvertError(Diagnostic("MS710", "the destination is an object", where=where, help=help_))
    if there and not overwrite:
        help_ = "choose another destination, or allow it to be overwritten with `--overwrite`"
        raise ConvertError(Diagnostic("MS710", "the destination exists and is not empty", where=where, help=help_))
    if there and not any(name.endswith(_KNOWN) for name in there):
        message = f"the destination holds {len(there):,} objects and no checkpoint"
        help_ = "--overwrite replaces checkpoints only; choose another destination, or empty it yourself"
        raise ConvertError(Diagnostic("MS710", message, where=where, help=help_))
    return there


def _lost(path: RemotePath, what: str) -> ConvertError:
    help_ = "check the URL, the credentials and the network, then convert again; what was sent has been removed"
    return ConvertError(Diagnostic("MS795", f"the file was not sent: {what}", where=str(path), help=help_))
