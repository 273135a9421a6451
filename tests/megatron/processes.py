"""Several gloo ranks on this machine for one test, with a deadline, errors brought home to the parent."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mapspec.backends.reference_parallel import ParallelSizes

__all__ = ["RankError", "spawn"]

# The server imports these once; the ranks it forks start in milliseconds. It runs no kernel and opens no thread pool,
# so forking it is safe where forking the test process would not be.
_PRELOAD = ["torch", "safetensors.torch", "mapspec.backends.reference"]


class RankError(RuntimeError):
    """A rank raised, died or did not come back; the message holds what is known."""


def _run(
    fn: Callable[..., Any],
    rank: int,
    world: int,
    sizes: ParallelSizes,
    store: str,
    timeout_s: float,
    args: tuple[Any, ...],
    pipe: Connection,
) -> None:
    import torch

    from mapspec.backends.reference_parallel import parallel_group

    torch.set_num_threads(1)
    try:
        with parallel_group(sizes, rank=rank, world=world, store=Path(store), timeout_s=timeout_s):
            answer = (True, fn(rank, *args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))
    pipe.close()


def spawn(
    fn: Callable[..., Any],
    world: int,
    *args: Any,
    sizes: ParallelSizes | None = None,
    timeout_s: float = 180.0,
) -> list[Any]:
    """Run `fn(rank, *args)` on `world` ranks, with Megatron's parallel state set up; the results, by rank.

    `fn` must be importable by name. Raises RankError soon after a rank fails, or when the deadline passes; the
    remaining ranks are ended in both cases. The deadline covers the start of the server, slow on a busy machine.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes: dict[Connection, int] = {}
        ranks = []
        try:
            for rank in range(world):
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_run,
                    args=(fn, rank, world, sizes or ParallelSizes(), store, timeout_s, args, theirs),
                    daemon=True,  # a rank never outlives the test run
                )
                process.start()
                theirs.close()
                ranks.append(process)
                pipes[mine] = rank
            while pipes:
                left = deadline - time.monotonic()
                ready = wait(list(pipes), timeout=max(left, 0.0))
                if not ready and failures:
                    break
                if not ready:
                    raise RankError(f"no answer from ranks {sorted(pipes.values())} within {timeout_s:g} s")
                for pipe in ready:
                    assert isinstance(pipe, Connection)
                    rank = pipes.pop(pipe)
                    try:
                        good, value = pickle.loads(pipe.recv_bytes())
                    except EOFError:
                        good, value = False, "died without a word\n"
                    if good:
                        results[rank] = value
                    else:
                        failures[rank] = value
                        # The first to report need not be the first to fail: its peers get a moment to speak.
                        deadline = min(deadline, time.monotonic() + 1.0)
            if failures:
                raise RankError("\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(failures.items())))
        finally:
            for process in ranks:
                if pipes or process.is_alive():
                    process.join(timeout=0.0 if pipes else 5.0)
                if process.is_alive():
                    process.kill()
                process.join()
    return [results[rank] for rank in range(world)]
