"""transformers' model that sees and hears, with the weights of a Hugging Face folder.

What is done to it so that it loads what is published and computes what Megatron-Core computes stands in `WORKAROUNDS`
and `NEUTRALISED`: one line for each thing, and why. Everything else is transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.logits.hf_loading import loading, require_filled, unclamp
from mapspec.logits.media import language_part, make_media
from mapspec.logits.trace import Built

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NEUTRALISED",
    "WORKAROUNDS",
    "build_multimodal_hf",
    "hf_config",
    "is_multimodal",
    "load_multimodal",
    "run_multimodal",
]

# What transformers 5.23 cannot do with published checkpoints, or with its own.
WORKAROUNDS = (
    "sound_config.model_type is taken out: transformers says that it does so, and then refuses `parakeet`",
    "time_step_limit is taken out of the language part: transformers does not read back the Infinity that it writes",
    "convolutions of the sound encoder and its projector have no bias where the config is silent: no file holds one",
    "a vision part that is silent on video gets the model's own number of frames: transformers demands that both agree",
    "args.register_multiple of the vision part says how many class tokens there are: transformers does not read it",
    "features of a video are handed to the model as a tuple: transformers concatenates a tensor and stops",
)
# Where it computes something else than Megatron-Core and the published code.
NEUTRALISED = (
    "time_step_limit is (0, inf) on every Mamba mixer: transformers clamps the step size from below by time_step_min",
)
# Tensors that transformers has and Megatron-Core has not, or the other way round; none has part in the logits.
_NOT_MISSED = ("summary_idxs", "input_conditioner.", "layer_scale", "vision_final_layernorm.")
_VIDEO = "video_patch_projection."  # nor has this, where a config says nothing of video


def is_multimodal(values: Mapping[str, Any]) -> bool:
    """Whether a config has parts for language and for vision."""
    return language_part(values) != values and isinstance(values.get("vision_config"), dict)


def hf_config(values: Mapping[str, Any], where: str = "config.json") -> Any:
    """transformers' config object for a config of either dialect.

    Raises:
        CheckpointError: MS821 where transformers refuses it.
    """
    from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3_Config

    known = dict(values)
    for name in ("sound_config", "audio_config"):
        if isinstance(known.get(name), dict):
            given = {key: value for key, value in known[name].items() if key != "model_type"}
            known[name] = {"convolution_bias": False, "projection_bias": False, **given}
    for name in ("llm_config", "text_config"):
        if isinstance(known.get(name), dict):
            dropped = ("time_step_limit", "mamba_dt_limit")
            known[name] = {key: value for key, value in known[name].items() if key not in dropped}
    vision = dict(known.get("vision_config") or {})
    vision.setdefault("video_temporal_patch_size", known.get("video_temporal_patch_size", 2))
    rows = (vision.get("args") or {}).get("register_multiple")
    if rows is not None:
        vision.setdefault("num_registers", int(rows) - int(vision.get("num_cls_tokens", 3)))
    known["vision_config"] = vision
    try:
        return NemotronH_Omni_Reasoning_V3_Config.from_dict(known)
    except (TypeError, ValueError) as error:
        message = f"transformers refuses the config: {str(error).strip().splitlines()[-1].strip()}"
        raise CheckpointError(Diagnostic("MS821", message, where=where)) from error


def load_multimodal(folder: Path, values: Mapping[str, Any], dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The model, in evaluation mode, and what loading says of missing and unexpected tensors."""
    from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3

    model, info = NemotronH_Omni_Reasoning_V3.from_pretrained(
        folder,
        config=hf_config(values, str(folder)),
        dtype=dtype,
        output_loading_info=True,
        use_safetensors=True,
        experts_implementation="eager",  # as in `hf_model`
    )
    unclamp(model)
    silent = "video_temporal_patch_size" not in values["vision_config"]
    spared = (*_NOT_MISSED, _VIDEO) if silent else _NOT_MISSED
    for kind in ("missing_keys", "unexpected_keys"):
        info[kind] = {name for name in info[kind] if not any(part in name for part in spared)}
    return model.eval(), info


def build_multimodal_hf(folder: Path, values: dict[str, Any], *, dtype: str, device: str) -> Built:
    """The model of a checkpoint, which sees and hears `make_media` with every sequence.

    Raises:
        CheckpointError: MS821 where transformers refuses the config.
        VerifyError: MS822 where the checkpoint does not fill the model.
    """
    import torch

    from mapspec.logits.hf_mtp import build_mtp

    media = make_media(values)
    assert media is not None
    with loading(folder):
        model, info = load_multimodal(folder, values, getattr(torch, dtype))
    words = language_part(values)
    tied = bool(words.get("tie_word_embeddings"))
    require_filled(folder, info, tied, "language_model.lm_head.weight")
    language = model.language_model
    if tied:
        language.lm_head.weight.data.copy_(language.get_input_embeddings().weight.data)
    language.mtp = build_mtp(language, folder, words)
    model.to(device).eval()
    watched = [("vision features", model.multi_modal_projector)]
    if model.embed_audio is not None:
        watched.append(("sound features", model.embed_audio))
    watched += [("embedding", language.model.embeddings), ("final norm", language.model.norm_f)]
    watched += [(f"layer {i}", layer) for i, layer in enumerate(language.model.layers)]
    if language.mtp is not None:
        watched.append(("mtp", language.mtp.hidden))

    def forward(tokens: Any) -> Any:
        given = tokens.to(device)
        model.vision_model.config.dtype = model.dtype  # what the model casts images to
        kept: list[Any] = []
        handle = language.model.norm_f.register_forward_hook(lambda *seen: kept.append(seen[-1]))
        try:
            logits = run_multimodal(model, {"input_ids": given, **media.inputs(len(given), device)}, media.patch)
        finally:
            handle.remove()
        if language.mtp is not None:
            language.mtp(given, kept[0])
        return logits

    return Built(model, forward, tuple(watched), False, f"transformers' {type(model).__name__}")


def run_multimodal(model: Any, given: Mapping[str, Tensor], patch: int) -> Tensor:
    """Logits [batch, s, vocab] for the inputs of the expanded assembly, images or a video but not both.

    Args:
        model: see `load_multimodal`.
        given: `input_ids`; `images` [1, patches, 3 * patch * patch] with `imgs_sizes`, or `video` [frames, 3, h, w];
            `sound_clips`, with `sound_length` where clips are padded.
        patch: side of a patch in pixels.
    """
    import torch

    features: dict[str, Any] = {}
    others: dict[str, Any] = {}
    if "video" in given:
        seen = model.get_video_features(given["video"])
        seen.pooler_output = tuple(seen.pooler_output)
        features["video"] = seen
    elif "images" in given:
        others |= {"pixel_values": given["images"][0], "image_grid_hw": given["imgs_sizes"] // patch}
    if "sound_clips" in given:
        others["input_features"] = given["sound_clips"]
    if "sound_length" in given:
        frames = torch.arange(given["sound_clips"].shape[1], device=given["sound_clips"].device)
        others["input_features_mask"] = frames < given["sound_length"][:, None]
    logits: Tensor = model(input_ids=given["input_ids"], mm_encoder_outputs=features or None, **others).logits
    return logits
