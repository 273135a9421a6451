"""What kind of file system a folder lies on, and how to read from such a one.

A local disk answers at once, and the kernel reads ahead by itself: a thread per core and reads of 1 MiB are as fast
as it gets. Over a network every request waits for an answer, so more of them have to be under way at the same time:
more threads, larger reads, and the next ones asked for before they are needed. Files are never mapped into memory, on
no file system: a read that fails is an error with a name, a mapped page that cannot be read is a signal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.io.kernel import cores as usable_cores
from mapspec.io.remote import RemotePath

__all__ = ["KINDS", "PLACES", "Access", "access_to", "kind_of", "with_changes"]

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MIB = 1 << 20
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True, slots=True)
class Access:
    """How files are read from one place, or written to it.

    Attributes:
        kind: of the file system as the kernel calls it, or the protocol of a URL.
        place: a key of `PLACES`.
        threads: workers that share the files.
        read: bytes of one request.
        ahead: requests of one worker that are under way before their bytes are needed; 0 leaves that to the kernel.
    """

    kind: str
    place: str
    threads: int
    read: int
    ahead: int

    def __str__(self) -> str:
        size = f"{self.read / _MIB:g} MiB reads"
        ahead = f", {self.ahead} ahead" if self.ahead else ""
        return f"{self.kind} ({self.place}), {self.threads} thread{'s' * (self.threads != 1)}, {size}{ahead}"


# place -> (threads at least, bytes of a request, requests ahead, why)
PLACES: Mapping[str, tuple[int, int, int, str]] = {
    "local": (1, _MIB, 0, "blocks of 1 MiB stay in the processor's cache; the kernel reads ahead"),
    "memory": (1, _MIB, 0, "as local; there is nothing to wait for"),
    "network": (8, 4 * _MIB, 4, "a request takes a round trip, and the kernel's own read-ahead is short"),
    "parallel": (16, 4 * _MIB, 4, "files are striped over servers, which are all to be kept busy"),
    "user space": (8, 4 * _MIB, 4, "each call passes through another process, and often over a network"),
    "object store": (8, 4 * _MIB, 4, "a request takes tens of milliseconds; large ranges, many at a time"),
}  # fmt: skip

KINDS: Mapping[str, str] = {
    **dict.fromkeys(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "virtiofs"), "local"),
    **dict.fromkeys(("tmpfs", "ramfs"), "memory"),
    **dict.fromkeys(("nfs", "nfs4", "cifs", "smb3", "9p", "afs"), "network"),
    **dict.fromkeys(("lustre", "gpfs", "beegfs", "ceph", "wekafs", "panfs", "pvfs2", "gfs2"), "parallel"),
}


def kind_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that `path`, or the nearest folder above it that exists, lies on.

    Args:
        path: need not exist.
        mounts: text in the format of `/proc/self/mountinfo`; by default that file.

    Returns:
        `unknown` where the system does not say.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return "unknown"
    wanted = Path(os.path.realpath(path))
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_ESCAPE.sub(lambda m: chr(int(m[1], 8)), fields[4]))
        # Of two mounts on one folder the later one is seen.
        if wanted.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ")[0]
    return kind


def access_to(path: Path, *, cores: int | None = None, mounts: str | None = None) -> Access:
    """How to read from `path` or write to it, a folder or a `RemotePath`."""
    if isinstance(path, RemotePath):
        kind, place = path.store.protocol, "object store"
    else:
        kind = kind_of(path, mounts)
        place = "user space" if kind.startswith("fuse") else KINDS.get(kind, "local")
    least, read, ahead, _ = PLACES[place]
    return Access(kind, place, max(least, cores or usable_cores()), read, ahead)


def with_changes(access: Access, text: str) -> Access:
    """The same with changes that a user asks for.

    Args:
        text: a place (`network`), or keys and values: `threads=16,read=8MiB,ahead=4`; also both, the place first.

    Raises:
        ConvertError: MS793 for anything else.
    """
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = item.partition("=")
        number = _number(value) if equals else None
        if not equals and item.replace("-", " ") in PLACES:
            least, read, ahead, _ = PLACES[item.replace("-", " ")]
            access = replace(access, threads=max(access.threads, least), read=read, ahead=ahead)
        elif key == "threads" and number:
            access = replace(access, threads=number)
        elif key == "read" and number:
            access = replace(access, read=number)
        elif key == "ahead" and number is not None:
            access = replace(access, ahead=number)
        else:
            places = ", ".join(place.replace(" ", "-") for place in PLACES)
            help_ = f"write for example threads=16,read=8MiB,ahead=4, or one of {places}"
            raise ConvertError(Diagnostic("MS793", f"`{item}` does not say how to read", where="--io", help=help_))
    return access


def _number(text: str) -> int | None:
    found = re.fullmatch(r"(\d+)\s*([kmg]i?|)b?", text.strip().lower())
    return int(found[1]) * _UNITS[found[2]] if found else None
