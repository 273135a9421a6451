"""What a crew and a worker know of each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

__all__ = ["Crew", "Post", "Stopped", "Tally"]

# Seconds between two messages about progress.
_OFTEN = 0.05


class Stopped(Exception):  # noqa: N818
    """Another worker has met with a failure; this one ends without one of its own."""


class Post[Job](Protocol):
    """A worker's place: it takes jobs here, and says what it has done."""

    @property
    def stopped(self) -> bool:
        """Whether everybody shall end."""

    def jobs(self) -> Iterator[Job]:
        """What this worker is to do, until there is nothing left. Raises `Stopped`."""

    def tell(self, message: Any) -> None:
        """Have `message` heard where the crew was put to work; it can be pickled. Raises `Stopped`."""


class Crew[Job](Protocol):
    """Workers who all do the same, as threads or as processes."""

    def run(self, jobs: Iterable[Job], count: int, hear: Callable[[Any], None]) -> None:
        """Have the jobs done, and wait for that. Raises the first failure of any worker.

        Args:
            jobs: given out from the first to the last. Each is made when somebody is about to do it.
            count: how many workers take part at most; more are not needed later either.
            hear: called with what workers tell, one message at a time, but from different threads; what it raises ends
                all of them.
        """


class Tally:
    """Bytes that are done, for whoever shows progress: told now and then, since a message takes longer than a block.

    Args:
        post: told `(file, bytes)`.
    """

    def __init__(self, post: Post[Any]) -> None:
        self._post = post
        self._file, self._nbytes, self._told = "", 0, 0.0

    def add(self, file: str, nbytes: int) -> None:
        """`nbytes` more of `file` are done. Raises `Stopped`."""
        if self._post.stopped:
            raise Stopped
        if file != self._file:
            self.flush()
            self._file = file
        self._nbytes += nbytes
        if time.monotonic() - self._told >= _OFTEN:
            self.flush()

    def flush(self) -> None:
        """Tell what has not been told."""
        if self._nbytes:
            self._post.tell((self._file, self._nbytes))
            self._nbytes, self._told = 0, time.monotonic()
