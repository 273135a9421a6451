"""Telling files apart without reading them whole: name, size, time of change, and the XXH3 digest of how they begin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_128_hexdigest

from mapspec.io.remote import RemotePath

__all__ = ["FileIdentity", "identify"]

_HEAD = 64 << 10


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Size in bytes, time of the last change in nanoseconds, and the digest of the head.

    The head is the header of a safetensors file (names, shapes and places of its tensors), and the first 64 KiB of
    any other file. Of an object in a store it is the version that the store gives, and the time is 0.
    """

    size: int
    mtime_ns: int
    head: str


def identify(root: Path, files: Iterable[str]) -> dict[str, FileIdentity]:
    """Identities of files below `root`, by name; sorted. Raises `OSError` where a file cannot be read."""
    return {file: _identity(root / file) for file in sorted(set(files))}


def _identity(path: Path) -> FileIdentity:
    if isinstance(path, RemotePath):
        stamp = path.stamp()
        return FileIdentity(stamp.nbytes, 0, xxh3_128_hexdigest(str(stamp.version).encode()))
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if path.suffix == ".safetensors" and len(head) >= 8:
            wanted = 8 + int.from_bytes(head[:8], "little")
            status = path.stat()
            head = head[:wanted] + file.read(max(0, min(wanted, status.st_size) - len(head)))
        status = path.stat()
    return FileIdentity(status.st_size, status.st_mtime_ns, xxh3_128_hexdigest(head))
