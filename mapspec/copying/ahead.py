"""Asking for bytes before they are needed, where every request takes its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from mapspec.io.remote import RemotePath

__all__ = ["Ahead", "Expecting", "expecting"]

# Ranges of a file with less than this between them are asked for together, since a request costs more than that.
_GAP = 1 << 17
_MOST_STEPS = 1024
_TURNS = 16  # how many files may be read by turns for ranges of each still to be put together


class Expecting(Protocol):
    """Source files that can be told what will be read."""

    @property
    def window(self) -> int:
        """How many bytes ahead it is to be told; 0 where that is of no use."""

    def expect(self, file: str, offset: int, length: int) -> None:
        """`length` bytes from `offset` on will be read, after everything that was expected before."""


def expecting[T](steps: Iterable[T], files: Expecting) -> Iterator[T]:
    """The same steps; reads of those that come within `files.window` bytes are announced.

    A step that reads one range is the tuple (anything, file or `None`, offset, length); of others nothing is known.
    """
    return _announced(steps, files) if files.window else iter(steps)


def _announced[T](steps: Iterable[T], files: Expecting) -> Iterator[T]:
    waiting: deque[tuple[T, int]] = deque()
    held = 0
    for step in steps:
        nbytes = 0
        if isinstance(step, tuple) and len(step) == 4 and step[1] is not None:
            _, file, offset, nbytes = step
            files.expect(file, offset, nbytes)
        waiting.append((step, nbytes))
        held += nbytes
        while held > files.window or len(waiting) > _MOST_STEPS:
            first, nbytes = waiting.popleft()
            held -= nbytes
            yield first
    yield from (step for step, _ in waiting)


@dataclass(slots=True)
class _Range:
    """Bytes of a file that are asked for in one request; `left` of them are still to be read."""

    path: RemotePath
    start: int
    stop: int
    left: int
    answer: Future[bytes] | None = None

    def holds(self, path: RemotePath, offset: int) -> bool:
        return self.start <= offset < self.stop and self.path == path


class Ahead:
    """Ranges of remote files, several on their way at a time. For one thread.

    Args:
        read: most bytes of one request.
        depth: requests on their way, or waiting to be read, at most; a few more where files are read by turns.
    """

    def __init__(self, read: int, depth: int) -> None:
        self._read, self._depth = read, depth
        self._expected: deque[_Range] = deque()
        self._asked: list[_Range] = []
        self._pool = ThreadPoolExecutor(max(1, depth), thread_name_prefix="mapspec-ahead")

    def expect(self, path: RemotePath, offset: int, length: int) -> None:
        """These bytes will be read, after all that was expected before."""
        for near in list(self._expected)[-_TURNS:]:
            fits = 0 <= offset - near.stop <= _GAP and offset + length - near.start <= self._read
            if fits and near.path == path:
                near.stop, near.left = offset + length, near.left + length
                return
        for start in range(offset, offset + length, self._read):
            stop = min(start + self._read, offset + length)
            self._expected.append(_Range(path, start, stop, stop - start))
        self._ask()

    def read_into(self, view: memoryview, path: RemotePath, offset: int) -> int:
        """Fill the beginning of `view`; how many bytes, 0 where the file ends. Raises `OSError`."""
        found = self._find(path, offset)
        if found is None:
            data = path.store.fetch(path.key, offset, len(view))
        else:
            assert found.answer is not None
            data = found.answer.result()[offset - found.start : offset - found.start + len(view)]
            found.left -= len(data)
            if found.left <= 0 or not data:
                self._asked.remove(found)
                self._ask()
        view[: len(data)] = data
        return len(data)

    def _find(self, path: RemotePath, offset: int) -> _Range | None:
        for one in self._asked:
            if one.holds(path, offset):
                return one
        for one in self._expected:
            if one.holds(path, offset):
                self._expected.remove(one)
                self._send(one)
                return one
        return None

    def _ask(self) -> None:
        while self._expected and len(self._asked) < self._depth:
            self._send(self._expected.popleft())

    def _send(self, one: _Range) -> None:
        one.answer = self._pool.submit(one.path.store.fetch, one.path.key, one.start, one.stop - one.start)
        self._asked.append(one)

    def close(self) -> None:
        """Give up what is on its way."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._expected.clear()
        self._asked.clear()
