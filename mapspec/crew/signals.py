"""Interrupts that wait until things are in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

__all__ = ["deferred"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred(then: Callable[[], None]) -> Iterator[None]:
    """Raise at the end what handlers of signals have raised meanwhile, a `KeyboardInterrupt` mostly.

    In the main thread it could come between any two instructions, such as those that take a message and that note whose
    it was. Elsewhere nothing of the kind is raised, and nothing is done here.

    Args:
        then: called at once when a handler raises, to bring about the end. What it raises itself is not put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    with ExitStack() as stack:
        stack.callback(_raise_first, raised)
        for number in _ENDING:
            if callable(handler := signal.getsignal(number)):
                stack.callback(signal.signal, number, handler)
                signal.signal(number, _patient(handler, raised, then))
        yield


def _patient(
    handler: Callable[[int, FrameType | None], Any], raised: list[BaseException], then: Callable[[], None]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            then()

    return handle


def _raise_first(raised: list[BaseException]) -> None:
    if raised:
        raise raised[0]
