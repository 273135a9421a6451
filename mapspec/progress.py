"""How far a copy has come, for people and for machines. The core only knows the protocol."""

from __future__ import annotations

import json
import sys
import time
from typing import IO, Literal, Protocol

__all__ = ["JsonProgress", "NoProgress", "PlainProgress", "Progress", "progress_for"]

type Mode = Literal["auto", "plain", "json", "none"]


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


class PlainProgress:
    """A line now and then, for logs.

    Args:
        stream: where to.
        every: seconds between lines. A copy that is over sooner gets its last line only.
    """

    def __init__(self, stream: IO[str] | None = None, every: float = 5.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every = every
        self._total = self._done = 0
        self._began = self._said = 0.0
        self._label = ""

    def start(self, total_bytes: int) -> None:
        """Begin to count."""
        self._total, self._done = total_bytes, 0
        self._began = self._said = time.monotonic()

    def advance(self, nbytes: int, label: str) -> None:
        """Count, and say so if the last line is old enough."""
        self._done += nbytes
        self._label = label
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            self._say(self._line(now))

    def finish(self) -> None:
        """Say how far it came."""
        self._label = ""
        self._say(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        share = 100 * self._done // self._total if self._total else 100
        rate = self._done / max(now - self._began, 1e-9)
        text = f"{share:3d} %  {_size(self._done)} of {_size(self._total)}  {_size(rate)}/s"
        return f"{text}  {self._label}".rstrip()

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class JsonProgress(PlainProgress):
    """The same as JSON lines: `event`, `bytes`, `total_bytes`, `seconds`, and `file` while one is being written."""

    def _line(self, now: float) -> str:
        line: dict[str, object] = {"event": "progress", "bytes": self._done, "total_bytes": self._total}
        line["seconds"] = round(now - self._began, 3)
        if self._label:
            line["file"] = self._label
        return json.dumps(line)


def progress_for(stream: IO[str], mode: Mode = "auto") -> Progress:
    """The progress display for a stream: with `auto` a bar on a terminal, lines elsewhere."""
    if mode == "none":
        return NoProgress()
    if mode == "json":
        return JsonProgress(stream, every=1.0)
    if mode == "auto" and stream.isatty():
        return _bar(stream)
    return PlainProgress(stream)


def _bar(stream: IO[str]) -> Progress:
    # rich takes a tenth of a second to import, which commands without a bar need not spend
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(file=stream),
        transient=True,
    )

    class Bar:
        """A bar that leaves nothing behind."""

        def start(self, total_bytes: int) -> None:
            """Show the bar."""
            bar.add_task("", total=total_bytes)
            bar.start()

        def advance(self, nbytes: int, label: str) -> None:
            """Move the bar."""
            bar.update(bar.task_ids[0], advance=nbytes, description=label)

        def finish(self) -> None:
            """Take the bar away."""
            bar.stop()

    return Bar()


def _size(nbytes: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
