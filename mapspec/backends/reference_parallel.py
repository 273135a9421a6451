"""Process groups for the reference model: gloo, in this process alone or one of several on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

__all__ = ["ParallelSizes", "one_process_group", "parallel_group", "process_groups"]


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """Tensor, pipeline, expert and expert-tensor parallel sizes. `etp` None means 1 when ep > 1, else tp."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int | None = None

    @property
    def expert_tensor(self) -> int:
        """The expert-tensor parallel size in force."""
        return self.etp if self.etp is not None else (1 if self.ep > 1 else self.tp)

    @property
    def world(self) -> int:
        """The smallest number of processes that fits: a multiple of tp * pp and of etp * ep * pp."""
        dense, sparse = self.tp * self.pp, self.expert_tensor * self.ep * self.pp
        world = max(dense, sparse)
        while world % dense or world % sparse:
            world += self.pp
        return world


@contextmanager
def parallel_group(
    sizes: ParallelSizes = ParallelSizes(),
    *,
    rank: int = 0,
    world: int = 1,
    store: Path | None = None,
    timeout_s: float = 60.0,
) -> Iterator[None]:
    """A gloo process group and Megatron-Core's parallel state for the length of the block.

    `store` is a file that all ranks share; one rank alone needs none.
    """
    if torch.distributed.is_initialized():
        raise RuntimeError("a process group exists in this process already")
    found: Any
    if store is None:
        found = torch.distributed.HashStore()  # type: ignore[attr-defined]
    else:
        found = torch.distributed.FileStore(str(store), world)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(
        "gloo", store=found, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s)
    )
    try:
        with process_groups(sizes):
            yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def process_groups(sizes: ParallelSizes = ParallelSizes()) -> Iterator[None]:
    """Megatron-Core's parallel state over an existing process group, removed after the block."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes.tp,
        pipeline_model_parallel_size=sizes.pp,
        expert_model_parallel_size=sizes.ep,
        expert_tensor_parallel_size=sizes.expert_tensor,
    )
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


@contextmanager
def one_process_group() -> Iterator[None]:
    """One gloo rank with all parallel sizes 1, for the length of the block."""
    with parallel_group():
        yield
