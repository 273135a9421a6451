"""transformers' language model with the weights of a Hugging Face folder, as the Megatron model computes it.

Two things differ from `from_pretrained` alone. The step size is not clamped: transformers clamps dt from below by
`time_step_min`, Megatron-Core and the published code do not. And transformers has no multi-token prediction: its blocks
are put together here from transformers' own layers (`hf_mtp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapspec.choose import apply_sets
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.json_config import read_config
from mapspec.logits.hf_loading import loading, require_filled, unclamp
from mapspec.logits.trace import Built

__all__ = ["build_hf"]

_ARCHITECTURE = "NemotronHForCausalLM"


def build_hf(folder: Path, *, sets: Sequence[str], dtype: str, device: str) -> Built:
    """The model of a checkpoint.

    Raises:
        CheckpointError: MS821 where transformers has no model of this architecture.
        VerifyError: MS822 where the checkpoint does not fill the model.
    """
    import torch
    from transformers import NemotronHForCausalLM

    from mapspec.logits.hf_media import build_multimodal_hf, is_multimodal
    from mapspec.logits.hf_mtp import build_mtp

    values = apply_sets(read_config(folder / "config.json"), sets)
    if is_multimodal(values):
        return build_multimodal_hf(folder, values, dtype=dtype, device=device)
    if _ARCHITECTURE not in (values.get("architectures") or ()):
        message = f"logits are compared for {_ARCHITECTURE} only, not for {values.get('architectures')}"
        raise CheckpointError(
            Diagnostic("MS821", message, where=str(folder), help="use `mapspec verify` without --logits")
        )
    with loading(folder):
        model, info = NemotronHForCausalLM.from_pretrained(
            folder,
            config=_config(values),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            use_safetensors=True,
            experts_implementation="eager",  # the grouped kernels know no float64, which the noise floor needs
        )
    tied = bool(values.get("tie_word_embeddings"))
    require_filled(folder, info, tied, "lm_head.weight")
    if tied:  # transformers never ties this architecture, whatever the config says
        model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.data)
    model.mtp = build_mtp(model, folder, values)
    unclamp(model)
    model.to(device).eval()
    watched = [("embedding", model.model.embeddings), ("final norm", model.model.norm_f)]
    watched += [(f"layer {i}", layer) for i, layer in enumerate(model.model.layers)]
    if model.mtp is not None:
        watched.append(("mtp", model.mtp.hidden))

    def forward(tokens: Any) -> Any:
        given = tokens.to(device)
        hidden = model.model(given).last_hidden_state
        if model.mtp is not None:
            model.mtp(given, hidden)
        return model.lm_head(hidden)

    return Built(model, forward, tuple(watched), False, "transformers' NemotronHForCausalLM")


def _config(values: dict[str, Any]) -> Any:
    """transformers' config; it knows one spelling of the head size only, and the step limit is set on the layers."""
    from transformers import NemotronHConfig

    known = {key: value for key, value in values.items() if key not in ("time_step_limit", "mamba_dt_limit")}
    if "head_dim" not in known and "attention_head_dim" in known:
        known["head_dim"] = known["attention_head_dim"]
    return NemotronHConfig.from_dict(known)
