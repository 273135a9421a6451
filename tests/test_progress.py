"""How far a copy has come: counted right, said now and then, each kind of reader served."""

from __future__ import annotations

import io
import itertools
import json
import mmap
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from mapspec.amounts import human_bytes, human_seconds
from mapspec.progress import JsonProgress, Meter, Mode, NoProgress, PlainProgress, State, progress_for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr("mapspec.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mapspec.progress._resident", lambda: 210_000_000)
    return now


def test_lines_for_a_log(clock: list[float]) -> None:
    stream = io.StringIO()
    plain = PlainProgress(stream)
    plain.start(8_000_000_000)
    for _ in range(12):
        clock[0] += 1
        plain.advance(100_000_000, "a.safetensors")
    plain.finish()
    assert stream.getvalue().splitlines() == [
        "  6 %  500.0 MB of 8.0 GB  100.0 MB/s  1:15 min left  210.0 MB of memory  a.safetensors",
        " 12 %  1.0 GB of 8.0 GB  100.0 MB/s  1:10 min left  210.0 MB of memory  a.safetensors",
        " 15 %  1.2 GB of 8.0 GB  100.0 MB/s  12 s  210.0 MB of memory",
    ]
    stream = io.StringIO()
    nothing = PlainProgress(stream)
    nothing.start(0)
    nothing.advance(0, "a")
    nothing.finish()
    assert stream.getvalue() == "100 %  0 B of 0 B  0 B/s  0.0 s  210.0 MB of memory\n"


def test_lines_for_machines_are_as_documented(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = JsonProgress(stream)
    lines.start(10)
    clock[0] += 2
    lines.advance(4, 'odd "name"\n')
    lines.advance(1, "b")
    clock[0] += 2
    lines.finish()
    start, progress, end = map(json.loads, stream.getvalue().splitlines())
    common = {"total": 10, "rss": 210_000_000}
    assert start == {**common, "event": "start", "bytes": 0, "rate": 0, "eta_s": None, "file": None, "seconds": 0.0}
    assert progress == {
        **common, "event": "progress", "bytes": 4, "rate": 2, "eta_s": 3.0, "file": 'odd "name"\n', "seconds": 2.0,
    }  # fmt: skip
    assert end == {**common, "event": "end", "bytes": 5, "rate": 1, "eta_s": 4.0, "file": None, "seconds": 4.0}
    page = (Path(__file__).parents[1] / "docs/convert.md").read_text()
    table = page.partition("| key of a line |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(end)


def test_the_rate_follows_the_last_ten_seconds(clock: list[float]) -> None:
    seen: list[State] = []

    class Watch(Meter):
        def show(self, event: str, state: State) -> None:
            seen.append(state)

    watch = Watch(1.0)
    watch.start(100_000)
    for rate in itertools.chain([1000] * 20, [10] * 15):
        clock[0] += 1
        watch.advance(rate, "a")
    assert seen[20].rate == 1000
    assert seen[20].eta_s == 80
    assert seen[-1].rate == 10
    watch.finish()
    assert seen[-1].rate == pytest.approx(20_150 / 35)


def test_memory_is_that_of_this_process() -> None:
    seen: list[int] = []

    class Watch(Meter):
        def show(self, event: str, state: State) -> None:
            seen.append(state.rss)

    watch = Watch(1.0)
    watch.start(0)
    # From the system: the allocator may have as much left of earlier tests, which is in memory already.
    kept = mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(kept), mmap.PAGESIZE):
        kept[at] = 1
    watch.finish()
    assert 45e6 < seen[1] - seen[0] < 80e6
    assert len(kept) == 50_000_000


def test_the_display_follows_the_stream() -> None:
    stream = io.StringIO()
    assert type(progress_for(stream)) is PlainProgress
    assert type(progress_for(stream, "plain")) is PlainProgress
    assert type(progress_for(stream, "json")) is JsonProgress
    assert type(progress_for(stream, "none")) is NoProgress
    assert type(progress_for(stream, "json", rank=1)) is NoProgress
    assert type(progress_for(None)) is NoProgress
    assert "rich" not in _modules()


def test_the_bar(clock: list[float]) -> None:
    stream = io.StringIO()
    with mock.patch.object(stream, "isatty", return_value=True), mock.patch.dict("os.environ", {"COLUMNS": "150"}):
        bar = progress_for(stream)
        assert type(progress_for(stream, "plain")) is PlainProgress
        bar.start(4_000_000)
        clock[0] += 1
        worker = threading.Thread(target=bar.advance, args=(1_000_000, "[a]"))
        worker.start()
        worker.join()
        bar.finish()
    assert "1.0 MB of 4.0 MB  1.0 MB/s  3.0 s left  210.0 MB of memory [a]" in stream.getvalue()


class Gone(io.StringIO):
    """A stream whose reader or disk gives out after a while."""

    def __init__(self, error: Exception, lines: int, tty: bool) -> None:
        super().__init__()
        self._error, self._left, self._tty = error, lines, tty

    def isatty(self) -> bool:
        return self._tty

    def write(self, text: str) -> int:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return len(text)


@pytest.mark.parametrize("mode", ["plain", "json", "auto"])
@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed")]
)
def test_a_display_that_nobody_sees_does_not_end_the_copy(
    clock: list[float], mode: Mode, lines: int, error: Exception
) -> None:
    shown = progress_for(Gone(error, lines, tty=mode == "auto"), mode)
    shown.start(100)
    for _ in range(3):
        clock[0] += 10
        shown.advance(10, "a")
    shown.finish()


def _modules() -> list[str]:
    code = "import sys, mapspec.progress, mapspec.copy, mapspec.publish; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_amounts() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 1_234_567, 5e9, 2e12)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 GB", "2.0 TB",
    ]  # fmt: skip
    assert [human_seconds(s) for s in (0.04, 9.9, 10.4, 59.6, 187, 3599.7, 7500)] == [
        "0.0 s", "9.9 s", "10 s", "1:00 min", "3:07 min", "1:00 h", "2:05 h",
    ]  # fmt: skip
