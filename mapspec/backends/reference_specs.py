"""The layer specs of the reference model: Megatron-Core's hybrid stack, with layers that run without CUDA."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.ssm.mamba_mixer import MambaMixerSubmodules
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import GroupedMLPSubmodules, SequentialMLP, TEGroupedMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import (
    MoETransformerLayer,
    TransformerLayer,
    TransformerLayerSubmodules,
)

from mapspec.backends.reference_layers import (
    ColumnGroupedLinear,
    NormedColumnParallelLinear,
    RowGroupedLinear,
    build_norm,
    build_norm_with_state,
)
from mapspec.backends.reference_mamba import ConvNames, ReferenceMambaMixer

__all__ = ["Experts", "Norms", "reference_stack_spec"]

Norms = Literal["fused", "separate"]
Experts = Literal["sequential", "grouped"]


def _moe(experts: Experts) -> Any:
    """The MoE block: router, routed experts, shared experts."""
    plain = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    if experts == "grouped":
        routed = partial(
            TEGroupedMLP,
            submodules=GroupedMLPSubmodules(linear_fc1=ColumnGroupedLinear, linear_fc2=RowGroupedLinear),
        )
    else:
        routed = partial(SequentialMLP, submodules=plain)
    shared = partial(SharedExpertMLP, submodules=plain)
    return partial(MoELayer, submodules=MoESubmodules(experts=routed, shared_experts=shared))


def reference_stack_spec(
    *,
    norms: Norms = "fused",
    experts: Experts = "sequential",
    norm_state: bool = False,
    conv_names: ConvNames | None = None,
) -> ModuleSpec:
    """The hybrid stack for M, *, - and E layers and multi-token prediction.

    `norms="fused"` gives the parameter names of the stack that Megatron-Core ships for the GPU (the norm inside
    in_proj, linear_qkv, linear_fc1), "separate" those of the plain and ModelOpt stacks (norm, input_layernorm,
    pre_mlp_layernorm). MoE layers keep their own norm in both. `norm_state` gives every norm module the empty
    `_extra_state` that Transformer Engine's norms own, so that the checkpoint keys equal the GPU model's. `conv_names`
    chooses the in-memory names of the Mamba convolution; by default those of the installed Megatron-Core.
    """
    norm = build_norm_with_state if norm_state else build_norm
    fused = norms == "fused"
    before, column = (IdentityOp, NormedColumnParallelLinear) if fused else (norm, ColumnParallelLinear)
    mtp_layer = ModuleSpec(
        module=MultiTokenPredictionLayer,
        submodules=MultiTokenPredictionLayerSubmodules(
            enorm=norm, hnorm=norm, eh_proj=ColumnParallelLinear, mtp_model_layer=None, layer_norm=norm
        ),
    )
    return ModuleSpec(
        module=HybridStack,
        submodules=HybridStackSubmodules(
            mamba_layer=ModuleSpec(
                module=MambaLayer,
                submodules=MambaLayerSubmodules(
                    norm=before,
                    mixer=ModuleSpec(
                        module=ReferenceMambaMixer,
                        params={"conv_names": conv_names},
                        submodules=MambaMixerSubmodules(in_proj=column, out_proj=RowParallelLinear),
                    ),
                    mamba_bda=get_bias_dropout_add,
                ),
            ),
            attention_layer=ModuleSpec(
                module=TransformerLayer,
                submodules=TransformerLayerSubmodules(
                    input_layernorm=before,
                    self_attention=ModuleSpec(
                        module=SelfAttention,
                        params={"attn_mask_type": AttnMaskType.causal},
                        submodules=SelfAttentionSubmodules(
                            linear_qkv=column,
                            core_attention=DotProductAttention,
                            linear_proj=RowParallelLinear,
                        ),
                    ),
                    self_attn_bda=get_bias_dropout_add,
                ),
            ),
            mlp_layer=ModuleSpec(
                module=MLPLayer,
                submodules=TransformerLayerSubmodules(
                    pre_mlp_layernorm=before,
                    mlp=partial(
                        MLP.as_mlp_submodule,
                        submodules=MLPSubmodules(linear_fc1=column, linear_fc2=RowParallelLinear),
                    ),
                    mlp_bda=get_bias_dropout_add,
                ),
            ),
            moe_layer=ModuleSpec(
                module=MoETransformerLayer,
                submodules=TransformerLayerSubmodules(
                    pre_mlp_layernorm=norm, mlp=_moe(experts), mlp_bda=get_bias_dropout_add
                ),
            ),
            mtp_block_spec=ModuleSpec(
                module=MultiTokenPredictionBlock,
                submodules=MultiTokenPredictionBlockSubmodules(layer_specs=[mtp_layer]),
            ),
        ),
    )
