"""Digests of a file that is being written or read: one for each chunk, one for everything around the chunks.

The digest is XXH3 with 128 bits, which costs nothing beside a copy (30 GB/s and more on one core). It finds accidents:
flipped bits, truncation, exchanged blocks. It does not prove who wrote a file; whoever can change the data can change
the record as well.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_128, xxh3_128_hexdigest

from mapspec.frozen import frozen

__all__ = ["ALGORITHM", "Digest", "Digester", "FileDone", "digest_of"]

ALGORITHM = "xxh3-128"


@frozen
class Digest:
    """Digest of the `nbytes` bytes of a chunk that begins at `offset` of its file; 32 hexadecimal digits."""

    offset: int
    nbytes: int
    hex: str


@dataclass(frozen=True, slots=True)
class FileDone:
    """A file that has been written.

    Attributes:
        file: name relative to the checkpoint's folder.
        size: in bytes.
        digests: of its chunks that are not empty, by offset.
        rest: digest of all bytes that belong to no chunk (headers, framing), one after the other; of the whole file
            where there are no chunks.
    """

    file: str
    size: int
    digests: tuple[Digest, ...]
    rest: str


def digest_of(data: bytes | memoryview) -> str:
    """The digest of bytes that are in memory; 32 hexadecimal digits."""
    return xxh3_128_hexdigest(data)


class Digester:
    """Takes in the bytes of one file. The bytes of each chunk, and those around the chunks, come in ascending order.

    Args:
        spans: offset and length in bytes of each chunk, by offset, disjoint, none empty.
    """

    __slots__ = ("_ends", "_hex", "_open", "_rest", "_rest_at", "_starts")

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        self._starts = [offset for offset, _ in spans]
        self._ends = [offset + nbytes for offset, nbytes in spans]
        self._hex: list[str | None] = [None] * len(spans)
        self._open: dict[int, tuple[xxh3_128, int]] = {}
        self._rest = xxh3_128()
        self._rest_at = 0

    def update(self, at: int, view: memoryview) -> None:
        """The bytes `view` stand at offset `at` of the file."""
        while view:
            position = bisect_right(self._starts, at) - 1
            if position >= 0 and at < self._ends[position]:
                take = min(len(view), self._ends[position] - at)
                self._chunk(position, at, view[:take])
            else:
                follows = position + 1
                take = min(len(view), self._starts[follows] - at) if follows < len(self._starts) else len(view)
                assert at >= self._rest_at, "bytes around the chunks come in order"
                self._rest.update(view[:take])
                self._rest_at = at + take
            at, view = at + take, view[take:]

    def _chunk(self, position: int, at: int, view: memoryview) -> None:
        start, end = self._starts[position], self._ends[position]
        if at == start and len(view) == end - start:
            assert self._hex[position] is None, "a chunk comes once"
            self._hex[position] = xxh3_128_hexdigest(view)
            return
        hasher, expected = self._open.pop(position) if position in self._open else (xxh3_128(), start)
        assert self._hex[position] is None, "a chunk comes once"
        assert at == expected, "bytes of a chunk come in order"
        hasher.update(view)
        if at + len(view) == end:
            self._hex[position] = hasher.hexdigest()
        else:
            self._open[position] = (hasher, at + len(view))

    def so_far(self) -> tuple[tuple[str | None, ...], str]:
        """The digest of each chunk (`None` if bytes are lacking), and that of everything around them."""
        return tuple(self._hex), self._rest.hexdigest()

    def done(self, file: str, size: int) -> FileDone:
        """What has come of the file, once all of it has been taken in."""
        digests = []
        for start, end, text in zip(self._starts, self._ends, self._hex, strict=True):
            assert text is not None, f"{file} lacks bytes of the chunk at {start}"
            digests.append(Digest(start, end - start, text))
        return FileDone(file, size, tuple(digests), self._rest.hexdigest())
