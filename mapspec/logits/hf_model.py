"""transformers' language model with the weights of a Hugging Face folder, as the Megatron model computes it.

Two things differ from `from_pretrained` alone. The step size is not clamped: transformers clamps dt from below by
`time_step_min`, Megatron-Core and the published code do not. And transformers has no multi-token prediction: its blocks
are put together here from transformers' own layers (`hf_mtp`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.choose import apply_sets
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError, VerifyError
from mapspec.io.json_config import read_config
from mapspec.logits.trace import Built

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_hf", "loading", "require_filled", "unclamp"]

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


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """transformers reads a checkpoint without a word; what it cannot read is MS822."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        message = f"transformers refuses the checkpoint: {str(error).strip().splitlines()[0]}"
        raise VerifyError(Diagnostic("MS822", message, where=str(folder))) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _config(values: dict[str, Any]) -> Any:
    """transformers' config; it knows one spelling of the head size only, and the step limit is set on the layers."""
    from transformers import NemotronHConfig

    known = {key: value for key, value in values.items() if key not in ("time_step_limit", "mamba_dt_limit")}
    if "head_dim" not in known and "attention_head_dim" in known:
        known["head_dim"] = known["attention_head_dim"]
    return NemotronHConfig.from_dict(known)


def unclamp(model: nn.Module) -> None:
    """Take the clamp off the step size of every Mamba layer."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))  # type: ignore[assignment]


def require_filled(folder: Path, info: dict[str, Any], tied: bool, head: str) -> None:
    """A finding (MS822) for what the checkpoint lacks or has too much; a tied `head` need not be there."""
    found = []
    missing = sorted(set(info["missing_keys"]) - ({head} if tied else set()))
    for names, what in (
        (missing, "gets no values for"),
        (sorted(info["unexpected_keys"]), "has no place for"),
    ):
        if names:
            shown = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            found.append(Diagnostic("MS822", f"transformers' model {what} {shown}", where=str(folder)))
    if found:
        raise VerifyError(found)
