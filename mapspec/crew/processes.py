"""Workers that are processes, forked from this one.

Threads share the interpreter's lock. After each system call a worker waits for it while another works out what comes
next, and waking it up takes longer than that: between blocks of a megabyte it cost a fifth of a copy's time on two
cores. Processes wait for nobody.

They are forked before there is much in memory, since every page that parent or child write to from then on is there
twice. So jobs are sent to them. A worker asks for a job, tells what it has done, and says at last how it ended, each
over a pipe of its own. It is killed when the parent is: nobody would hear of its work, and others may soon write where
it does.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Literal, Self

from mapspec.crew.post import Post, Stopped
from mapspec.crew.signals import deferred
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError

__all__ = ["Processes", "can_fork"]

type _Kind = Literal["next", "told", "failed", "ended"]

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Looked up here: in a forked process the loader may be locked by a thread that is not there.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def can_fork() -> bool:
    """Whether workers can be processes here: only Linux ends them with their parent."""
    return sys.platform == "linux"


class Processes[Job]:
    """See `mapspec.crew.Crew`. Each worker serves one run after the other. A context: they are gone when it is left.

    Args:
        work: what each worker calls. What it does is seen by itself alone, but for files and for what it tells.
        count: how many workers there are; fewer where the system refuses to make more.
        name: what they do, for messages.

    Raises:
        ConvertError: none could be made (MS708).
    """

    def __init__(self, work: Callable[[Post[Job]], None], count: int, name: str) -> None:
        self._name = name
        self._stop = mmap.mmap(-1, 1)  # shared with the workers; not 0 when they shall end
        self._workers: dict[Connection, int] = {}
        self._idle: set[Connection] = set()
        self._failure: BaseException | None = None
        try:
            with deferred(self._end):
                self._make(work, count)
        except BaseException:
            self.__exit__()
            raise

    def _make(self, work: Callable[[Post[Job]], None], count: int) -> None:
        while len(self._workers) < count:
            try:
                self._fork(work)
            except OSError as error:
                if not self._workers:
                    message = f"no process could be started: {error.strerror}"
                    help_ = "raise the limit of processes or memory, or take one worker: `--threads 1`"
                    raise ConvertError(Diagnostic("MS708", message, where=self._name, help=help_)) from error
                break

    def _fork(self, work: Callable[[Post[Job]], None]) -> None:
        ours, theirs = Pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Said of any process with a second thread. Nothing that one could hold is used by a worker.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _alone(parent, theirs)
                _serve(work, _Place(theirs, self._stop))
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        self._workers[ours] = pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with deferred(self._end):
            self._stop[0] = 1
            for connection in self._workers:
                connection.close()
            for connection in list(self._workers):
                self._gone(connection)

    def _end(self) -> None:
        """Have the workers end after their current block; at once if they were told before."""
        if self._stop[0]:
            for pid in self._workers.values():
                os.kill(pid, signal.SIGKILL)
        self._stop[0] = 1

    def run(self, jobs: Iterable[Job], count: int, hear: Callable[[Any], None]) -> None:
        """See `Crew`. After a failure the workers are gone."""
        with deferred(self._end):
            for connection in list(self._workers)[count:]:
                self._gone(connection)
            allowed = list(self._workers)
            try:
                self._attend(allowed, iter(jobs), hear)
            except BaseException:
                # What was finished meanwhile is heard of, so that it is not lost.
                self._stop[0] = 1
                with suppress(Exception):
                    self._attend(allowed, iter(()), hear)
                raise
        if self._failure is not None:
            raise self._failure

    def _attend(self, workers: list[Connection], jobs: Iterator[Job], hear: Callable[[Any], None]) -> None:
        """Give out jobs and hear the workers, until there are none left and all of them have nothing to do."""
        job = next(jobs, None)
        while True:
            for connection in workers:
                if job is not None and connection in self._idle and not self._stop[0]:
                    with suppress(OSError):  # if it is gone, it is heard below how it ended
                        _put(connection, job)
                    self._idle.remove(connection)
                    job = next(jobs, None)
            busy = [one for one in workers if one in self._workers and one not in self._idle]
            if not busy:
                return
            ready = wait(busy)
            for connection in [one for one in busy if one in ready]:
                try:
                    kind, value = _take(connection)
                except (EOFError, OSError):
                    kind, value = "failed", self._lost(self._workers[connection])
                if kind == "next":
                    self._idle.add(connection)
                elif kind == "told":
                    hear(value)
                else:
                    self._gone(connection)
                if kind == "failed":
                    self._stop[0] = 1
                    self._failure = self._failure or value

    def _gone(self, connection: Connection) -> None:
        connection.close()
        _ended(self._workers[connection])
        del self._workers[connection]

    def _lost(self, pid: int) -> ConvertError:
        code = _ended(pid)
        how = f"with exit status {code}" if code >= 0 else f"by signal {-code} ({signal.strsignal(-code)})"
        message = f"process {pid}, one of those that share the work, was ended {how}"
        help_ = "if memory ran out, take fewer processes (`--threads`); the system's log tells who ended it"
        return ConvertError(Diagnostic("MS708", message, where=self._name, help=help_))


@dataclass
class _Place[Job]:
    """The post of a worker; see `Post`."""

    connection: Connection
    stop: mmap.mmap

    @property
    def stopped(self) -> bool:
        return self.stop[0] != 0

    def jobs(self) -> Iterator[Job]:
        while True:
            self.send("next", None)
            try:
                yield _take(self.connection)
            except (EOFError, OSError) as error:
                raise Stopped from error

    def tell(self, message: Any) -> None:
        self.send("told", message)

    def send(self, kind: _Kind, value: Any) -> None:
        try:
            _put(self.connection, (kind, value))
        except OSError as error:
            raise Stopped from error


def _put(connection: Connection, message: Any) -> None:
    # Not by its own `send`, which lends out the buffer of a BytesIO: CPython 3.12 dies of collecting both as garbage,
    # as when an interrupt cuts that off.
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _take(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def _serve[Job](work: Callable[[Post[Job]], None], place: _Place[Job]) -> None:
    with suppress(Stopped):
        try:
            work(place)
        except Stopped:
            place.send("ended", None)
        except BaseException as error:
            place.send("failed", _sendable(error))


def _sendable(error: BaseException) -> BaseException:
    """The error as it arrives at the other end. One that nobody has foreseen says where it was raised."""
    if not isinstance(error, ConvertError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _alone(parent: int, connection: Connection) -> None:
    """Leave to the parent what is its own: signals, files, locks and sockets."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent is told as well, and ends its workers in order
    assert _prctl is not None
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # Objects of the parent must not be finalised here, where their descriptors may mean other files.
    gc.disable()
    gc.freeze()
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) > 2 and int(path.name) != connection.fileno():
            with suppress(OSError):
                os.close(int(path.name))


def _ended(pid: int) -> int:
    """Wait for a process; its exit status, or minus the signal that ended it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # somebody else has waited for it
        return 0
