"""Going on with a conversion that was cut off: what makes it the same one, and what of it is kept.

The journal of an unfinished conversion (`mapspec.journal`) begins with an identity: versions, mapping, options, config,
and size and time of every source file. A later run goes on only where its own identity is equal; everything that
differs is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mapspec._version import __version__
from mapspec.copying.alignment import pages
from mapspec.copying.digests import Digester, FileDone
from mapspec.diagnostics import Diagnostic, Note
from mapspec.errors import ConvertError
from mapspec.io.identity import identify
from mapspec.journal import Leftover, take
from mapspec.outputs import Output, Work
from mapspec.prepare import Prepared
from mapspec.publish import leftovers
from mapspec.sources import identity_of

__all__ = ["conversion_identity", "differences", "find", "remove_others", "require_same", "settle"]

_BLOCK = 1 << 18

# They say where and how to write, not what.
_HOW = ("destination", "overwrite", "threads", "max_memory", "fsync", "resume", "recheck", "keep")
_WHERE = ("source", "reference", "spec", "io")


def conversion_identity(prepared: Prepared, output: Output) -> dict[str, Any]:
    """What has to be equal for two conversions to be the same one, in JSON's types; `work` comes in with the layout.

    Raises:
        ConvertError: a file vanished meanwhile (MS703).
    """
    bound, reference = prepared.table.bound, prepared.reference
    request = {name: value for name, value in asdict(prepared.request).items() if name not in _WHERE}
    options = {**request, **{name: value for name, value in asdict(output).items() if name not in _HOW}}
    try:
        along = identify(reference.root, reference.files) if reference.root is not None else {}
        source = identity_of(prepared.source)
    except OSError as error:
        message = f"`{error.filename}` could not be read: {error.strerror}"
        help_ = "it was there a moment ago; look what else is at work in that folder"
        raise ConvertError(Diagnostic("MS703", message, where=str(prepared.source.path), help=help_)) from error
    identity = {
        "mapspec": __version__,
        "mapping": {"name": bound.linked.name, "table_hash": prepared.table.hash, "text": _text_hash(prepared)},
        "options": {**options, "flavours": dict(bound.flavours)},
        "source": source,
        "along": {name: asdict(file) for name, file in along.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain


def _text_hash(prepared: Prepared) -> str:
    """Hash of the text of the mapping and of every file that it extends or includes."""
    digest = hashlib.sha256()
    for scope in prepared.table.bound.linked.scopes:
        for path in (scope.document.path, *scope.document.parents):
            digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two identities different, for people."""
    out = []
    if old.get("mapspec") != new["mapspec"]:
        out.append(f"mapspec: version {old.get('mapspec')} then, {new['mapspec']} now")
    before, now = old.get("mapping") or {}, new["mapping"]
    if before.get("name") != now["name"]:
        out.append(f"the mapping: {before.get('name')} then, {now['name']} now")
    elif before != now:
        what = "its rules" if before.get("table_hash") != now["table_hash"] else "the text of its files"
        out.append(f"the mapping {now['name']}: {what}")
    for name, then, today in _changed(old.get("options") or {}, new["options"]):
        out.append(f"the option {name}: {_short(then)} then, {_short(today)} now")
    before, now = old.get("source") or {}, new["source"]
    if before.get("path") != now["path"]:
        out.append(f"the source: {before.get('path')} then, {now['path']} now")
    elif changed := [name for name, _, _ in _changed(before.get("files") or {}, now["files"])]:
        out.append(f"the source: {_some(changed)} changed")
    if changed := [name for name, _, _ in _changed(old.get("along") or {}, new["along"])]:
        out.append(f"what travels along: {_some(changed)} changed")
    if not out and "work" in new and old.get("work") != new["work"]:
        out.append("the config, or another file that stands beside the weights")
    return out


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _short(value: object) -> str:
    return json.dumps(value) if value is not None else "not given"


def _some(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def find(output: Output, identity: Mapping[str, Any]) -> Leftover | None:
    """The leftover of the same conversion with the most bytes in it, taken over; `None` if there is no leftover.

    Raises:
        ConvertError: a process is at work in one (MS771), or it cannot be told (MS772); all are of other conversions
            (MS770).
    """
    best: Leftover | None = None
    others: list[Leftover] = []
    for path in leftovers(output.destination):
        found = take(path)
        same = found.header is not None and not differences(found.header["identity"], identity)
        if not same or (best is not None and best.nbytes >= found.nbytes):
            found.release()
            if found.header is not None and not same:
                others.append(found)
            continue
        if best is not None:
            best.release()
        best = found
    if best is None and others:
        raise ConvertError(_other(others[-1], differences(others[-1].header["identity"], identity)))  # type: ignore[index]
    return best


def require_same(found: Leftover, identity: Mapping[str, Any]) -> None:
    """Compare once more, now that the layout is known.

    Raises:
        ConvertError: MS770.
    """
    assert found.header is not None
    if differing := differences(found.header["identity"], identity):
        raise ConvertError(_other(found, differing))


def _other(found: Leftover, differing: list[str]) -> Diagnostic:
    help_ = f"bring back what changed; or start anew: without --resume, and with `rm -r {found.path}` for the room"
    message = "what was begun here is not what is asked for now"
    return Diagnostic("MS770", message, where=str(found.path), notes=tuple(map(Note, differing)), help=help_)


def settle(folder: Path, found: Leftover, work: Work, *, recheck: bool) -> dict[str, FileDone]:
    """The finished files that can stay; the others have to be written again.

    Files that were on disk before they were called finished are believed to be so if they have their size; the digests
    that were taken while they were written go into the record, by which `mapspec verify` can check them later.

    Args:
        recheck: read them all and compare their digests. Always done where they were not brought to disk.
    """
    sizes = work.sizes
    kept: dict[str, FileDone] = {}
    for name, done in found.finished.items():
        path = folder / name
        good = path.is_file() and path.stat().st_size == done.size == sizes.get(name)
        if good and (recheck or not found.synced):
            good = _read(path, done) == done
        if good:
            kept[name] = done
    return kept


def _read(path: Path, done: FileDone) -> FileDone:
    """What a file holds, as `done` says what it held."""
    digester = Digester([(digest.offset, digest.nbytes) for digest in done.digests])
    buffer = pages(_BLOCK)
    at = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digester.update(at, buffer[:count])
            at += count
    return digester.done(done.file, at)


def remove_others(folder: Path, kept: Collection[str]) -> None:
    """Remove every file that is not among the kept ones, and folders that become empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in kept:
            path.unlink()
