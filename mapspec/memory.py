"""How much memory a conversion takes at most, computed from its plan.

Three things take memory: Python with what is imported, tables about tensors and chunks, and the buffers of the workers.
None of them grows with the size of a tensor. The numbers are upper bounds for anonymous memory, measured on plans of up
to 50,000 tensors and 400,000 chunks; the page cache is not counted, the kernel takes it back when it needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mapspec.amounts import human_bytes
from mapspec.copying.alignment import SCRATCH_BYTES
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.io.remote import RemotePath
from mapspec.prepare import Prepared

__all__ = ["Memory", "memory_of", "processes_within", "workers_within"]

_MB = 10**6
_PYTHON = 50 * _MB
_REMOTE = 80 * _MB  # fsspec and the package of a protocol
_PROCESS = 12 * _MB  # what a worker changes of the memory that it was forked with
# What is known of a tensor of the source, and of a chunk of either side.
_PER_TENSOR = 600
_PER_CHUNK = 1300


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of anonymous memory that a conversion takes at most.

    Attributes:
        base: Python and its modules.
        tables: what is known of tensors and chunks.
        worker: buffers of one copying worker, and what is its own where it is a process.
        workers: how many there are.
    """

    base: int
    tables: int
    worker: int
    workers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.tables + self.workers * self.worker


def memory_of(prepared: Prepared, threads: int | None = None) -> Memory:
    """What a conversion takes with that many workers, by default as many as the source is read best with."""
    plan, access = prepared.plan, prepared.access
    remote = isinstance(prepared.source.root, RemotePath)
    casts = any(step.kind == "cast" for step in plan.steps)
    workers = threads or access.threads
    process = _PROCESS if workers > 1 and not remote else 0
    tensors = prepared.source.tensors.values()
    chunks = sum(len(tensor.chunks) for tensor in tensors) + sum(len(target.boxes) for target in plan.targets)
    return Memory(
        _PYTHON + _REMOTE * remote,
        _PER_TENSOR * len(tensors) + _PER_CHUNK * chunks,
        SCRATCH_BYTES["cast" if casts else "gather"] + access.read * access.ahead * remote + process,
        workers,
    )


def processes_within(count: int, most: int | None) -> int:
    """How many processes may be made before the plan is known, so that `workers_within` has some to choose from."""
    return count if most is None else min(count, max(0, most - _PYTHON) // (_PROCESS + SCRATCH_BYTES["gather"]))


def workers_within(prepared: Prepared, threads: int | None, most: int | None) -> int:
    """How many workers may copy so that all processes together stay below `most` bytes.

    Args:
        threads: as many as are wanted; by default as many as the source is read best with.

    Raises:
        ConvertError: MS740 where not even one fits.
    """
    memory = memory_of(prepared, threads)
    if most is None or memory.total <= most:
        return memory.workers
    room = most - memory.base - memory.tables
    alone = memory_of(prepared, 1)
    if most < alone.total:
        least = alone.total
        message = (
            f"one worker takes up to {human_bytes(least)} ({human_bytes(memory.base)} for Python and its modules, "
            f"{human_bytes(memory.tables)} to know every tensor, {human_bytes(alone.worker)} of buffers), "
            f"which is more than the {human_bytes(most)} of --max-memory"
        )
        help_ = f"allow --max-memory {-(-least // _MB)}MB; dividing the work over processes does not make this less"
        raise ConvertError(Diagnostic("MS740", message, where=str(prepared.source.path), help=help_))
    return max(1, min(memory.workers, room // memory.worker))
