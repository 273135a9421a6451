"""Threads that work through one queue: the first failure ends them all, and is raised where they were started."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

__all__ = ["Crew", "Stopped"]


class Stopped(Exception):  # noqa: N818
    """Another thread has met with a failure; this one ends without one of its own."""


class Crew[Job]:
    """A queue and the threads that take from it.

    Args:
        jobs: taken from the first to the last.
        name: of the threads, with a number behind.
    """

    def __init__(self, jobs: Iterable[Job], name: str) -> None:
        self.lock = threading.Lock()
        self._jobs, self._name = deque(jobs), name
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    @property
    def stopped(self) -> bool:
        """Whether everybody shall end."""
        return self._stop.is_set()

    def jobs(self) -> Iterator[Job]:
        """What this thread is to do, until there is nothing left or the crew is stopped."""
        while not self._stop.is_set():
            try:
                job = self._jobs.popleft()
            except IndexError:
                return
            yield job

    def run(self, count: int, work: Callable[[], None]) -> None:
        """Have `count` threads call `work`, and wait for them. Raises the first failure of any."""
        threads = [threading.Thread(target=self._guarded, args=(work,), name=f"{self._name}-{n}") for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            # An interrupt arrives here, in the main thread: the others end after their current block.
            self._stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            return
        except BaseException as error:
            with self.lock:
                self._failure = self._failure or error
            self._stop.set()
