"""The checkpoints that are checked, written by transformers with random values, and what they should compute.

Sizes suit the kernels of the GPU model: channels in multiples of 16, chunks of 128 positions, and TP 2 divides
everything. `tiny` has every kind of layer, latent experts and a multi-token prediction block; `medium` has the
proportions of a released model. `omni` sees and hears: the language model of `tiny`, RADIO, Parakeet and projectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fixtures_hf import TinyModel, write_tiny
from fixtures_omni import TinyOmni, write_tiny_omni
from torch import Tensor

from mapspec.io.json_config import read_config
from mapspec.logits.hf_media import is_multimodal
from mapspec.logits.hf_model import build_hf
from mapspec.logits.media import language_part, make_media

__all__ = ["MODELS", "TOKENS", "hf_logits", "media_for", "tokens_for", "write_model"]

MODELS: dict[str, TinyModel | TinyOmni] = {
    "tiny": TinyModel(
        "ME*-ME", mtp_pattern="*E", mtp_blocks=1, latent=64, vocab=512, dialect="published",
        config={
            "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
            "head_dim": 32, "mamba_num_heads": 16, "mamba_head_dim": 16, "n_groups": 4, "ssm_state_size": 16,
            "chunk_size": 128, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 96,
            "moe_shared_expert_intermediate_size": 160,
        },
    ),
    "medium": TinyModel(
        "MEMEM*EMEMEM*EME", latent=512, vocab=16384, dialect="published", max_shard_size="200MB",
        config={
            "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2,
            "head_dim": 128, "mamba_num_heads": 32, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128,
            "chunk_size": 128, "n_routed_experts": 32, "num_experts_per_tok": 6, "moe_intermediate_size": 512,
            "moe_shared_expert_intermediate_size": 1024,
        },
    ),
}  # fmt: skip
assert isinstance(MODELS["tiny"], TinyModel)
MODELS["omni"] = TinyOmni(
    MODELS["tiny"], vision_layers=4, vision={"hidden_size": 128, "patch_size": 16, "max_img_size": 128},
    dialect="published",
)  # fmt: skip
# Sequences and their length: no multiple of the chunk size, but even, for sequences are split over ranks too.
TOKENS = {"tiny": (2, 150), "medium": (1, 96), "omni": (2, 131)}


def tokens_for(model: str, folder: Path) -> Tensor:
    """Token ids [batch, length], the same in every process; with placeholders in front where the model takes media."""
    config = read_config(folder / "config.json")
    draw = torch.Generator().manual_seed(7)
    text = torch.randint(0, int(language_part(config)["vocab_size"]), TOKENS[model], generator=draw)
    media = make_media(config)
    return text if media is None else media.with_places(text)


def media_for(folder: Path, batch: int, device: str | torch.device) -> dict[str, Tensor]:
    """The images and sound that go with `tokens_for`; empty for a model of language alone."""
    media = make_media(read_config(folder / "config.json"))
    return {} if media is None else media.inputs(batch, str(device))


def write_model(model: str, folder: Path) -> int:
    """Write the checkpoint; its bytes."""
    one = MODELS[model]
    if isinstance(one, TinyOmni):
        write_tiny_omni(one, folder)
    else:
        write_tiny(one, folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def hf_logits(folder: Path, tokens: Tensor, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Logits [batch, length, vocab] of transformers' own model, in fp32 on the CPU.

    The step size is left unclamped, as Megatron-Core and the released code have it.
    """
    from transformers import NemotronHForCausalLM

    if is_multimodal(read_config(folder / "config.json")):
        built = build_hf(folder, sets=(), dtype=str(dtype).removeprefix("torch."), device=str(device))
        with torch.no_grad():
            return built.forward(tokens).float().cpu()
    model: Any = NemotronHForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    with torch.no_grad():
        logits: Tensor = model(tokens.to(device)).logits
    return logits.float().cpu()
