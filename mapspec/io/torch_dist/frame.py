"""The bytes around a tensor in a `.distcp` file: what `torch.save` writes before and after the storage.

A `.distcp` file is a sequence of such archives. Their records are the ones that torch 2.6 and later write; checksums
are 0, as after `torch.serialization.set_crc32_options(False)`, because torch does not look at them and the data is not
known when the frame is made.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from mapspec.io.torch_dist.emit import scalars_pickle, tensor_pickle
from mapspec.tensors import itemsize, numel

__all__ = ["Frame", "object_item", "tensor_frame"]

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_FLAGS = 0x0808  # sizes follow in a data descriptor; names are UTF-8
_ALIGNMENT = 64
_WIDE = 0xFFFFFFFF  # 32-bit fields hold this from here on, the value stands in a zip64 field

# torch numbers archives by two hashes: of the records' names, and of the checksums of those that are not empty. The
# checksums are all 0 here, so only their number counts.
_TENSOR_NAMES, _OBJECT_NAMES = b"15728199511854643026", b"02908468677762923104"
_FIVE_SUMS, _SIX_SUMS = b"00046082544174525093", b"03005401530805769991"


@dataclass(frozen=True, slots=True)
class Frame:
    """`head`, then `nbytes` of raw tensor data, then `tail`: together one item."""

    head: bytes
    nbytes: int
    tail: bytes

    @property
    def length(self) -> int:
        """Size of the whole item in bytes."""
        return len(self.head) + self.nbytes + len(self.tail)


class _Archive:
    """Collects the records; `pos` counts all bytes, `parts` holds them except for tensor data."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.pos = 0
        self._directory: list[bytes] = []

    def add(self, name: str, data: bytes) -> None:
        self.open(name, len(data))
        self.write(data)
        self.close_record()

    def write(self, data: bytes) -> None:
        self.parts.append(data)
        self.pos += len(data)

    def open(self, name: str, size: int) -> None:
        """Everything of a record before its data, padded so that the data is aligned within the item."""
        path = f"archive/{name}".encode()
        header = self.pos
        far = struct.pack("<Q", header) if header >= _WIDE else b""
        # Before the data torch knows one of the two sizes only; readers take them from the directory.
        extra, central_extra = (
            struct.pack("<2H", 1, len(sizes + far)) + sizes + far if sizes + far else b""
            for sizes in ((_pair(size, 0), _pair(size, size)) if size >= _WIDE else (b"", b""))
        )
        start = header + _LOCAL.size + len(path) + len(extra) + 4
        padding = -start % _ALIGNMENT
        filler = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        flags = _FLAGS if size else _FLAGS & ~8
        local = _LOCAL.pack(b"PK\x03\x04", 0, flags, 0, 0, 0, 0, 0, 0, len(path), len(extra) + len(filler))
        self.write(local + path + extra + filler)
        # A record that needed a zip64 field for whatever reason has 64-bit sizes in its descriptor.
        self._descriptor = struct.pack("<4sL2Q" if extra else "<4s3L", b"PK\x07\x08", 0, size, size) if size else b""
        short, short_header = min(size, _WIDE), min(header, _WIDE)
        lengths = (len(path), len(central_extra), 0, 0, 0)
        central = _CENTRAL.pack(b"PK\x01\x02", 0, 0, flags, 0, 0, 0, 0, short, short, *lengths, 0, short_header)
        self._directory.append(central + path + central_extra)

    def close_record(self) -> None:
        self.write(self._descriptor)

    def finish(self) -> None:
        """The archive's directory and its three end records."""
        start, count, directory = self.pos, len(self._directory), b"".join(self._directory)
        self.write(directory)
        end64 = self.pos
        size = len(directory)
        self.write(b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 0x031E, 45, 0, 0, count, count, size, start))
        self.write(b"PK\x06\x07" + struct.pack("<LQL", 0, end64, 1))
        self.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, size, min(start, _WIDE), 0))


def _pair(first: int, second: int) -> bytes:
    return struct.pack("<2Q", first, second)


def _begin(description: bytes) -> _Archive:
    archive = _Archive()
    archive.add("data.pkl", description)
    archive.add(".format_version", b"1")
    archive.add(".storage_alignment", str(_ALIGNMENT).encode())
    archive.add("byteorder", b"little")
    return archive


def _end(archive: _Archive, identity: bytes) -> None:
    archive.add("version", b"3\n")
    archive.add(".data/serialization_id", identity)
    archive.finish()


@functools.lru_cache(maxsize=4096)
def tensor_frame(dtype: str, shape: tuple[int, ...]) -> Frame:
    """The frame of a dense row-major tensor of that shape (in elements)."""
    archive = _begin(tensor_pickle(dtype, shape))
    nbytes = numel(shape) * itemsize(dtype)
    archive.open("data/0", nbytes)
    head = b"".join(archive.parts)
    archive.parts.clear()
    archive.pos += nbytes
    archive.close_record()
    _end(archive, _TENSOR_NAMES + (_SIX_SUMS if nbytes else _FIVE_SUMS))
    return Frame(head, nbytes, b"".join(archive.parts))


def object_item(description: bytes) -> bytes:
    """The item of an object without tensors, from its pickle."""
    archive = _begin(description)
    _end(archive, _OBJECT_NAMES + _FIVE_SUMS)
    return b"".join(archive.parts)


def scalars_item(values: Mapping[str, tuple[str, bytes]]) -> bytes:
    """The item of a dictionary of tensors without axes: name -> (dtype, little-endian bytes)."""
    archive = _begin(scalars_pickle({name: dtype for name, (dtype, _) in values.items()}))
    for i, (_, data) in enumerate(values.values()):
        archive.add(f"data/{i}", data)
    _end(archive, _OBJECT_NAMES + _SIX_SUMS)
    return b"".join(archive.parts)
