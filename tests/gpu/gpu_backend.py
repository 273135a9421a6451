"""The two ways to run the checks: the GPU model with NCCL, or (dry) the reference model with gloo on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from gpu_models import media_for
from torch import Tensor

from mapspec.backends.reference_parallel import ParallelSizes, process_groups

__all__ = ["Backend", "Distance", "distance"]

_ALONE = ParallelSizes()


@dataclass(frozen=True, slots=True)
class Backend:
    """How models are built and run. `name` is the provider's backend."""

    name: str
    rank: int = 0
    world: int = 1
    store: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether it is the model that trains."""
        return self.name == "transformer_engine"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return torch.device("cuda", self.rank) if self.on_gpu else torch.device("cpu")

    def adapters(self) -> AbstractContextManager[Any]:
        """What Megatron-Core needs around every call: nothing on a GPU."""
        if self.on_gpu:
            return nullcontext()
        from mapspec.backends.cpu_adapters import cpu_adapters

        return cpu_adapters()

    @contextmanager
    def groups(self, sizes: ParallelSizes = _ALONE) -> Iterator[None]:
        """The process group of all ranks, and Megatron-Core's parallel state over it."""
        made: Any = torch.distributed
        store = made.HashStore() if self.store is None else made.FileStore(str(self.store), self.world)
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        made.init_process_group(
            "nccl" if self.on_gpu else "gloo",
            store=store, rank=self.rank, world_size=self.world, timeout=timedelta(seconds=120),
        )  # fmt: skip
        try:
            with process_groups(sizes):
                if self.on_gpu:
                    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

                    model_parallel_cuda_manual_seed(1234)
                yield
        finally:
            made.destroy_process_group()

    def provider(self, folder: Path, **fields: Any) -> Any:
        """The provider for a checkpoint, set up for this backend and the parallel sizes of `fields`."""
        from mapspec.provider.provider import Provider

        provider = Provider.from_hf(folder, backend=self.name)
        # `flash` would demand a package that is not needed otherwise; auto takes what Transformer Engine has.
        fields = {"attention_backend": "auto", **fields} if self.on_gpu else fields
        for name, value in fields.items():
            setattr(provider, name, value)
        return provider

    def logits(self, model: Any, tokens: Tensor, folder: Path) -> Tensor:
        """Logits [batch, length, vocab], gathered over TP, in fp32 on the CPU; with media where there are encoders."""
        tokens = tokens.to(self.device)
        media = media_for(folder, len(tokens), self.device)
        positions = torch.arange(tokens.shape[1], device=self.device).expand_as(tokens)
        with self.adapters(), torch.no_grad():
            out: Tensor = model(tokens, positions, None, runtime_gather_output=True, **media)
        return out.float().cpu()

    def load(self, model: Any, folder: Path) -> None:
        """Load a checkpoint with Megatron-Core, strictly: what the model asks for has to be there."""
        from megatron.core import dist_checkpointing

        with self.adapters():
            loaded = dist_checkpointing.load(
                {"model": model.sharded_state_dict()}, str(folder), strict="raise_unexpected"
            )
        model.load_state_dict(loaded["model"], strict=True)

    def save(self, model: Any, folder: Path) -> None:
        """Save with Megatron-Core; all ranks call it."""
        from megatron.core import dist_checkpointing

        if not self.rank:
            folder.mkdir(parents=True)
        torch.distributed.barrier()
        with self.adapters():
            dist_checkpointing.save(
                {"model": model.sharded_state_dict(), "checkpoint_version": 3.0, "iteration": 0},
                str(folder),
                content_metadata={"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
            )

    def stored(self, model: Any) -> tuple[dict[str, str], set[str]]:
        """What the model stores: key -> `dtype shape` of every tensor (global), and the keys of the byte objects."""
        from megatron.core.dist_checkpointing.dict_utils import nested_values
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

        with self.adapters():
            sharded = model.sharded_state_dict()
        apply_factories(sharded)
        tensors, objects = {}, set()
        for value in nested_values(sharded):
            if isinstance(value, ShardedTensor):
                shape = "x".join(str(size) for size in value.global_shape)
                tensors[value.key] = f"{str(value.dtype).removeprefix('torch.')} {shape}"
            else:
                objects.add(value.unique_key)
        return tensors, objects


@dataclass(frozen=True, slots=True)
class Distance:
    """How far logits are from others.

    Attributes:
        typical: median over the positions of the root mean square over the vocabulary. A token that rounding sends to
            other experts moves its own logits and those after it far; the median does not see a few of them.
        rms: root mean square over everything.
        largest: the largest difference.
        agree: share of positions with the same argmax.
        kl: mean Kullback-Leibler divergence.
    """

    typical: float
    rms: float
    largest: float
    agree: float
    kl: float


def distance(logits: Tensor, truth: Tensor) -> Distance:
    """Logits [batch, length, vocab] against the true ones. A NaN anywhere makes every number bad."""
    difference = (logits - truth).double()
    ours, theirs = (x.double().log_softmax(-1) for x in (logits, truth))
    return Distance(
        difference.square().mean(-1).sqrt().flatten().quantile(0.5).item(),
        difference.square().mean().sqrt().item(),
        difference.abs().max().item(),
        (logits.argmax(-1) == truth.argmax(-1)).double().mean().item(),
        (theirs.exp() * (theirs - ours)).sum(-1).mean().item(),
    )
