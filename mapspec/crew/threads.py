"""Workers that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mapspec.crew.post import Post, Stopped
from mapspec.crew.signals import deferred

__all__ = ["Threads"]


class Threads[Job]:
    """See `mapspec.crew.Crew`.

    Args:
        work: what each worker calls.
        name: of the threads, with a number behind.
    """

    def __init__(self, work: Callable[[Post[Job]], None], name: str) -> None:
        self._work, self._name = work, name

    def run(self, jobs: Iterable[Job], count: int, hear: Callable[[Any], None]) -> None:
        """See `Crew`."""
        place = _Place(iter(jobs), hear)
        names = [f"{self._name}-{number}" for number in range(count)]
        threads = [threading.Thread(target=_guarded, args=(self._work, place), name=name) for name in names]
        with deferred(place.end):
            try:
                for thread in threads:
                    thread.start()
            except BaseException:
                place.stopped = True
                raise
            finally:
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
        if place.failure is not None:
            raise place.failure


class _Place[Job]:
    """The post that all threads share."""

    def __init__(self, jobs: Iterator[Job], hear: Callable[[Any], None]) -> None:
        self._jobs, self._hear = jobs, hear
        self._lock = threading.Lock()
        self.stopped = False
        self.failure: BaseException | None = None

    def end(self) -> None:
        """Have all threads end after their current block. Who insists on it is not kept waiting for that."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def jobs(self) -> Iterator[Job]:
        while not self.stopped:
            with self._lock:
                job = next(self._jobs, None)
            if job is None:
                return
            yield job

    def tell(self, message: Any) -> None:
        with self._lock:
            self._hear(message)

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self.failure = self.failure or error
        self.stopped = True


def _guarded[Job](work: Callable[[Post[Job]], None], place: _Place[Job]) -> None:
    try:
        work(place)
    except Stopped:
        return
    except BaseException as error:
        place.failed(error)
