"""Ground truth for Omni: builds a live model from a Hugging Face config by hand and fills it by straightforward torch.

As `oracle`, and independent of mapspec's specs, providers and interpreter in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from oracle import Filler, build_for, megatron_fields, megatron_pattern, read_hf
from torch import Tensor

from mapspec.backends.multimodal import build
from mapspec.backends.reference import reference_config

__all__ = ["build_omni", "fill_omni", "language_config", "omni_fields", "parts_of"]

VISION = "vision_model.radio_model.model."


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part for the language model, whatever it is called."""
    return dict(config.get("llm_config") or config["text_config"])


def _sound_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    return config.get("sound_config") or config.get("audio_config")


def omni_fields(config: Mapping[str, Any], assembly: str = "expanded", **changes: Any) -> dict[str, Any]:
    """Provider fields that `build` reads, for a Hugging Face config."""
    vision, sound = config["vision_config"], _sound_config(config)
    video = bool(vision.get("separate_video_embedder", "video_temporal_patch_size" in vision))
    return {
        "image_token_index": config.get("img_context_token_id") or config["image_token_id"],
        "sound_context_token_id": config.get("sound_context_token_id") or config.get("audio_token_id"),
        "has_sound": sound is not None,
        "sound_config": sound,
        "dynamic_resolution": assembly == "expanded" or video,
        "temporal_patch_dim": vision["video_temporal_patch_size"] if video else 1,
        "separate_video_embedder": video,
        "vision_class_token_len": vision["num_cls_tokens"] + vision["num_registers"],
        "patch_dim": vision["patch_size"],
        "max_img_size": vision["max_img_size"],
        "img_h": vision["max_img_size"],
        "img_w": vision["max_img_size"],
        "language_model_type": "nemotron6-moe",
        **changes,
    }


def _over(config: Any, **changes: Any) -> Any:
    config = copy.deepcopy(config)
    for name, value in changes.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    return config


def build_omni(
    config: Mapping[str, Any],
    assembly: str = "expanded",
    *,
    dtype: torch.dtype = torch.float32,
    cuts: tuple[int, ...] = (),
    fields: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    projection: Mapping[str, Any] | None = None,
    **switches: Any,
) -> Any:
    """The model of this rank, on the CPU; `vision` and `projection` change fields of those configs."""
    llm, tower, sound = language_config(config), config["vision_config"], _sound_config(config)
    pattern = megatron_pattern(llm, cuts)
    language = reference_config(megatron_fields(llm, dtype), hybrid_layer_pattern=pattern)
    alone: dict[str, Any] = {"pipeline_model_parallel_size": 1, "sequence_parallel": False, "mtp_num_layers": None}
    configs = {
        "language": language,
        "vision": _over(
            language,
            **alone,
            **{
                "num_layers": tower["num_hidden_layers"],
                "num_attention_heads": tower["num_attention_heads"],
                "num_query_groups": tower["num_attention_heads"],
                "kv_channels": tower["hidden_size"] // tower["num_attention_heads"],
                "hidden_size": tower["hidden_size"],
                "ffn_hidden_size": int(tower["hidden_size"] * tower["mlp_ratio"]),
                "add_bias_linear": True,
                "add_qkv_bias": True,
                "activation_func": torch.nn.functional.gelu,
                "normalization": "LayerNorm",
                "layernorm_epsilon": 1e-6,
                "attention_softmax_in_fp32": True,
                "num_moe_experts": None,
                **(vision or {}),
            },
        ),
        "vision_projection": _over(
            language, **alone, **{"ffn_hidden_size": config["projector_hidden_size"], **(projection or {})}
        ),
    }
    if sound is not None:
        configs["sound_projection"] = _over(
            language, **alone, ffn_hidden_size=sound["projection_hidden_size"], **(projection or {})
        )
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    norms = switches.get("norms", "fused")
    return build(
        assembly,  # type: ignore[arg-type]
        language=lambda pre, post: build_for(
            llm, dtype=dtype, cuts=cuts, pre_process=pre, post_process=post, **switches
        ),
        configs=configs,
        fields={"norms": norms, **omni_fields(config, assembly), **(fields or {})},
        pre_process=first,
        post_process=last,
        backend="reference",
    ).eval()


def parts_of(model: Any) -> Any:
    """What holds `language_model` and its siblings."""
    return getattr(model, "llava_model", model)


def fill_omni(model: Any, folder: Path) -> set[str]:
    """Fill this rank's model from a checkpoint; every parameter and saved buffer must get a value; names used."""
    state, config = read_hf(folder)
    parts = parts_of(model)
    words = {name.removeprefix("language_model."): value for name, value in state.items()}
    words = {f"backbone.{n.removeprefix('model.')}" if n.startswith("model.") else n: v for n, v in words.items()}
    language = Filler(parts.language_model, words, language_config(config))
    filler = Filler(model, state, config)
    filler.filled = language.filled
    with torch.no_grad():
        used = {n for n in state if n.removeprefix("language_model.").removeprefix("model.") in
                {u.removeprefix("backbone.") for u in language.run()}
                or n.removeprefix("language_model.") in language.used}  # fmt: skip
        if parts.vision_model is not None:
            _vision(filler, parts.vision_model, config["vision_config"])
            _projector(filler, parts.vision_projection, "mlp1.", ("0", "1", "3"))
        if parts.sound_model is not None:
            for name, value in parts.sound_model.encoder.state_dict(keep_vars=True).items():
                filler.whole(value, f"sound_encoder.encoder.{name}")
            _projector(filler, parts.sound_projection, "sound_projection.", ("norm", "linear1", "linear2"))
    held = {name: value for name, value in model.state_dict(keep_vars=True).items() if value is not None}
    empty = [name for name, value in held.items() if id(value) not in filler.filled]
    assert not empty, f"left unfilled: {empty}"
    return used | filler.used


def _projector(filler: Filler, projector: Any, prefix: str, names: tuple[str, str, str]) -> None:
    norm, first, second = (f"{prefix}{name}.weight" for name in names)
    filler.whole(projector.encoder.linear_fc1.layer_norm_weight, norm)
    filler.rows(projector.encoder.linear_fc1.weight, first)
    filler.columns(projector.encoder.linear_fc2.weight, second)


def _vision(filler: Filler, model: Any, tower: Mapping[str, Any]) -> None:
    patches = VISION + "patch_generator."
    filler.whole(model.class_token, patches + "cls_token.token")
    filler.whole(model.position_embeddings, patches + "pos_embed")
    filler.rows(model.embedder.weight, patches + "embedder.weight")
    if hasattr(model, "video_embedder"):
        filler.rows(model.video_embedder.weight, patches + "video_embedder.weight")
    heads = tower["num_attention_heads"]
    for index, layer in enumerate(model.decoder.layers):
        block = f"{VISION}blocks.{index}."
        attention, mlp = layer.self_attention, layer.mlp
        for kind in ("weight", "bias"):
            whole = filler.take(f"{block}attn.qkv.{kind}")
            by_head = [part.view(heads, -1, *whole.shape[1:]) for part in whole.chunk(3)]
            mixed: Tensor = torch.cat(by_head, dim=1).reshape(whole.shape)
            filler.put(getattr(attention.linear_qkv, kind), filler.part(mixed, filler.tp))
            filler.rows(getattr(mlp.linear_fc1, kind), f"{block}mlp.fc1.{kind}")
            for module, fused, name in (
                (layer.input_layernorm, attention.linear_qkv, "norm1"),
                (layer.pre_mlp_layernorm, mlp.linear_fc1, "norm2"),
            ):
                held = getattr(module, kind, None)
                filler.whole(
                    held if held is not None else getattr(fused, f"layer_norm_{kind}"), f"{block}{name}.{kind}"
                )
        filler.columns(attention.linear_proj.weight, block + "attn.proj.weight")
        filler.whole(attention.linear_proj.bias, block + "attn.proj.bias")
        filler.columns(mlp.linear_fc2.weight, block + "mlp.fc2.weight")
        filler.whole(mlp.linear_fc2.bias, block + "mlp.fc2.bias")
