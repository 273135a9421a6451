"""Tiny Nemotron-H checkpoints in the Hugging Face layout, written by transformers itself.

Sizes are chosen so that no two kinds of tensor have the same shape where it matters and TP 4 divides everything:
q [128, 64], k and v [32, 64]; in_proj z 96, x 96, B 32, C 32, dt 8 rows; dense MLP 160, routed expert 48, shared 80.
All values are random: transformers leaves router weights and biases at zero or unset.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["VARIANTS", "TinyModel", "mtp_tensors", "write_tiny"]

_KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to write. `mtp_blocks` copies of the `mtp_pattern` block follow the main layers.

    dialect: "native" is config.json as transformers 5.23 writes it, "published" as the released models have it.
    layout: "published" is backbone.* with one tensor per expert, "native" model.* with stacked experts.
    """

    pattern: str
    mtp_pattern: str = ""
    mtp_blocks: int = 0
    latent: int | None = None
    vocab: int = 256
    tied: bool = False
    dialect: Literal["native", "published"] = "native"
    layout: Literal["published", "native"] = "published"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_shard_size: str = "5GB"
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> TinyModel:
        """The same model with some fields changed."""
        return replace(self, **changes)


VARIANTS: Mapping[str, TinyModel] = {
    "dense": TinyModel("M*M-"),
    "moe": TinyModel("ME*-", dialect="published"),
    "latent": TinyModel("ME*E", latent=40),
    "mtp1": TinyModel("ME*E", mtp_pattern="*E", mtp_blocks=1, latent=40, dialect="published"),
    "mtp2": TinyModel("M*E", mtp_pattern="*E", mtp_blocks=2),
    "mtp_mamba": TinyModel("M*", mtp_pattern="M-*E", mtp_blocks=1, max_shard_size="100KB"),
    "odd_vocab": TinyModel("M*-E", vocab=251, dialect="published"),
    "tied": TinyModel("M*-", tied=True),
}


def _sizes(model: TinyModel) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "mamba_num_heads": 8,
        "mamba_head_dim": 12,
        "n_groups": 4,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "chunk_size": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "moe_shared_expert_intermediate_size": 80,
        "moe_latent_size": model.latent,
        "routed_scaling_factor": 2.5,
        "layer_norm_epsilon": 1e-5,
        **model.config,
    }


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """fp32 values of a sane size for the tensor called `name`."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(1.0, 16.0, generator=generator).log()
    if name.endswith("dt_bias"):
        return noise - 2.0
    if name.endswith("e_score_correction_bias"):
        return 0.1 * noise
    if name.endswith((".D", "norm.weight", "norm_f.weight", "layernorm.weight")):
        return 1.0 + 0.2 * noise
    if len(shape) == 1:
        return 0.2 * noise
    if "embed" in name:
        return noise
    return noise / shape[-1] ** 0.5


def _layer_shapes(kind: str, size: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published names and shapes of one layer, without its prefix."""
    hidden = size["hidden_size"]
    yield "norm.weight", (hidden,)
    if kind == "M":
        heads, inner = size["mamba_num_heads"], size["mamba_num_heads"] * size["mamba_head_dim"]
        conv = inner + 2 * size["n_groups"] * size["ssm_state_size"]
        for name in ("A_log", "D", "dt_bias"):
            yield f"mixer.{name}", (heads,)
        yield "mixer.conv1d.weight", (conv, 1, size["conv_kernel"])
        yield "mixer.conv1d.bias", (conv,)
        yield "mixer.in_proj.weight", (inner + conv + heads, hidden)
        yield "mixer.norm.weight", (inner,)
        yield "mixer.out_proj.weight", (hidden, inner)
    elif kind == "*":
        queries, keys = (
            size["num_attention_heads"] * size["head_dim"],
            size["num_key_value_heads"] * size["head_dim"],
        )
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"mixer.{name}_proj.weight", (rows, hidden)
        yield "mixer.o_proj.weight", (hidden, queries)
    elif kind == "-":
        yield "mixer.up_proj.weight", (size["intermediate_size"], hidden)
        yield "mixer.down_proj.weight", (hidden, size["intermediate_size"])
    else:
        experts, inner = size["n_routed_experts"], size["moe_intermediate_size"]
        width = size["moe_latent_size"] or hidden
        yield "mixer.gate.weight", (experts, hidden)
        yield "mixer.gate.e_score_correction_bias", (experts,)
        for expert in range(experts):
            yield f"mixer.experts.{expert}.up_proj.weight", (inner, width)
            yield f"mixer.experts.{expert}.down_proj.weight", (width, inner)
        shared = size["moe_shared_expert_intermediate_size"]
        yield "mixer.shared_experts.up_proj.weight", (shared, hidden)
        yield "mixer.shared_experts.down_proj.weight", (hidden, shared)
        if size["moe_latent_size"]:
            yield "mixer.fc1_latent_proj.weight", (size["moe_latent_size"], hidden)
            yield "mixer.fc2_latent_proj.weight", (hidden, size["moe_latent_size"])


def mtp_tensors(model: TinyModel) -> dict[str, Tensor]:
    """The multi-token prediction tensors, which transformers neither builds nor saves."""
    size = _sizes(model)
    hidden, length = size["hidden_size"], len(model.mtp_pattern)
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(model.mtp_blocks):
        for inner, kind in enumerate(model.mtp_pattern):
            prefix = f"mtp.layers.{block * length + inner}."
            shapes |= {prefix + name: shape for name, shape in _layer_shapes(kind, size)}
            if inner == 0:
                shapes[prefix + "eh_proj.weight"] = (hidden, 2 * hidden)
                shapes[prefix + "enorm.weight"] = shapes[prefix + "hnorm.weight"] = (hidden,)
            if inner == length - 1:
                shapes[prefix + "final_layernorm.weight"] = (hidden,)
    generator = torch.Generator().manual_seed(1000 + model.seed)
    dtype = getattr(torch, model.dtype)
    return {
        name: _random(name, shape, generator).to(torch.float32 if name.endswith("correction_bias") else dtype)
        for name, shape in shapes.items()
    }


def _randomised(model: TinyModel) -> Any:
    """A NemotronHForCausalLM with every parameter and the router biases drawn at random."""
    from transformers import NemotronHConfig, NemotronHForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    extra: dict[str, Any] = {}
    if model.mtp_blocks:
        extra["num_nextn_predict_layers"] = model.mtp_blocks
        extra["mtp_layers_block_type"] = [_KINDS[symbol] for symbol in model.mtp_pattern]
    config = NemotronHConfig(
        layers_block_type=[_KINDS[symbol] for symbol in model.pattern],
        tie_word_embeddings=model.tied,
        **_sizes(model),
        **extra,
    )
    config.dtype = getattr(torch, model.dtype)
    hf = NemotronHForCausalLM(config).to(getattr(torch, model.dtype)).eval()
    generator = torch.Generator().manual_seed(model.seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.copy_(_random(name, tuple(parameter.shape), generator))
        for name, buffer in hf.named_buffers():
            if name.endswith("e_score_correction_bias"):  # stays fp32 whatever the model's dtype is
                buffer.data = _random(name, tuple(buffer.shape), generator)
    return hf


def _add_mtp(folder: Path, extra: Mapping[str, Tensor]) -> None:
    """Put the tensors into the last file and bring the index up to date."""
    files = sorted(folder.glob("*.safetensors"))
    held = load_file(files[-1])
    save_file({**held, **extra}, files[-1], metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(extra, files[-1].name)
        content["metadata"]["total_size"] += sum(tensor.nbytes for tensor in extra.values())
        index.write_text(json.dumps(content, indent=2))


def _drop_lm_head(folder: Path) -> None:
    """A tied checkpoint stores no lm_head; transformers writes one because it never ties Nemotron-H."""
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        if held.pop("lm_head.weight", None) is not None:
            save_file(held, path, metadata={"format": "pt"})


def _publish_config(model: TinyModel, folder: Path) -> None:
    """Rewrite config.json with the spelling of the released models."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("layers_block_type")
    config["hybrid_override_pattern"] = model.pattern
    config["num_hidden_layers"] = len(model.pattern)
    config["torch_dtype"] = config.pop("dtype")
    config["norm_eps"] = config["layer_norm_epsilon"]
    config["time_step_limit"] = [0.0, float("inf")]  # written as a bare Infinity
    config.pop("mtp_layers_block_type", None)
    if model.mtp_blocks:
        config["mtp_hybrid_override_pattern"] = model.mtp_pattern
    else:
        config.pop("num_nextn_predict_layers", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def write_tiny(model: TinyModel | str, folder: Path) -> Path:
    """Write the checkpoint (a TinyModel or the name of a variant) into `folder`, replacing it; returns the folder."""
    if isinstance(model, str):
        model = VARIANTS[model]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hf = _randomised(model)
    hf.save_pretrained(
        folder,
        max_shard_size=model.max_shard_size,
        save_original_format=model.layout == "published",
    )
    if model.tied:
        assert model.max_shard_size == "5GB", "the index of a sharded tied checkpoint is not brought up to date"
        _drop_lm_head(folder)
    if model.mtp_blocks:
        _add_mtp(folder, mtp_tensors(model))
    if model.dialect == "published":
        _publish_config(model, folder)
    return folder
