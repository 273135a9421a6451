"""Conversions whose workers are processes: the same bytes, the same findings, nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted import Interrupter
from test_convert import there_and_back
from test_crew import children
from test_resume import SLOW, tree

import mapspec.recruit
from mapspec.convert import Output, convert
from mapspec.errors import ConvertError, MapspecError
from mapspec.intact import check_intact
from mapspec.journal import finished_in
from mapspec.prepare import Request
from mapspec.progress import NoProgress
from mapspec.publish import leftovers
from mapspec.recruit import recruited

MB = 10**6


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every checkpoint were large."""
    monkeypatch.setattr("mapspec.recruit._APART", 1)


@pytest.fixture(scope="module")
def checkpoints(memory: Path) -> Path:
    """`hf`, `megatron` converted from it, and `back`, by threads."""
    return there_and_back(memory / "by-threads", 3)


class Watch(NoProgress):
    """Notes the workers that there are while bytes are copied, and does something when it begins."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.then, self.workers, self.bytes, self.total = then, set[int](), 0, 0

    def start(self, total: int) -> None:
        self.total, self.workers = total, children()
        self.then()

    def advance(self, nbytes: int, label: str) -> None:
        self.bytes += nbytes


@pytest.mark.parametrize("way", ["hf", "megatron"])
def test_the_same_bytes(checkpoints: Path, tmp_path: Path, apart: None, way: str) -> None:
    before, watch = children(), Watch()
    done = convert(Request(checkpoints / way), Output(tmp_path / "out", threads=3), watch)
    assert len(watch.workers - before) == 3
    assert watch.bytes == watch.total == done.copied.nbytes
    assert children() == before
    wanted = tree(checkpoints / ("megatron" if way == "hf" else "back"))
    assert tree(tmp_path / "out") == wanted
    assert check_intact(tmp_path / "out").findings == ()


def test_a_source_that_ends_early(checkpoints: Path, tmp_path: Path, apart: None) -> None:
    messages, before = [], children()
    for threads in (1, 3):
        source = Path(shutil.copytree(checkpoints / "hf", tmp_path / f"hf{threads}"))
        shard = source / "model-00002-of-00003.safetensors"
        cut_off = Watch(lambda shard=shard: os.truncate(shard, 3000))
        with pytest.raises(ConvertError) as caught:
            convert(Request(source), Output(tmp_path / "out", threads=threads), cut_off)
        (found,) = caught.value.diagnostics
        messages.append((found.code, found.message))
        assert found.notes[0].message.startswith("while reading `backbone.")
        assert not (tmp_path / "out").exists()
    assert messages[0][0] == messages[1][0] == "MS703"
    assert children() == before


def test_a_worker_that_is_killed(checkpoints: Path, tmp_path: Path, apart: None) -> None:
    """Its files are lost, those of others stay and are not written again."""

    class Killer(Watch):
        def advance(self, nbytes: int, label: str) -> None:
            super().advance(nbytes, label)
            for worker in self.workers:
                os.kill(worker, signal.SIGKILL)

    output = Output(tmp_path / "out", threads=2)
    with pytest.raises(ConvertError) as caught:
        convert(Request(checkpoints / "hf"), output, Killer())
    assert caught.value.diagnostics[0].code == "MS708"
    assert not output.destination.exists()
    convert(Request(checkpoints / "hf"), Output(tmp_path / "out", threads=2, resume=True))
    assert tree(output.destination) == tree(checkpoints / "megatron")


def test_an_interrupt(checkpoints: Path, tmp_path: Path, apart: None) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        convert(Request(checkpoints / "hf"), Output(tmp_path / "out", threads=2), Watch(interrupt))
    assert children() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_for_the_whole_group(checkpoints: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As from a terminal or a batch system: the command decides, and its workers end in order."""
    script = SLOW.replace("from mapspec.cli", "import mapspec.recruit\nmapspec.recruit._APART = 1\nfrom mapspec.cli")
    script = script.replace("0.05", "0.3")  # two at a time are quick
    command = ["convert", checkpoints / "hf", tmp_path / "out", "--threads", "2", "--progress", "none"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 60
        while not any(finished_in(path) for path in leftovers(tmp_path / "out")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert len(workers) == 3  # two that copy, and the one that has read early
        os.killpg(child.pid, number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.startswith("interrupted; nothing was published\n")
    assert "are finished and kept in" in said
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert convert(Request(checkpoints / "hf"), Output(tmp_path / "out", resume=True)).kept
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")


CUT_OFF = """\
import os, signal
from multiprocessing.connection import Connection
import mapspec.recruit
from mapspec.cli import main
mapspec.recruit._APART = 1
parent, real = os.getpid(), Connection._send_bytes
def send(connection, message):
    if os.getpid() == parent:
        signal.raise_signal(signal.SIGINT)
    real(connection, message)
Connection._send_bytes = send
main()
"""


def test_an_interrupt_while_a_job_is_sent(checkpoints: Path, tmp_path: Path) -> None:
    """The interpreter has to live through it: it once died of an error of its own at the very end."""
    command = ["convert", checkpoints / "hf", tmp_path / "out", "--threads", "2", "--progress", "none"]
    done = subprocess.run([sys.executable, "-c", CUT_OFF, *command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted; nothing was published\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["hf", "megatron"])
def test_killed_at_any_moment(
    checkpoints: Path, tmp_path: Path, apart: None, interrupter: Interrupter, way: str
) -> None:
    """kill -9 of the command while its workers write: a resumed run gives the same bytes, whoever was faster."""
    source, output = checkpoints / way, Output(tmp_path / "out", threads=2)
    expected = tree(checkpoints / ("megatron" if way == "hf" else "back"))
    killed = 0
    for moment in random.Random(way).sample(range(1, 60), 12):
        ended = interrupter.convert(moment, source, output.destination, threads=2, apart=True)
        killed += ended is None
        if ended is None:
            assert not output.destination.exists()
            convert(Request(source), Output(output.destination, threads=2, resume=True))
        assert tree(output.destination) == expected, moment
        shutil.rmtree(output.destination)
        for left in leftovers(output.destination):
            shutil.rmtree(left)
    assert killed >= 6


def test_a_source_with_links_into_itself(tmp_path: Path, apart: None) -> None:
    """Its files are counted once, whatever paths lead to them."""
    source = tmp_path / "hf"
    source.mkdir()
    (source / "model.safetensors").write_bytes(bytes(10))
    for name in ("here", "again"):
        (source / name).symlink_to(".")
    script = "import sys, pathlib, mapspec.recruit as r; print(r._bytes_below(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", script, source], capture_output=True, text=True, timeout=20, check=True
    )
    assert int(done.stdout) == 10


def test_when_workers_are_processes(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crew(request: Request, output: Output) -> bool:
        with recruited(request, output) as found:
            return found is not None

    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=2)
    assert not crew(request, output)  # small
    monkeypatch.setattr("mapspec.recruit._APART", 1)
    assert crew(request, output)
    assert crew(Request(str(checkpoints / "hf"), io="threads=4"), Output(tmp_path / "out"))
    assert not crew(request, Output(tmp_path / "out", threads=1))
    assert not crew(request, Output(tmp_path / "out", threads=2, max_memory=80 * MB))
    assert crew(request, Output(tmp_path / "out", threads=2, max_memory=120 * MB))
    assert not crew(Request("memory://bucket/hf"), output)
    assert not crew(Request(checkpoints / "hf", reference="memory://bucket/hf"), output)
    assert not crew(Request(tmp_path / "nothing"), output)
    with pytest.raises(MapspecError, match="MS793"):
        crew(Request(checkpoints / "hf", io="fast"), Output(tmp_path / "out"))
    monkeypatch.setattr(mapspec.recruit, "can_fork", lambda: False)
    assert not crew(request, output)
