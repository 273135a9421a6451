"""What Megatron-LM keeps of a model in the common state of its checkpoints: `args`, an `argparse.Namespace`.

Its training loop reads them back. `--use-checkpoint-args` sets the model's arguments from them, and from 0.19 on a
hybrid model takes a checkpoint whose `args` have no `hybrid_layer_pattern` for one of a GPT model: it refuses it, or
pairs layers that do not belong together and leaves Mamba layers unfilled.

Sources: `load_args_from_checkpoint`, `check_checkpoint_args` and `_maybe_setup_gpt_to_hybrid_load` of
megatron/training/checkpointing.py, 0.19.2.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from mapspec.provider.provider import Provider
from mapspec.provider.resolve import Resolved
from mapspec.provider.rules import padded_vocab_size

__all__ = ["megatron_lm_args"]

# Arguments that are called as the fields are.
_SAME = (
    "add_bias_linear", "add_qkv_bias", "apply_query_key_layer_scaling", "attention_dropout", "ffn_hidden_size",
    "hidden_dropout", "hidden_size", "hybrid_layer_pattern", "kv_channels", "mamba_head_dim", "mamba_num_groups",
    "mamba_num_heads", "mamba_state_dim", "moe_ffn_hidden_size", "moe_grouped_gemm", "moe_latent_size",
    "moe_router_enable_expert_bias", "moe_router_pre_softmax", "moe_router_score_function", "moe_router_topk",
    "moe_router_topk_scaling_factor", "moe_shared_expert_intermediate_size", "mtp_num_layers",
    "mtp_use_repeated_layer", "normalization", "num_attention_heads", "num_layers", "num_query_groups",
    "position_embedding_type", "rotary_base", "rotary_percent", "seq_length",
)  # fmt: skip
_RENAMED = {"max_position_embeddings": "seq_length", "num_experts": "num_moe_experts"}


def megatron_lm_args(model: Resolved) -> Namespace | None:
    """The arguments with which Megatron-LM would have trained the model.

    Returns:
        Model arguments, sizes of 1 for what is cut (torch_dist holds whole tensors), and that there is neither
        optimizer nor random number state to load; `None` for models that are more than a language model, which
        Megatron-LM's own `args` do not describe.

    Raises:
        SpecError: findings of `finalize()`.
    """
    if model.spec.model.builds != "language":
        return None
    provider = Provider(model)
    provider.finalize()
    fields = provider.fields
    args: dict[str, Any] = {name: fields[name] for name in _SAME if name in fields}
    args.update({name: fields[field] for name, field in _RENAMED.items() if field in fields})
    activation, gated = fields.get("activation_func"), bool(fields.get("gated_linear_unit"))
    args.update(
        group_query_attention=fields.get("num_query_groups") not in (None, fields.get("num_attention_heads")),
        squared_relu=activation == "squared_relu",
        swiglu=gated and activation == "silu",
        untie_embeddings_and_output_weights=not fields.get("share_embeddings_and_output_weights"),
        add_position_embedding=True,  # Megatron-LM's default; positions follow `position_embedding_type`
        use_rotary_position_embeddings=fields.get("position_embedding_type") == "rope",
        apply_layernorm_1p=False,
        padded_vocab_size=padded_vocab_size(fields),
        ckpt_format="torch_dist",
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        no_save_optim=True,
        no_save_rng=True,
    )
    return Namespace(**dict(sorted(args.items())))
