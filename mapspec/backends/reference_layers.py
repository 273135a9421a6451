"""Plain torch layers that carry the parameter names of the Transformer Engine layers they stand for.

The GPU model fuses the norm before a projection into the projection (`linear_fc1.layer_norm_weight`), keeps one
weight per expert in one module (`linear_fc1.weight0`, ...) and projects to the MoE latent with an unsplit linear.
Megatron-Core has no torch version of these, so they are here; the rest of the reference model is Megatron-Core's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "ColumnGroupedLinear",
    "DuplicatedLinear",
    "NormedColumnParallelLinear",
    "RowGroupedLinear",
    "build_norm",
    "build_norm_with_state",
]


class _EmptyExtraState(nn.Module):
    """Adds the `_extra_state` entry that Transformer Engine modules own, with nothing in it."""

    def get_extra_state(self) -> None:
        return None

    def set_extra_state(self, state: Any) -> None:
        return None


class _RMSNormWithState(_EmptyExtraState, nn.RMSNorm):
    """RMSNorm with an (empty) `_extra_state`, as Transformer Engine's has."""


class _LayerNormWithState(_EmptyExtraState, nn.LayerNorm):
    """LayerNorm with an (empty) `_extra_state`, as Transformer Engine's has."""


def _check_norm(config: Any) -> None:
    if config.layernorm_zero_centered_gamma:
        raise NotImplementedError("the reference norms keep their weight as it is: layernorm_zero_centered_gamma")
    if config.normalization not in ("RMSNorm", "LayerNorm"):
        raise NotImplementedError(f"no reference norm for normalization={config.normalization!r}")


def build_norm(config: Any, hidden_size: int, eps: float = 1e-5, **unused: Any) -> nn.Module:
    """A torch norm over the last axis; weight [hidden_size] in `params_dtype`. No `_extra_state`."""
    _check_norm(config)
    norm = nn.RMSNorm if config.normalization == "RMSNorm" else nn.LayerNorm
    return norm(hidden_size, eps=eps, dtype=config.params_dtype)


def build_norm_with_state(config: Any, hidden_size: int, eps: float = 1e-5, **unused: Any) -> nn.Module:
    """As `build_norm`, and the norm asks for an `_extra_state` in the checkpoint as Transformer Engine's does."""
    _check_norm(config)
    norm = _RMSNormWithState if config.normalization == "RMSNorm" else _LayerNormWithState
    return norm(hidden_size, eps=eps, dtype=config.params_dtype)


class NormedColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
    """Norm, then a column-parallel linear, in one module.

    Parameters: those of ColumnParallelLinear, `layer_norm_weight` [input_size] and, for LayerNorm, `layer_norm_bias`.
    The norm is the same on every tensor-parallel rank: the parent's sharding names only `weight` and `bias`.
    """

    def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        _check_norm(config)
        self.layer_norm_eps = config.layernorm_epsilon
        self.layer_norm_weight = nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm_bias: nn.Parameter | None = None
        if config.normalization == "LayerNorm":
            self.layer_norm_bias = nn.Parameter(torch.zeros(input_size, dtype=config.params_dtype))

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> Any:
        """[s, b, input_size] -> ([s, b, output_size / tp], bias or None)."""
        shape = self.layer_norm_weight.shape
        if self.config.normalization == "RMSNorm":
            normed = functional.rms_norm(input_, shape, self.layer_norm_weight, self.layer_norm_eps)
        else:
            normed = functional.layer_norm(
                input_, shape, self.layer_norm_weight, self.layer_norm_bias, self.layer_norm_eps
            )
        return super().forward(normed, *args, **kwargs)


class DuplicatedLinear(_EmptyExtraState):
    """A linear that is whole on every rank: `weight` [output_size, input_size], optional `bias`, `_extra_state`."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable[[Tensor], Any],
        bias: bool,
        parallel_mode: str = "duplicated",
        skip_bias_add: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__()
        assert parallel_mode == "duplicated", parallel_mode
        assert not skip_bias_add, "the latent projections add their bias themselves"
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        self.bias = nn.Parameter(torch.zeros(output_size, dtype=config.params_dtype)) if bias else None
        if config.perform_initialization:
            init_method(self.weight)

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        """[..., input_size] -> [..., output_size]."""
        return functional.linear(input_, self.weight, self.bias), None


class _GroupedLinear(_EmptyExtraState):
    """One linear per local expert: parameters `weight{i}` (and `bias{i}`), one `_extra_state` for all.

    As with Transformer Engine's, the communication over the expert tensor group is the token dispatcher's business.
    """

    tp_axes: dict[str, int]

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable[[Tensor], Any],
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool,
        pg_collection: Any,
        **unused: Any,
    ) -> None:
        super().__init__()
        assert is_expert, "a grouped linear holds experts"
        self.num_gemms = num_gemms
        self.use_bias = bias
        self.skip_bias_add = skip_bias_add
        self.groups = pg_collection
        self.tp_size: int = pg_collection.expt_tp.size()
        # The same rule as in Megatron-Core: experts that differ between data-parallel ranks are not all-reduced.
        allreduce = not (
            config.expert_model_parallel_size > 1
            or config.expert_tensor_parallel_size != config.tensor_model_parallel_size
        )
        for index in range(num_gemms):
            weight = nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
            if config.perform_initialization:
                init_method(weight)
            weight.allreduce = allreduce  # type: ignore[attr-defined]
            self.register_parameter(f"weight{index}", weight)
            if bias:
                self.register_parameter(
                    f"bias{index}", nn.Parameter(torch.zeros(output_size, dtype=config.params_dtype))
                )
        self.register_load_state_dict_pre_hook(self._drop_expert_state)  # type: ignore[no-untyped-call]

    @staticmethod
    def _drop_expert_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A distributed checkpoint holds one extra state per expert; this module has one, and it is empty."""
        for index in range(1, module.num_gemms):  # type: ignore[arg-type]
            state_dict.pop(f"{prefix}_extra_state{index}", None)
        state_dict.setdefault(f"{prefix}_extra_state")

    def forward(self, input_: Tensor, tokens_per_expert: Sequence[int]) -> tuple[Tensor, list[Tensor] | None]:
        """[tokens, in], sorted by expert -> [tokens, out]; the biases if they are not added here."""
        weights = [getattr(self, f"weight{i}") for i in range(self.num_gemms)]
        biases = [getattr(self, f"bias{i}") for i in range(self.num_gemms)] if self.use_bias else []
        added = biases if biases and not self.skip_bias_add else [None] * self.num_gemms
        parts = torch.split(input_, list(tokens_per_expert))
        out = torch.cat([functional.linear(x, w, b) for x, w, b in zip(parts, weights, added, strict=True)])
        return out, biases if biases and self.skip_bias_add else None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Expert e of E becomes row e of one [E, out, in] tensor; its extra state the byte object `shard_{e}_{E}`."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        state = self.state_dict(prefix="", keep_vars=True)
        total = self.groups.ep.size() * self.num_gemms
        first = self.groups.ep.rank() * self.num_gemms
        result: dict[str, Any] = {}
        for index in range(self.num_gemms):
            kinds = {"weight": state[f"weight{index}"], "_extra_state": None}
            if self.use_bias:
                kinds["bias"] = state[f"bias{index}"]
            one = make_sharded_tensors_for_checkpoint(
                {f"{index}.{kind}": value for kind, value in kinds.items()},
                "",
                {f"{index}.{kind}": axis for kind, axis in self.tp_axes.items()},
                (*sharded_offsets, (len(sharded_offsets), first + index, total)),
                tp_group=self.groups.expt_tp,
                dp_cp_group=metadata["dp_cp_group"],
            )
            replace_prefix_for_sharding(one, f"{index}.", prefix)
            for kind in kinds:
                suffix = "" if kind == "_extra_state" and index == 0 else str(index)
                entry = one[f"{index}.{kind}"]
                entry.replica_id = (*entry.replica_id[:2], self.groups.expt_dp.rank())
                result[f"{prefix}{kind}{suffix}"] = entry
        return result


class ColumnGroupedLinear(_GroupedLinear):
    """Experts' first projection: `weight{i}` [output_size / etp, input_size]."""

    tp_axes = {"weight": 0, "bias": 0}  # noqa: RUF012 (a constant of the class)

    def __init__(self, num_gemms: int, input_size: int, output_size: int, **kwargs: Any) -> None:
        tp = kwargs["pg_collection"].expt_tp.size()
        assert output_size % tp == 0, (output_size, tp)
        super().__init__(num_gemms, input_size, output_size // tp, **kwargs)


class RowGroupedLinear(_GroupedLinear):
    """Experts' second projection: `weight{i}` [output_size, input_size / etp]."""

    tp_axes = {"weight": 1}  # noqa: RUF012 (a constant of the class)

    def __init__(self, num_gemms: int, input_size: int, output_size: int, **kwargs: Any) -> None:
        tp = kwargs["pg_collection"].expt_tp.size()
        assert input_size % tp == 0, (input_size, tp)
        super().__init__(num_gemms, input_size // tp, output_size, **kwargs)
