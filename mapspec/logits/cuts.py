"""Does the spec cut weights over tensor-parallel ranks as Megatron-Core's model does? Without starting any rank.

A torch_dist file holds whole tensors, so a wrong `split` in a spec shows neither there nor in its logits, only in live
models. Here every rank's model is built in this process, over process groups that pass nothing on; filled by the spec
from the Hugging Face tensors; and what Megatron-Core would store of it is compared with what the file holds there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mapspec.copy import read_tensor
from mapspec.diagnostics import Diagnostic
from mapspec.errors import PlanError, SpecError
from mapspec.logits.megatron_model import provider_for
from mapspec.mapping import CompiledMapping
from mapspec.ranks import Shard
from mapspec.sources import Source
from mapspec.tensors import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["compare_cuts"]


@contextmanager
def _as_rank(rank: int, size: int) -> Iterator[None]:
    """Megatron-Core's parallel state of one tensor-parallel rank of `size`, alone in this process."""
    import torch
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend "fake"

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=size, expert_tensor_parallel_size=size, create_gloo_process_groups=False
        )
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
    finally:
        torch.distributed.destroy_process_group()


def compare_cuts(
    mapping: CompiledMapping, config: Mapping[str, Any], hf: Source, megatron: Source, size: int
) -> tuple[int, list[Diagnostic]]:
    """Compare every parameter of every rank at tensor parallel size `size`.

    Returns:
        How many parameters were compared, and a finding per rule that is cut otherwise.

    Raises:
        SpecError: the model cannot be built at that size.
    """
    given = _Lazy(hf)
    stored = _Lazy(megatron)
    found: dict[str, Diagnostic] = {}
    compared = 0
    for rank in range(size):
        with _as_rank(rank, size):
            provider = provider_for(config, megatron, dtype="float32", device="cpu")
            provider.tensor_model_parallel_size = size
            flavours = mapping.table.bound.flavours
            if "experts" in flavours:
                provider.moe_grouped_gemm = flavours["experts"] == "grouped"
            model: Any = provider.provide()
            for name, target in model.state_dict().items():
                row = mapping.table.by_megatron.get(name)
                if target is None or name in mapping.table.tied:
                    continue
                if row is None:
                    found.setdefault(name, Diagnostic("MS825", f"the spec has no rule for the parameter `{name}`"))
                    continue
                compared += 1
                try:
                    value = mapping.hf_to_megatron(name, given.of(row.names("hf")), Shard(tp_rank=rank, tp_size=size))
                except (SpecError, PlanError) as error:
                    found.setdefault(row.rule.key, error.diagnostics[0])
                    continue
                if value.shape != target.shape:
                    message = (
                        f"`{name}` on rank {rank} of {size}: the spec gives {list(value.shape)}, "
                        f"Megatron-Core's model has {list(target.shape)}"
                    )
                    found.setdefault(row.rule.key, Diagnostic("MS825", message, row.rule.span))
                    continue
                target.copy_(value)
            for key, data, box in _pieces(model):
                if key not in stored.source.tensors:
                    continue
                whole = stored[key][tuple(slice(a, b) for a, b in box)].reshape(data.shape)
                if not bool((whole == data).all()):
                    _blame(mapping, key, rank, size, found)
    return compared, list(found.values())


def _pieces(model: Any) -> Iterator[tuple[str, Tensor, tuple[tuple[int, int], ...]]]:
    """(key, this rank's data, its box in the stored tensor) of everything that Megatron-Core would store."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from mapspec.backends.cpu_adapters import cpu_adapters

    with cpu_adapters():
        sharded = model.sharded_state_dict()
    apply_factories(sharded)
    for value in nested_values(sharded):
        if isinstance(value, ShardedTensor):
            lead = value.prepend_axis_num
            shape = (*(1 for _ in range(lead)), *value.local_shape)
            offsets = value.global_offset
            yield value.key, value.data, tuple((a, a + n) for a, n in zip(offsets, shape, strict=True))


def _blame(mapping: CompiledMapping, key: str, rank: int, size: int, found: dict[str, Diagnostic]) -> None:
    decl = mapping.table.inventory("stored").get(key)
    if decl is None:
        return
    row = decl.members[0].row
    if row.rule.key not in found:
        message = f"rank {rank} of {size} gets other values of `{row.megatron}` by the spec than Megatron-Core stores"
        found[row.rule.key] = Diagnostic("MS825", message, row.rule.span)


class _Lazy:
    """Tensors of a checkpoint in fp32, read when asked for, kept while the check runs."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.kept: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.kept:
            self.kept[name] = _read(self.source.tensors[name], self.source)
        return self.kept[name]

    def of(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The tensors that are there, by name."""
        return {name: self[name] for name in names if name in self.source.tensors}


def _read(tensor: StoredTensor, source: Source) -> Any:
    import torch

    array = read_tensor(tensor, source.root)
    found = torch.from_numpy(array.copy())
    dtype = getattr(torch, tensor.dtype)
    found = found if found.dtype == dtype else found.view(dtype)
    return found.float() if found.is_floating_point() else found
