"""The zip archives that `torch.save` writes, as records with offsets.

Records are stored, not compressed, below one folder, whose name depends on the torch version. Data descriptors, zip64
fields and padding in the extra fields are all in use. The archive's directory at the end is what counts; each record's
local header is checked against it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DESCRIPTOR", "ItemError", "Record", "Window", "data_start", "first_reads", "record", "records"]

_HEAD = _TAIL = 1024  # torch's records before and after the storage take about 700 and 900 bytes
_SMALL = 4096
_MAX_PICKLE = 1 << 26

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s2x2x2H4x3L3H8xL")
_LOCAL = struct.Struct("<4s2x2H4x3L2H")
_EXTRA = struct.Struct("<2H")
DESCRIPTOR = b"PK\x07\x08"  # begins the sizes that may follow a record's data
_FOLLOWING = (DESCRIPTOR, b"PK\x03\x04", b"PK\x01\x02")  # or else the next record, or the directory


class ItemError(Exception):
    """The item is not what it should be. `code` is a key of `CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Record:
    """A record by the archive's directory: where its header is, how long its data; all offsets within the item."""

    name: str
    header: int
    size: int
    crc: int
    entry: int  # of this record in the archive's directory
    end: int  # of all records


def first_reads(length: int) -> tuple[tuple[int, int], ...]:
    """What a `Window` fetches at once, as (offset, bytes)."""
    return ((0, length),) if length <= _SMALL else ((0, _HEAD), (length - _TAIL, _TAIL))


class Window:
    """`length` bytes of a file, of which beginning and end are fetched at once."""

    __slots__ = ("_fetch", "_head", "_tail", "_tail_at", "length")

    def __init__(self, fetch: Callable[[int, int], bytes], length: int) -> None:
        self.length = length
        self._fetch = fetch
        reads = first_reads(length)
        self._head = self._tail = fetch(*reads[0])
        self._tail_at = reads[-1][0]
        if len(reads) > 1:
            self._tail = fetch(*reads[1])

    def has(self, offset: int, data: bytes) -> bool:
        """Whether `data` stands at `offset`. As far as it was fetched, nothing is copied to find out."""
        if offset >= self._tail_at:
            return self._tail.startswith(data, offset - self._tail_at)
        if offset + len(data) <= len(self._head):
            return self._head.startswith(data, offset)
        return self.get(offset, len(data)) == data

    def get(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; an `ItemError` if they do not all lie in the window."""
        if offset < 0 or count < 0 or offset + count > self.length:
            raise ItemError("MS655", "an archive record points beyond the item's end")
        if offset >= self._tail_at:
            data = self._tail[offset - self._tail_at : offset - self._tail_at + count]
        elif offset + count <= len(self._head):
            data = self._head[offset : offset + count]
        else:
            data = self._fetch(offset, count)
        if len(data) != count:
            raise ItemError("MS654", "the file ends before the item does")
        return data


def records(window: Window) -> dict[str, Record]:
    """The archive's records by name, without the folder in front."""
    if window.length < _END.size or window.get(0, 4) != b"PK\x03\x04":
        raise ItemError("MS655", "does not begin like a torch.save archive")
    count, size, start = _directory_place(window)
    found: dict[str, Record] = {}
    data = window.get(start, size)
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > size:
            raise ItemError("MS655", "the archive's directory is cut short")
        sig, flags, method, crc, packed, full, n_name, n_extra, n_comment, header = _CENTRAL.unpack_from(data, at)
        entry = start + at
        name_at = at + _CENTRAL.size
        at = name_at + n_name + n_extra + n_comment
        if sig != b"PK\x01\x02" or at > size:
            raise ItemError("MS655", "the archive's directory is damaged")
        if flags & 1 or method:
            raise ItemError("MS658", "the archive's records are compressed or encrypted")
        if 0xFFFFFFFF in (packed, full, header):
            extra = data[name_at + n_name : name_at + n_name + n_extra]
            full, packed, header = _wide(extra, full, packed, header)
        if packed != full:
            raise ItemError("MS655", "an archive record states two different sizes")
        name = data[name_at : name_at + n_name].decode("utf-8", "replace").partition("/")[2]
        if name in found:
            raise ItemError("MS655", f"the archive holds two records `{name}`")
        found[name] = Record(name, header, full, crc, entry, start)
    return found


def record(window: Window, entry: Record) -> bytes:
    """The bytes of a small record, checked against its checksum if it has one."""
    if entry.size > _MAX_PICKLE:
        raise ItemError("MS655", f"the record `{entry.name}` is {entry.size} bytes long")
    data = window.get(data_start(window, entry), entry.size)
    if entry.crc and zlib.crc32(data) != entry.crc:
        raise ItemError("MS655", f"the checksum of the record `{entry.name}` does not match")
    return data


def _directory_place(window: Window) -> tuple[int, int, int]:
    # torch writes no archive comment, so the end record is the last thing in the item.
    end = window.length - _END.size
    sig, _disk, _disk2, _here, count, size, start, n_comment = _END.unpack(window.get(end, _END.size))
    if sig != b"PK\x05\x06" or n_comment:
        raise ItemError("MS655", "does not end like a torch.save archive")
    limit = end
    if end >= _LOCATOR.size:
        sig, _disk, end64, _disks = _LOCATOR.unpack(window.get(end - _LOCATOR.size, _LOCATOR.size))
        if sig == b"PK\x06\x07":
            fields = _END64.unpack(window.get(end64, _END64.size))
            if fields[0] != b"PK\x06\x06":
                raise ItemError("MS655", "the archive's zip64 end record is not where it should be")
            count, size, start, limit = fields[7], fields[8], fields[9], end64
    if start + size > limit or count > size // _CENTRAL.size:
        raise ItemError("MS655", "the archive's directory does not fit in the item")
    return count, size, start


def _wide(extra: bytes, full: int, packed: int, header: int) -> tuple[int, int, int]:
    at = 0
    while at + _EXTRA.size <= len(extra):
        tag, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if tag == 1:
            values = iter(struct.unpack_from(f"<{min(length, len(extra) - at) // 8}Q", extra, at))
            wide = [next(values, v) if v == 0xFFFFFFFF else v for v in (full, packed, header)]
            return wide[0], wide[1], wide[2]
        at += length
    return full, packed, header


def data_start(window: Window, entry: Record) -> int:
    """Where the record's data begins, by its own header, which is checked against the directory."""
    fields = _LOCAL.unpack(window.get(entry.header, _LOCAL.size))
    sig, flags, method, _crc, packed, full, n_name, n_extra = fields
    name_at = entry.header + _LOCAL.size
    name = window.get(name_at, n_name).decode("utf-8", "replace").partition("/")[2]
    if sig != b"PK\x03\x04" or flags & 1 or method or name != entry.name:
        raise ItemError("MS655", f"the header of the record `{entry.name}` does not match the directory")
    # Sizes may stand after the data instead (flag bit 3), or in a zip64 field.
    sizes = {packed, full}
    if not flags & 8 and not sizes <= {entry.size, 0xFFFFFFFF}:
        raise ItemError("MS655", f"the header of the record `{entry.name}` states another size")
    start: int = name_at + n_name + n_extra
    end = start + entry.size
    if end > entry.end:
        raise ItemError("MS655", f"the record `{entry.name}` reaches into the archive's directory")
    # Were the header's lengths wrong, the data would be taken from a wrong place; what follows tells.
    if window.get(end, 4) not in _FOLLOWING:
        raise ItemError("MS655", f"the record `{entry.name}` does not end where its header says")
    return start
