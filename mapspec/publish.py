"""A checkpoint folder appears complete or not at all.

The work is done in a hidden folder beside the destination, `.NAME.mapspec-partial-XXXX/checkpoint`, which one rename
puts in place. What else lies in the hidden folder (a journal) does not move along. After an error or an interrupt the
hidden folder is removed, unless the caller keeps it to go on later. A process that is killed outright leaves it behind;
such folders are never removed on their own, because another process (perhaps on another machine) may be at work in one.
`leftovers` lists them.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.io.remote import is_url

__all__ = ["leftovers", "publishing", "sync"]

_CHECKPOINT = "checkpoint"
_PARTIAL = "mapspec-partial"
_REPLACED = "mapspec-replaced"


@contextmanager
def publishing(
    destination: Path | str,
    *,
    overwrite: bool = False,
    sources: Sequence[Path | str] = (),
    fsync: bool = True,
    resume: Path | None = None,
    keep: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[Path]:
    """Yield a folder to write to; on a normal end it becomes `destination`.

    Args:
        destination: the folder to make. It may exist if it is empty. Folders above it are made. A link is followed.
        overwrite: whether a destination that is not empty may be replaced. It stays as it is until the new one is
            complete, and is removed only after that.
        sources: folders that are being read. The destination may not be, hold, or lie inside any of them.
        fsync: whether the files and the folder are on disk before the rename.
        resume: one of `leftovers` to go on in; `None` for a new, empty folder.
        keep: asked after an error whether the hidden folder stays.

    Raises:
        ConvertError: the destination is taken (MS710), overlaps a source (MS711), or cannot be made (MS712).
    """
    final = Path(os.path.realpath(destination))
    _check(final, overwrite, [Path(os.path.realpath(source)) for source in sources if not is_url(source)])
    partial = resume or final.with_name(f".{final.name}.{_PARTIAL}-{secrets.token_hex(4)}")
    folder = partial / _CHECKPOINT
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=resume is not None)
    except OSError as error:
        raise ConvertError(_cannot(final, error)) from error
    try:
        yield folder
        try:
            if fsync:
                _sync_tree(folder)
            _put_in_place(folder, final, overwrite)
            if fsync:
                sync(final.parent)
        except OSError as error:
            raise ConvertError(_cannot(final, error)) from error
    except BaseException as error:
        placed = not folder.exists()
        if placed and isinstance(error, KeyboardInterrupt):
            pass  # too late: all is done
        else:
            if placed or not keep(error):
                shutil.rmtree(partial, ignore_errors=True)
            raise
    with suppress(KeyboardInterrupt):
        shutil.rmtree(partial, ignore_errors=True)


def leftovers(destination: Path | str) -> tuple[Path, ...]:
    """Hidden folders beside the destination that conversions to it have left behind or are at work in."""
    final = Path(os.path.realpath(destination))
    if not final.parent.is_dir():
        return ()
    starts = (f".{final.name}.{_PARTIAL}-", f".{final.name}.{_REPLACED}-")
    return tuple(sorted(path for path in final.parent.iterdir() if path.name.startswith(starts)))


def _check(final: Path, overwrite: bool, sources: Sequence[Path]) -> None:
    where = str(final)
    if not final.name:
        raise ConvertError(
            Diagnostic("MS710", "the root folder cannot be a destination", where=where, help="name a folder to make")
        )
    for source in sources:
        if final == source or source in final.parents or final in source.parents:
            how = "is" if final == source else "lies inside" if source in final.parents else "holds"
            raise ConvertError(
                Diagnostic(
                    "MS711",
                    f"the destination {how} the source `{source}`",
                    where=where,
                    help="choose a destination beside the source",
                )
            )
    if final.is_dir():
        if final.is_mount():
            message = "the destination is a mount point, which no rename can replace"
            raise ConvertError(Diagnostic("MS712", message, where=where, help="name a folder below it"))
        try:
            taken = _occupied(final)
        except OSError as error:
            raise ConvertError(_cannot(final, error)) from error
        if taken and not overwrite:
            raise ConvertError(_taken(final))
    elif final.is_symlink():
        message = "the destination is a link that leads nowhere but back to itself"
        raise ConvertError(Diagnostic("MS712", message, where=where, help="remove the link, or name another folder"))
    elif final.exists():
        raise ConvertError(
            Diagnostic("MS710", "the destination is a file", where=where, help="name a folder that does not exist yet")
        )


def _put_in_place(folder: Path, final: Path, overwrite: bool) -> None:
    if not final.exists() or not _occupied(final):
        # also over an empty folder; if another process fills it in this instant, the rename is refused
        folder.rename(final)
        return
    if not overwrite:
        raise ConvertError(_taken(final))
    old = final.with_name(folder.parent.name.replace(_PARTIAL, _REPLACED))
    try:
        final.rename(old)
        folder.rename(final)
    except BaseException:
        if folder.exists() and old.exists():
            old.rename(final)
        raise
    with suppress(OSError):  # the new checkpoint is in place; what stays of the old one is listed by `leftovers`
        shutil.rmtree(old)


def _occupied(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is not None


def _taken(final: Path) -> Diagnostic:
    return Diagnostic(
        "MS710",
        "the destination exists and is not empty",
        where=str(final),
        help="choose another destination, or allow it to be overwritten with `--overwrite`",
    )


def _cannot(final: Path, error: OSError) -> Diagnostic:
    return Diagnostic(
        "MS712",
        f"the destination cannot be made: {error.strerror}",
        where=str(final),
        help=f"check that `{final.parent}` is a folder you may write to",
    )


def _sync_tree(root: Path) -> None:
    """Put files and folders on disk, folders after what is in them."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def sync(path: Path) -> None:
    """Put one file, or the entries of one folder, on disk. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
