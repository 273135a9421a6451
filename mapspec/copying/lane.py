"""Bytes on their way to one stretch of a destination file: filled in order, written in blocks of the file.

A block of the file, not of the stretch: the page cache keeps a file in pieces as large as a write and its place allow,
and writes that begin and end where such pieces do took a tenth less time when measured.
"""

from __future__ import annotations

from collections.abc import Callable

from mapspec.copying.alignment import PAGE, place, slow

__all__ = ["Lane", "lanes_in"]


_BLOCK = 1 << 17
_SMALLEST = 1 << 16


class Lane:
    """Room for a stretch of a file, and what of it has not been written yet.

    Args:
        memory: begins with a page, and holds a block and a page at least.
        block: bytes; writes end at multiples of it in the file where they can.
        write: takes bytes and their offset in the file.
    """

    __slots__ = ("_at", "_high", "_low", "_memory", "_write", "block")

    def __init__(self, memory: memoryview, block: int, write: Callable[[memoryview, int], None]) -> None:
        assert len(memory) >= block + PAGE
        self._memory, self.block, self._write = memory, block, write
        # What waits: from where in the file, from where and to where in the memory.
        self._at = self._low = self._high = 0

    @property
    def most(self) -> int:
        """How many bytes there is always room for."""
        return len(self._memory) - self.block - PAGE

    def room(self, at: int, length: int, source: int | None = None, period: int | None = None) -> memoryview:
        """Memory for the `length` bytes that belong at offset `at` of the file, to be filled before the next call.

        Args:
            length: at most `most`, or no more than is left of the block of the file that `at` lies in.
            source, period: where the bytes come from, see `mapspec.copying.alignment.place`.
        """
        held = self._high - self._low
        if held and (self._at + held != at or at % self.block == 0):
            self.flush()
            held = 0
        if not held:
            self._at, self._low = at, place(source, at, period)
            self._high = self._low
        elif self._high + length > len(self._memory):
            self._settle(source, period)
        elif source is not None and slow(source, self._high, period):
            self.flush()
            self._at, self._low = at, place(source, at, period)
            self._high = self._low
        self._high += length
        assert self._high <= len(self._memory)
        return self._memory[self._high - length : self._high]

    def left(self, at: int) -> int:
        """Bytes from `at` to the end of its block of the file."""
        return self.block - at % self.block

    def flush(self) -> None:
        """Write what waits."""
        if self._high > self._low:
            self._write(self._memory[self._low : self._high], self._at)
        self._low = self._high = 0

    def drop(self) -> None:
        """Forget what waits, which is of a file that is given up."""
        self._low = self._high = 0

    def _settle(self, source: int | None, period: int | None) -> None:
        """Write whole blocks, and keep what is left at the front of the memory."""
        kept = (self._at + self._high - self._low) % self.block
        split = max(self._low, self._high - kept)
        if split > self._low:
            self._write(self._memory[self._low : split], self._at)
        at, kept = self._at + split - self._low, self._high - split
        low = place(None if source is None else source - kept, at, period)
        self._memory[low : low + kept] = bytes(self._memory[split : self._high])
        self._at, self._low, self._high = at, low, low + kept


def lanes_in(memory: memoryview, count: int, write: Callable[[memoryview, int], None]) -> list[Lane]:
    """Lanes that share memory, `count` at most: where each would get too little, a single one."""
    size = len(memory) // count // PAGE * PAGE
    if size < _SMALLEST:
        return [Lane(memory, PAGE, write)]
    block = PAGE
    while block * 4 <= size - PAGE and block < _BLOCK:
        block *= 2
    return [Lane(memory[at * size : (at + 1) * size], block, write) for at in range(count)]
