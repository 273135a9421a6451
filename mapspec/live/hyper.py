"""In what a live model differs from the model that a config describes, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mapspec.errors import MapspecError

__all__ = ["differing_fields"]

# How weights were drawn or how work is scheduled: a model may differ in it from the checkpoint's.
_FREE = frozenset(
    {"params_dtype", "init_method_std", "moe_shared_expert_overlap", "moe_aux_loss_coeff", "fp32_residual_connection"}
    | {"hidden_dropout", "attention_dropout", "mtp_loss_scaling_factor"}
    | {"mtp_hybrid_override_pattern"}  # before the two patterns were made one
)
# One group of experts is as good as none.
_ONE_IS_NONE = frozenset({"moe_router_num_groups", "moe_router_group_topk"})


def differing_fields(model: Any, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of the model's TransformerConfig that the config gives another value, in the provider spec's order.

    Only fields that the config itself decides are compared. Without a provider for the architecture, or where the
    config does not resolve, nothing can be said and the result is empty.
    """
    from mapspec.provider.provider import Provider

    out = []
    try:
        provider = Provider.from_hf(config)
        for name, field in provider.resolved.fields.items():
            if field.origin not in ("hf", "derived") or name in _FREE or not hasattr(model.config, name):
                continue
            built, wanted = getattr(model.config, name), getattr(provider, name)
            if name in _ONE_IS_NONE and {built, wanted} <= {None, 1}:
                continue
            # Megatron-Core spells "none of it" as None, 0 or False.
            if name in ("bf16", "fp16") or (built or None) == (wanted or None):
                continue
            out.append(f"{name}: the model was built with {_text(built)}, the config says {_text(wanted)}")
    except MapspecError:
        return ()
    return tuple(out)


def _text(value: Any) -> str:
    return str(getattr(value, "__name__", None) or repr(value))
