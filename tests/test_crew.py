"""Workers, as threads and as processes: every job done once, every failure heard, nobody left behind."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest

from mapspec.crew import Crew, Post, Processes, Stopped, Tally, Threads
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError

KINDS = ("threads", "processes")
type Work = Callable[[Post[int]], None]


@contextmanager
def crew_of(kind: str, work: Work, count: int = 3) -> Iterator[Crew[int]]:
    if kind == "threads":
        yield Threads(work, "test")
        return
    with Processes(work, count, "test") as crew:
        yield crew


def squares(post: Post[int]) -> None:
    for job in post.jobs():
        post.tell((job, job * job, os.getpid()))


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def children() -> set[int]:
    """The processes that this thread has forked."""
    return set(map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()))


def soon(condition: Callable[[], bool]) -> bool:
    """Whether that comes true within some seconds."""
    end = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_job_is_done_once(kind: str) -> None:
    said: list[Any] = []

    def jobs() -> Iterator[int]:
        said.append("begun")
        yield from range(100)

    with crew_of(kind, squares) as crew:
        crew.run(jobs(), 3, said.append)
        assert said.pop(0) == "begun"
        assert {job: square for job, square, _ in said} == {n: n * n for n in range(100)}
        assert len(said) == 100
        places = {process for _, _, process in said}
        assert (os.getpid() in places) == (kind == "threads")
        # and again with the same workers, and with none to do
        said.clear()
        crew.run(iter([7]), 3, said.append)
        assert [message[:2] for message in said] == [(7, 49)]
        assert {process for _, _, process in said} <= places
        crew.run([], 3, said.append)
    assert not any(alive(process) for process in places - {os.getpid()})


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_are_made_when_somebody_is_about_to_do_them(kind: str) -> None:
    made: list[int] = []
    seen: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    def hear(message: tuple[int, int, int]) -> None:
        seen.append(len(made))

    with crew_of(kind, squares, 2) as crew:
        crew.run(jobs(), 2, hear)
    assert made == list(range(20))
    assert all(number <= heard + 4 for heard, number in enumerate(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_failure_ends_all(kind: str, tmp_path: Path) -> None:
    def work(post: Post[int]) -> None:
        for job in post.jobs():
            if job == 5:
                raise ConvertError(Diagnostic("MS704", "it broke", where="here", help="mend it"))
            while job > 5:
                if post.stopped:
                    (tmp_path / f"stopped{job}").touch()
                    raise Stopped
                time.sleep(0.001)

    with crew_of(kind, work) as crew, pytest.raises(ConvertError, match="it broke") as caught:
        crew.run(range(10), 3, lambda message: None)
    (found,) = caught.value.diagnostics
    assert (found.code, found.where, found.help) == ("MS704", "here", "mend it")
    assert len(list(tmp_path.iterdir())) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_while_jobs_are_made(kind: str) -> None:
    def jobs() -> Iterator[int]:
        yield from range(4)
        raise ConvertError(Diagnostic("MS706", "incomplete", where="t", help="-"))

    said: list[Any] = []
    with crew_of(kind, squares) as crew, pytest.raises(ConvertError, match="incomplete"):
        crew.run(jobs(), 3, said.append)
    assert {message[0] for message in said} <= set(range(4))


def test_an_error_that_nobody_has_foreseen_says_where_it_came_from() -> None:
    def work(post: Post[int]) -> None:
        for _ in post.jobs():
            raise KeyError("what")

    with Processes(work, 2, "test") as crew, pytest.raises(KeyError, match="what") as caught:
        crew.run([1], 2, lambda message: None)
    assert "test_crew.py" in "".join(caught.value.__notes__)

    class OddError(Exception):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(one)

    def odd(post: Post[int]) -> None:
        for _ in post.jobs():
            raise OddError(1, 2)

    with Processes(odd, 2, "test") as crew, pytest.raises(RuntimeError, match="OddError: 1"):
        crew.run([1], 2, lambda message: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_who_hears_may_end_it(kind: str, error: type[BaseException]) -> None:
    """What was told before everybody has stopped is heard, if anybody can."""
    heard: list[int] = []

    def work(post: Post[int]) -> None:
        for job in post.jobs():
            post.tell(job)

    def hear(job: int) -> None:
        if job == 3:
            raise error
        heard.append(job)

    with crew_of(kind, work) as crew, pytest.raises(error):
        crew.run(itertools.count(), 3, hear)
    assert sorted(heard)[:3] == [0, 1, 2]
    assert len(heard) == len(set(heard))


def interrupt_at(line: int) -> Callable[..., Any]:
    """A trace function: interrupts this process before it executes the `line`-th line in mapspec.crew."""
    left, process = itertools.count(line - 1, -1), os.getpid()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if "/mapspec/crew/" not in frame.f_code.co_filename or os.getpid() != process:
            return None
        if event == "line" and next(left) == 0:
            os.kill(process, signal.SIGINT)
        return trace

    return trace


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Fail when that takes longer. Said again each second, and no `Exception`: so nothing in between can keep it."""

    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail("waits forever")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_any_line(kind: str, tmp_path: Path) -> None:
    """Whatever it comes between, it ends the work, and nobody works on or is left behind when it gets through."""

    def work(post: Post[int]) -> None:
        for job in post.jobs():
            (tmp_path / f"busy{job}").touch()
            try:
                post.tell(job)
                time.sleep(0.001)
            finally:
                (tmp_path / f"busy{job}").unlink()

    before, interrupts = (children(), threading.active_count()), 0
    for line in itertools.count(1):
        try:
            with no_longer_than(30), crew_of(kind, work, 2) as crew:
                sys.settrace(interrupt_at(line))
                try:
                    crew.run(range(4), 2, lambda message: None)
                    break
                finally:
                    sys.settrace(None)
        except KeyboardInterrupt:
            interrupts += 1
        assert (children(), threading.active_count()) == before
        assert not any(tmp_path.iterdir())
    assert interrupts == line - 1 > 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def after(seconds: float, *signals: int) -> None:
    """Send this process signals, one each time that so many seconds have passed."""

    def send() -> None:
        for number in signals:
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_waits_for_what_is_in_progress(kind: str, tmp_path: Path) -> None:
    def work(post: Post[int]) -> None:
        for job in post.jobs():
            time.sleep(0.8 if job == 0 else 0.4)
            (tmp_path / str(job)).touch()

    after(0.1, signal.SIGINT)
    with crew_of(kind, work, 2) as crew, pytest.raises(KeyboardInterrupt):
        crew.run(range(10), 2, lambda message: None)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
    time.sleep(0.6)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.parametrize("kind", KINDS)
def test_who_interrupts_again_does_not_wait(kind: str) -> None:
    """A disk that does not answer must not keep anybody."""
    release = threading.Event()

    def work(post: Post[int]) -> None:
        for _ in post.jobs():
            release.wait(20)

    before, began = children(), time.monotonic()
    after(0.2, signal.SIGINT, signal.SIGINT)
    with crew_of(kind, work, 2) as crew, pytest.raises(KeyboardInterrupt):
        crew.run(range(10), 2, lambda message: None)
    assert time.monotonic() - began < 10
    assert children() == before
    release.set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_raises_nothing_ends_nothing(kind: str) -> None:
    """As those of programs that take note of a signal, and look at it when it suits them."""
    said, came = list[Any](), list[int]()

    def work(post: Post[int]) -> None:
        for job in post.jobs():
            time.sleep(0.05)
            post.tell(job)

    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        after(0.1, signal.SIGTERM)
        with crew_of(kind, work, 2) as crew:
            crew.run(range(10), 2, said.append)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(said) == list(range(10))
    assert came == [signal.SIGTERM]


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGSEGV, 3])
def test_a_process_that_is_ended(ended: int) -> None:
    def work(post: Post[int]) -> None:
        for job in post.jobs():
            if job == 4:
                os._exit(3) if ended == 3 else os.kill(os.getpid(), ended)

    with Processes(work, 3, "copy") as crew, pytest.raises(ConvertError) as caught:
        crew.run(range(10), 3, lambda message: None)
    (found,) = caught.value.diagnostics
    assert found.code == "MS708"
    wanted = "with exit status 3" if ended == 3 else f"by signal {int(ended)} ({signal.strsignal(ended)})"
    assert wanted in found.message


def test_fewer_processes_where_no_more_can_be_made() -> None:
    fork, left = os.fork, iter(range(2))

    def limited() -> int:
        if next(left, None) is None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    said: list[Any] = []
    with mock.patch("os.fork", limited):
        with Processes(squares, 5, "copy") as crew:
            crew.run(range(10), 5, said.append)
        assert len(said) == 10
        with pytest.raises(ConvertError, match="Resource temporarily unavailable") as caught:
            Processes(squares, 5, "copy")
    assert caught.value.diagnostics[0].code == "MS708"


def test_those_that_are_too_many_go() -> None:
    with Processes(squares, 4, "copy") as crew:
        before = children()
        said: list[Any] = []
        crew.run(range(10), 2, said.append)
        assert len(children() & before) == len(before) - 2
    assert len(said) == 10


PARENT = """
import os, sys, time
from mapspec.crew import Processes

def work(post):
    for job in post.jobs():
        post.tell(os.getpid())
        while True:
            time.sleep(0.01)

with Processes(work, 2, "copy") as crew:
    crew.run(range(2), 2, lambda process: print(process, flush=True))
"""


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_their_parent(ended: int) -> None:
    """Neither do they keep its locks."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, workers))
        for worker in workers:
            os.kill(worker, signal.SIGINT)  # as from a terminal: for the parent to decide
        time.sleep(0.1)
        assert all(map(alive, workers))
        parent.send_signal(ended)
        parent.wait(20)
    assert soon(lambda: not any(map(alive, workers)))


def test_workers_hold_no_file_of_their_parent(tmp_path: Path) -> None:
    def work(post: Post[int]) -> None:
        for _ in post.jobs():
            post.tell(sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()))

    said: list[list[int]] = []
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Processes(work, 1, "copy") as crew:
            crew.run([1], 1, said.append)
            held = said[0]
            # stdin, stdout, stderr, the pipe, and the folder that is being listed
            assert len(held) <= 5
            lock.close()
            with (tmp_path / "lock").open("w") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Telling:
    """A post that notes what it is told."""

    def __init__(self) -> None:
        self.stopped = False
        self.told: list[tuple[str, int]] = []

    def jobs(self) -> Iterator[Any]:
        return iter(())

    def tell(self, message: Any) -> None:
        self.told.append(message)


def test_a_tally_puts_together_what_comes_in_quick_succession(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    post = Telling()
    tally = Tally(post)
    for _ in range(10):
        tally.add("a", 5)
    assert post.told == [("a", 5)]
    now += 1
    tally.add("a", 5)
    assert post.told == [("a", 5), ("a", 50)]
    tally.add("a", 1)
    tally.add("b", 2)
    assert post.told[2:] == [("a", 1)]
    tally.flush()
    tally.flush()
    assert post.told[3:] == [("b", 2)]
    post.stopped = True
    with pytest.raises(Stopped):
        tally.add("b", 1)
