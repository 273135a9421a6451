"""The layers of encoders and projectors: Transformer Engine's on a GPU, plain torch ones of the same names on a CPU."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from mapspec.backends.reference_layers import NormedColumnParallelLinear, build_norm

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from torch import Tensor

__all__ = ["Backend", "Norms", "PackedDotProductAttention", "projector_submodules", "vision_layer_spec"]

Backend = Literal["reference", "transformer_engine"]
Norms = Literal["fused", "separate"]


class PackedDotProductAttention(DotProductAttention):  # type: ignore[misc]
    """Megatron-Core's plain attention, for several sequences in one row too: each attends to itself alone.

    Images of different sizes stand one after the other in one row. Megatron-Core's own refuses that and points to
    Transformer Engine's, which needs a GPU.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[s, b, heads, width] -> [s, b, heads * width]; packed: [t, heads, width] -> [t, heads * width]."""
        if packed_seq_params is None:
            whole: Tensor = super().forward(query, key, value, attention_mask, **kwargs)
            return whole
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        parts = [
            super(PackedDotProductAttention, self).forward(
                *(part[a:b].unsqueeze(1) for part in (query, key, value)), attention_mask, **kwargs
            )
            for a, b in pairwise(bounds)
        ]
        return torch.cat(parts).squeeze(1)


def vision_layer_spec(backend: Backend, norms: Norms = "fused") -> ModuleSpec:
    """One layer of the vision transformer: attention without a mask, then an MLP, each after a norm.

    `norms` says whether those norms live in the projection that follows them or are modules of their own.
    """
    fused = norms == "fused"
    if backend == "reference":
        column: Any = NormedColumnParallelLinear if fused else ColumnParallelLinear
        row: Any = RowParallelLinear
        norm: Any = build_norm
        core: Any = PackedDotProductAttention
    else:
        from megatron.core.extensions import transformer_engine as te

        column = te.TELayerNormColumnParallelLinear if fused else te.TEColumnParallelLinear
        row, norm, core = te.TERowParallelLinear, te.TENorm, te.TEDotProductAttention
    before = IdentityOp if fused else norm
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=before,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.no_mask},
                submodules=SelfAttentionSubmodules(linear_qkv=column, core_attention=core, linear_proj=row),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=before,
            mlp=partial(MLP.as_mlp_submodule, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def projector_submodules(backend: Backend) -> MLPSubmodules:
    """Norm and first linear in one module, then the second; the activation is the config's."""
    if backend == "reference":
        return MLPSubmodules(linear_fc1=NormedColumnParallelLinear, linear_fc2=RowParallelLinear)
    from megatron.core.extensions import transformer_engine as te

    return MLPSubmodules(linear_fc1=te.TELayerNormColumnParallelLinear, linear_fc2=te.TERowParallelLinear)
