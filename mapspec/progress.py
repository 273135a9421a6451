"""How far a copy has come, for people and for machines. The core only knows the protocol."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from mapspec.amounts import human_bytes, human_seconds

__all__ = ["JsonProgress", "Meter", "Mode", "NoProgress", "PlainProgress", "Progress", "State", "progress_for"]

type Mode = Literal["auto", "plain", "json", "none"]

_WINDOW = 10.0  # seconds over which the rate is averaged
_MEMORY_S = 0.9  # between two looks at memory, which take half a millisecond for each worker


class Progress(Protocol):
    """Told about a copy as it goes. Calls come one at a time, but from different threads."""

    def start(self, total_bytes: int) -> None:
        """The copy begins; `total_bytes` will be written."""

    def advance(self, nbytes: int, label: str) -> None:
        """`nbytes` more have been written, to the file `label`."""

    def finish(self) -> None:
        """The copy is over, well or badly. Always called once after `start`."""


class NoProgress:
    """Says nothing."""

    def start(self, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, nbytes: int, label: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class State:
    """A copy at one moment. The fields are those of a JSON line, docs/convert.md describes them.

    Attributes:
        bytes, total: written so far, and to be written.
        rate: bytes per second over the last ten seconds; at the end over the whole copy.
        eta_s: seconds left at that rate; `None` while nothing has been written.
        file: the file that was written to last; `None` at the beginning and the end.
        rss: resident memory of this process, in bytes, with what is its workers' own.
        seconds: since the beginning.
    """

    bytes: int
    total: int
    rate: float
    eta_s: float | None
    file: str | None
    rss: int
    seconds: float


class Meter:
    """Counts, and says now and then how far the copy is; `show` is what a display adds.

    A display that nobody can see any more (a log on a full disk, a pipe or terminal that is gone) falls silent, because
    the copy does not depend on it.

    Args:
        every: least number of seconds between two calls of `show`.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._silent = False
        self._total = self._done = 0
        self._began = self._said = 0.0
        self._rss, self._looked = 0, -_MEMORY_S
        self._marks: deque[tuple[float, int]] = deque()

    def start(self, total_bytes: int) -> None:
        """Begin to count."""
        self._total, self._done = total_bytes, 0
        self._began = self._said = time.monotonic()
        self._marks = deque([(self._began, 0)])
        self._tell("start", self._state(self._began, None))

    def advance(self, nbytes: int, label: str) -> None:
        """Count, and say so if that was long enough ago."""
        self._done += nbytes
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            self._marks.append((now, self._done))
            while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
                self._marks.popleft()
            self._tell("progress", self._state(now, label))

    def finish(self) -> None:
        """Say how far it came."""
        self._marks = deque([(self._began, 0)])
        self._tell("end", self._state(time.monotonic(), None))

    def _tell(self, event: str, state: State) -> None:
        if self._silent:
            return
        try:
            self.show(event, state)
        except (OSError, ValueError):  # as files that were closed raise it
            self._silent = True

    def _state(self, now: float, file: str | None) -> State:
        then, had = self._marks[0]
        rate = (self._done - had) / max(now - then, 1e-9)
        left = (self._total - self._done) / rate if rate else None
        if file is None or now - self._looked >= _MEMORY_S:
            self._rss, self._looked = _resident(), now
        return State(self._done, self._total, rate, left, file, self._rss, now - self._began)

    def show(self, event: str, state: State) -> None:
        """Tell somebody. `event` is `start`, `progress` or `end`."""


class PlainProgress(Meter):
    """A line now and then, for logs.

    Args:
        stream: where to.
        every: seconds between lines. A copy that is over sooner gets its last line only.
    """

    def __init__(self, stream: IO[str] | None = None, every: float = 5.0) -> None:
        super().__init__(every)
        self._stream = stream if stream is not None else sys.stderr

    def show(self, event: str, state: State) -> None:
        """Write the line."""
        if event == "start":
            return
        share = 100 * state.bytes // state.total if state.total else 100
        line = f"{share:3d} %  {human_bytes(state.bytes)} of {human_bytes(state.total)}  {human_bytes(state.rate)}/s"
        if event == "end":
            line += f"  {human_seconds(state.seconds)}"
        elif state.eta_s is not None:
            line += f"  {human_seconds(state.eta_s)} left"
        line += f"  {human_bytes(state.rss)} of memory"
        self._stream.write(f"{line}  {state.file}\n" if state.file else f"{line}\n")
        self._stream.flush()


class JsonProgress(Meter):
    """JSON lines for machines: `event` and the fields of `State`."""

    def __init__(self, stream: IO[str] | None = None, every: float = 1.0) -> None:
        super().__init__(every)
        self._stream = stream if stream is not None else sys.stderr

    def show(self, event: str, state: State) -> None:
        """Write the line."""
        line = {
            "event": event, "bytes": state.bytes, "total": state.total, "rate": round(state.rate),
            "eta_s": None if state.eta_s is None else round(state.eta_s, 1), "file": state.file, "rss": state.rss,
            "seconds": round(state.seconds, 3),
        }  # fmt: skip
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def progress_for(stream: IO[str] | None, mode: Mode = "auto", *, rank: int = 0) -> Progress:
    """The progress display for a stream: with `auto` a bar on a terminal, lines elsewhere.

    Args:
        stream: usually stderr; `None` where Python was started without one.
        mode: what the user asked for.
        rank: of this process among those that share the work; only the first shows anything.
    """
    if stream is None or mode == "none" or rank > 0:
        return NoProgress()
    if mode == "json":
        return JsonProgress(stream)
    if mode == "auto" and stream.isatty():
        return _bar(stream)
    return PlainProgress(stream)


def _bar(stream: IO[str]) -> Progress:
    # rich takes a tenth of a second to import, which commands without a bar need not spend
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    class Screen(Console):
        """A console that lets its user know when nobody reads it; rich would end the process."""

        def on_broken_pipe(self) -> None:
            """Go on with the exception that is being handled."""
            raise

    bar = RichProgress(
        BarColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        TextColumn("{task.description}", markup=False),
        console=Screen(file=stream),
        transient=True,
    )

    class Bar(Meter):
        """A bar that leaves nothing behind."""

        def show(self, event: str, state: State) -> None:
            """Draw the bar; its own thread does so ten times a second."""
            left = "" if state.eta_s is None else f"{human_seconds(state.eta_s)} left  "
            numbers = (
                f"{human_bytes(state.bytes)} of {human_bytes(state.total)}  {human_bytes(state.rate)}/s  "
                f"{left}{human_bytes(state.rss)} of memory"
            )
            if event == "start":
                bar.add_task("", total=state.total, numbers=numbers)
                bar.start()
            elif event == "end":
                bar.stop()
            else:
                bar.update(bar.task_ids[-1], completed=state.bytes, description=state.file or "", numbers=numbers)

    return Bar(0.1)


def _resident() -> int:
    """Resident memory of this process in bytes, with what is its workers' own; 0 where the system does not say."""
    try:
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
    try:
        workers = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    except OSError:
        return own
    return own + sum(map(_unshared, workers))


def _unshared(process: str) -> int:
    """Memory of a process in bytes that it shares with no other; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
