"""A Mamba-2 mixer in plain torch, interchangeable with Megatron-Core's CUDA one.

Same parameter names, shapes, dtypes, tensor-parallel split and checkpoint keys as `MambaMixer` in
`megatron.core.ssm.mamba_mixer`; whole-sequence forward only (no inference cache, packed sequences or context
parallelism). The state space equations are those of the Mamba-2 paper (Dao and Gu 2024, section 6, chunked SSD form):
state_t = exp(dt_t A) state_{t-1} + dt_t B_t x_t and y_t = C_t state_t + D x_t, with dt = softplus(raw + dt_bias) and no
clamp on dt, as Megatron-Core trains.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import megatron.core
import torch
from megatron.core.ssm.mamba_mixer import MambaMixerSubmodules, _split_tensor_factory
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
    sharded_state_dict_default,
)
from torch import Tensor, nn
from torch.nn import functional

from mapspec.backends.reference_ssd import GatedGroupNorm, ssd_scan

__all__ = ["ConvNames", "ReferenceMambaMixer", "installed_conv_names"]

ConvNames = Literal["underscore", "dotted"]


def installed_conv_names() -> ConvNames:
    """How the installed Megatron-Core names the convolution: direct parameters since 0.19, a child module before."""
    major, minor = (int(part) for part in megatron.core.__version__.split(".")[:2])
    return "underscore" if (major, minor) >= (0, 19) else "dotted"


class ReferenceMambaMixer(MegatronModule):  # type: ignore[misc]
    """Mamba-2 mixer: `in_proj`, `conv1d_weight`/`conv1d_bias`, `dt_bias`, `A_log`, `D`, `norm`, `out_proj`.

    Local shapes, with d = heads * head_dim and g = groups * state, each over TP: in_proj [2d + 2g + heads, hidden] in
    the order z, x, B, C, dt; convolution [d + 2g, 1, 4]; dt_bias, A_log, D [heads]; norm [d]; out_proj [hidden, d].
    """

    def __init__(
        self,
        config: Any,
        submodules: MambaMixerSubmodules,
        d_model: int,
        d_conv: int = 4,
        chunk_size: int = 128,
        layer_number: int | None = None,
        pg_collection: Any = None,
        pp_layer_offset: int = 0,
        conv_names: ConvNames | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(config)
        assert pg_collection is not None, "the mixer needs its process groups"
        if pg_collection.cp.size() != 1:
            raise NotImplementedError("the reference Mamba mixer does not split the sequence (context parallel)")
        self.layer_number, self.chunk_size, self.tp_group = layer_number, chunk_size, pg_collection.tp
        self.conv_names: ConvNames = conv_names or installed_conv_names()
        tp = pg_collection.tp.size()
        head_dim, groups, state = config.mamba_head_dim, config.mamba_num_groups, config.mamba_state_dim
        heads = config.mamba_num_heads or 2 * d_model // head_dim
        assert heads % tp == 0, (heads, tp)
        assert groups % tp == 0, (groups, tp)
        assert heads % groups == 0, (heads, groups)
        self.head_dim, self.state = head_dim, state
        self.heads, self.groups = heads // tp, groups // tp
        self.inner, self.group_width = self.heads * head_dim, self.groups * state

        self.in_proj = build_module(
            submodules.in_proj,
            d_model,
            2 * heads * head_dim + 2 * groups * state + heads,
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_comm_buffer_name="fc1",
            tp_group=pg_collection.tp,
            name=f"{name}.in_proj" if name is not None else None,
        )
        self.in_proj.weight.partition_sizes = list(self._in_proj_parts().values())
        self._add_convolution(self.inner + 2 * self.group_width, d_conv, config.params_dtype)
        # Step sizes are drawn between 1e-3 and 0.1 on a log scale, and stored before the softplus.
        step = torch.exp(torch.rand(self.heads) * math.log(100.0) + math.log(1e-3)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter((step + torch.log(-torch.expm1(-step))).to(config.params_dtype))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1.0, 16.0).log())  # kept in fp32, as is D
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedGroupNorm(self.inner, self.inner // self.groups, 1e-5, config.params_dtype, pg_collection.tp)
        for parameter in (self.dt_bias, self.A_log, self.D, self.norm.weight):
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
            parameter.partition_dim = 0  # type: ignore[attr-defined]
        self.out_proj = build_module(
            submodules.out_proj,
            heads * head_dim,
            d_model,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
            tp_comm_buffer_name="fc2",
            tp_group=pg_collection.tp,
            name=f"{name}.out_proj" if name is not None else None,
        )

    def _in_proj_parts(self) -> dict[str, int]:
        """Local row counts of in_proj, in order."""
        return {"z": self.inner, **self._conv_parts(), "dt": self.heads}

    def _conv_parts(self) -> dict[str, int]:
        """Local row counts of the convolution, in order."""
        return {"x": self.inner, "B": self.group_width, "C": self.group_width}

    def _add_convolution(self, channels: int, width: int, dtype: torch.dtype) -> None:
        conv = nn.Conv1d(channels, channels, width, groups=channels, padding=width - 1, dtype=dtype)
        assert conv.bias is not None
        if self.conv_names == "underscore":
            self.conv1d_weight, self.conv1d_bias = conv.weight, conv.bias
        else:
            self.conv1d = conv
        for parameter in (conv.weight, conv.bias):
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
            parameter.partition_dim = 0  # type: ignore[attr-defined]
            parameter.partition_sizes = list(self._conv_parts().values())  # type: ignore[attr-defined]

    @property
    def convolution(self) -> tuple[Tensor, Tensor]:
        """Weight [channels, 1, width] and bias [channels], whatever they are called."""
        if self.conv_names == "underscore":
            return self.conv1d_weight, self.conv1d_bias
        assert self.conv1d.bias is not None
        return self.conv1d.weight, self.conv1d.bias

    def forward(
        self,
        hidden_states: Tensor,
        inference_context: Any = None,
        *,
        inference_params: Any = None,
        packed_seq_params: Any = None,
    ) -> Any:
        """[s, batch, hidden] -> ([s, batch, hidden], None)."""
        if inference_context is not None or inference_params is not None or packed_seq_params is not None:
            raise NotImplementedError("the reference Mamba mixer runs whole, unpacked sequences only")
        projected, _ = self.in_proj(hidden_states)
        z, xbc, dt = projected.transpose(0, 1).split(
            [self.inner, self.inner + 2 * self.group_width, self.heads], dim=-1
        )
        length = xbc.shape[1]
        weight, bias = self.convolution
        mixed = functional.conv1d(
            xbc.transpose(1, 2), weight, bias, padding=weight.shape[-1] - 1, groups=weight.shape[0]
        )[..., :length]  # padded on both sides: the first outputs see only the past
        active = functional.silu(mixed).transpose(1, 2).float()
        x, b, c = active.tensor_split((self.inner, self.inner + self.group_width), dim=-1)
        x = x.reshape(*x.shape[:-1], self.heads, self.head_dim)
        b, c = (part.reshape(*part.shape[:-1], self.groups, self.state) for part in (b, c))
        y = ssd_scan(
            x,
            functional.softplus(dt.float() + self.dt_bias.float()),
            -self.A_log.float().exp(),
            b,
            c,
            self.chunk_size,
        )
        y = (y + self.D.float().unsqueeze(-1) * x).flatten(-2).to(z.dtype)
        return self.out_proj(self.norm(y, z).transpose(0, 1).contiguous())

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """As Megatron-Core stores it: in_proj in five tensors, the convolution in three under its dotted name."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        own: dict[str, Any] = {}
        self._save_to_state_dict(own, "", keep_vars=True)
        conv = ("conv1d_weight", "conv1d_bias")
        result: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            own,
            prefix,
            {"A_log": 0, "dt_bias": 0, "D": 0, **dict.fromkeys(conv, 0)},
            sharded_offsets=sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        for name, module in self.named_children():
            if name == "conv1d":
                conv = ("conv1d.weight", "conv1d.bias")
                child = make_sharded_tensors_for_checkpoint(
                    module.state_dict(prefix="", keep_vars=True),
                    f"{prefix}conv1d.",
                    {"weight": 0, "bias": 0},
                    sharded_offsets,
                    tp_group=self.tp_group,
                    dp_cp_group=metadata["dp_cp_group"],
                )
            else:
                child = sharded_state_dict_default(
                    module, f"{prefix}{name}.", sharded_offsets, metadata, tp_group=self.tp_group
                )
            result.update(child)
        parts = self._conv_parts()
        for name in conv:
            result[f"{prefix}{name}"].key = f"{prefix}{name.replace('_', '.')}"
        for name, pieces in (("in_proj.weight", self._in_proj_parts()), *((name, parts) for name in conv)):
            result[f"{prefix}{name}"] = _split_tensor_factory(
                result[f"{prefix}{name}"], list(pieces.values()), list(pieces), 0
            )
        return result
