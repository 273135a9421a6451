"""Ranks of `mapspec convert` without a launcher: processes forked from one that has imported torch, faults put in.

Run as a script, this is a server, as tests/interrupted.py is. A rank runs the command line with the environment that
torchrun would give it, and writes what it says to files.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RankServer", "Said"]

# Seconds without a sign after which a rank of these tests is lost.
LOST_S = 3.0


@dataclass(frozen=True)
class Said:
    """How a rank ended: its exit code (negative for a signal), stdout and stderr."""

    code: int
    out: str
    err: str


class RankServer:
    """The server, seen from a test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def convert(
        self, folder: Path, world: int, *arguments: object, faults: Mapping[int, Any] | None = None,
        more: Mapping[int, Sequence[str]] | None = None,
    ) -> list[Said]:  # fmt: skip
        """Run `mapspec convert` on some ranks.

        Args:
            folder: for what the ranks say.
            arguments: of the command.
            faults: rank -> [what, n]: at its n-th write into a data file, a rank is killed (`kill`), stopped (`stop`),
                told to end (`term`), or its disk is full (`full`). `slow` makes each of its writes take n seconds.
            more: rank -> further arguments.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = [str(folder), world, [str(a) for a in arguments], dict(faults or {}), dict(more or {})]
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return [
            Said(code, *((folder / f"{name}{rank}").read_text() for name in ("out", "err")))
            for rank, code in enumerate(codes)
        ]

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=60)


def _serve() -> None:
    import torch.distributed  # noqa: F401 (once, for all ranks)

    from mapspec import gloo_team
    from mapspec.copying import worker
    from mapspec.mapping import compile_mapping

    gloo_team._LOST_S = LOST_S
    worker._BLOCK, worker._ZEROS = 4096, bytes(4096)  # many writes per file
    compile_mapping("nemotron_h", Path(__file__).parent / "configs" / "nemotron-h-every-option.json")
    for line in sys.stdin:
        folder, world, arguments, faults, more = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                _rank(folder, rank, world, port, [*arguments, *more.get(str(rank), [])], faults.get(str(rank)))
            ranks.append(child)
        print(json.dumps(_wait(ranks)), flush=True)


def _wait(ranks: list[int]) -> list[int]:
    """Exit codes. When all that can end have ended, stopped ones are killed."""
    codes: dict[int, int] = {}
    stopped: set[int] = set()
    while len(codes) < len(ranks):
        child, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(child)
        else:
            codes[child] = os.waitstatus_to_exitcode(status)
        if stopped and len(codes) + len(stopped) == len(ranks):
            for left in stopped:
                os.kill(left, signal.SIGKILL)
    return [codes[child] for child in ranks]


def _rank(folder: str, rank: int, world: int, port: int, arguments: list[str], fault: Any) -> None:
    for descriptor, name in ((0, None), (1, "out"), (2, "err")):
        path = f"{folder}/{name}{rank}" if name else os.devnull
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    if fault is not None:
        _put_in(*fault)
    sys.argv = ["mapspec", "convert", *arguments]
    code = 3
    try:
        from mapspec.cli import main

        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _put_in(what: str, number: float) -> None:
    real, seen = os.pwrite, 0

    def pwrite(*args: Any) -> int:
        nonlocal seen
        seen += 1
        if what == "slow":
            time.sleep(number)
        elif seen == number:
            if what == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[what])
        return real(*args)

    os.pwrite = pwrite


if __name__ == "__main__":
    _serve()
