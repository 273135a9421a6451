"""Building and running the reference model: the real Megatron-Core HybridModel, on the CPU.

It exists to check conversions: the same parameter names, shapes and checkpoint keys as the model that trains on GPUs,
and a forward pass to compare logits with. The process groups must exist (see `reference_parallel`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.activations import squared_relu
from megatron.core.models.hybrid.hybrid_layer_allocation import get_hybrid_total_layer_count
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from mapspec.backends.cpu_adapters import cpu_adapters
from mapspec.backends.reference_layers import build_norm, build_norm_with_state
from mapspec.backends.reference_mamba import ConvNames
from mapspec.backends.reference_parallel import (
    ParallelSizes,
    one_process_group,
    parallel_group,
    process_groups,
)
from mapspec.backends.reference_specs import Experts, Norms, reference_stack_spec

__all__ = [
    "ParallelSizes",
    "build_reference_model",
    "cpu_adapters",
    "on_cpu",
    "one_process_group",
    "parallel_group",
    "process_groups",
    "reference_config",
    "reference_logits",
    "reference_stack_spec",
]

# Switches that choose CUDA kernels or GPU placement, never the mathematics: always off here, whatever was asked for.
_ON_CPU: Mapping[str, Any] = {
    "use_cpu_initialization": True,
    "transformer_impl": "local",
    "attention_backend": AttnBackend.local,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "persist_layer_norm": False,
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "cross_entropy_loss_fusion": False,
    "async_tensor_model_parallel_allreduce": False,
    "tp_comm_overlap": False,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "moe_shared_expert_overlap": False,
    "moe_token_dispatcher_type": "alltoall",
    "cuda_graph_impl": "none",
}


def on_cpu(config_fields: Mapping[str, Any]) -> dict[str, Any]:
    """TransformerConfig fields with every switch off that chooses CUDA kernels or GPU placement."""
    known = {field.name for field in fields(TransformerConfig) if field.init}
    return {**config_fields, **{name: value for name, value in _ON_CPU.items() if name in known}}


def reference_config(
    config_fields: Mapping[str, Any], *, hybrid_layer_pattern: str, experts: Experts = "sequential"
) -> TransformerConfig:
    """A TransformerConfig from plain field values, made runnable on the CPU.

    Parallel sizes come from the parallel state in force. `num_layers` comes from the pattern, the activation is the
    squared ReLU of Nemotron-H and linears have no bias, unless the fields say otherwise. Fields that only choose
    kernels are overridden. An unknown field is a TypeError that names it.
    """
    known = {field.name for field in fields(TransformerConfig) if field.init}
    unknown = sorted(set(config_fields) - known)
    if unknown:
        raise TypeError(f"TransformerConfig has no field {', '.join(unknown)}")
    values: dict[str, Any] = {
        "num_layers": get_hybrid_total_layer_count(hybrid_layer_pattern),
        "activation_func": squared_relu,
        "add_bias_linear": False,
        "normalization": "RMSNorm",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "is_hybrid_model": True,
        **config_fields,
        **{name: value for name, value in _ON_CPU.items() if name in known},
        "moe_grouped_gemm": experts == "grouped",
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": parallel_state.get_expert_tensor_parallel_world_size(),
    }
    if values["pipeline_model_parallel_size"] > 1:
        values.setdefault("pipeline_dtype", values.get("params_dtype", torch.float32))
    return TransformerConfig(**values)


def build_reference_model(
    config_fields: Mapping[str, Any],
    *,
    vocab_size: int,
    hybrid_layer_pattern: str,
    pre_process: bool | None = None,
    post_process: bool | None = None,
    norms: Norms = "fused",
    experts: Experts = "sequential",
    norm_state: bool = False,
    conv_names: ConvNames | None = None,
    share_embeddings_and_output_weights: bool = False,
    max_sequence_length: int = 8192,
    parallel_output: bool = True,
    position_embedding_type: str = "none",
    pg_collection: ProcessGroupCollection | None = None,
) -> HybridModel:
    """The HybridModel of this rank, on the CPU, in evaluation mode.

    `config_fields` are TransformerConfig fields (`mtp_num_layers` included); `hybrid_layer_pattern` is Megatron's own
    notation: `|` between pipeline stages, `/` before each multi-token prediction block. `pre_process` and
    `post_process` default to being the first and the last pipeline stage. Other switches: `reference_stack_spec`.
    """
    config = reference_config(config_fields, hybrid_layer_pattern=hybrid_layer_pattern, experts=experts)
    first = parallel_state.is_pipeline_first_stage() if pre_process is None else pre_process
    last = parallel_state.is_pipeline_last_stage() if post_process is None else post_process
    spec = reference_stack_spec(norms=norms, experts=experts, norm_state=norm_state, conv_names=conv_names)
    with cpu_adapters(final_norm=build_norm_with_state if norm_state else build_norm):
        model = HybridModel(
            config=config,
            hybrid_stack_spec=spec,
            vocab_size=vocab_size,
            max_sequence_length=max_sequence_length,
            hybrid_layer_pattern=hybrid_layer_pattern,
            pre_process=first,
            post_process=last,
            parallel_output=parallel_output,
            share_embeddings_and_output_weights=share_embeddings_and_output_weights,
            position_embedding_type=position_embedding_type,
            pg_collection=pg_collection or ProcessGroupCollection.use_mpu_process_groups(),
        )
    return model.eval()


def reference_logits(model: HybridModel, tokens: Tensor) -> Tensor:
    """Logits [batch, s, vocab] of token ids [batch, s], gathered over TP; one pipeline stage only."""
    if not (model.pre_process and model.post_process):
        raise NotImplementedError("reference_logits runs a model that is whole on this rank")
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with cpu_adapters(), torch.no_grad():
        logits: Tensor = model(tokens, positions, None, runtime_gather_output=True)
    return logits
