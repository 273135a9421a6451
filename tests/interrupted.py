"""Conversions that end at a chosen moment, as by `kill -9`, each in a forked process of its own.

Run as a script, this is a server: it reads the spec once and forks for every job, so that a conversion costs
milliseconds. Jobs and answers are lines of JSON. See `Interrupter`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Interrupter"]

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
_CALLS = ("pwrite", "write", "fsync", "posix_fallocate")


class Interrupter:
    """The server, seen from a test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def convert(self, moment: int, source: Path, destination: Path, **options: Any) -> list[str] | None:
        """Convert, and be killed at the `moment`-th call (from 1 on) that changes something beside the destination.

        With `apart` among the options its workers are processes, each of which counts its own calls; what is killed
        is the one that they were forked from.

        Returns:
            The names of those calls if the end is reached, `None` after `kill -9`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([moment, str(source), str(destination), options]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, int):
            assert answer == -signal.SIGKILL
            return None
        return list(answer)

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=60)


def _serve() -> None:
    import mapspec.recruit
    from mapspec.convert import Output, convert
    from mapspec.mapping import compile_mapping
    from mapspec.prepare import Request

    compile_mapping("nemotron_h", Path(__file__).parent / "configs" / "nemotron-h-every-option.json")
    for line in sys.stdin:
        moment, source, destination, options = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            if options.pop("apart", False):
                mapspec.recruit._APART = 1
            seen = _counting(moment, str(Path(destination).parent))
            convert(Request(Path(source)), Output(Path(destination), **options))
            with open(writer, "w") as pipe:  # noqa: PTH123 (a descriptor)
                json.dump(seen, pipe)
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:  # noqa: PTH123
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(said or os.waitstatus_to_exitcode(status), flush=True)


def _counting(moment: int, home: str) -> list[str]:
    """Note calls from here on, and be killed at one of them."""
    seen: list[str] = []
    process = os.getpid()

    def step(name: str) -> None:
        seen.append(name)
        if len(seen) == moment:
            os.kill(process, signal.SIGKILL)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and str(args[0]).startswith(home) and (event != "open" or args[2] & os.O_CREAT):
            step(event)

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            step(name)
            return real(*args)

        setattr(os, name, call)

    sys.addaudithook(audit)
    for name in _CALLS:
        counted(name)
    return seen


if __name__ == "__main__":
    _serve()
