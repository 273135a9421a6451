"""Tiny Nemotron Omni checkpoints in the Hugging Face layout, written by transformers itself.

Every tower has sizes of its own, so that nothing fits by accident; TP 2 divides what Megatron-Core splits. The largest
image has 8 x 8 patches of 4 x 4 pixels. Values are random, the biases and the statistics of BatchNorm too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from fixtures_hf import TinyModel, _random, mtp_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["IMAGE", "OMNI", "SOUND", "TinyOmni", "expanded_inputs", "media", "write_tiny_omni"]

IMAGE, SOUND = 18, 27  # placeholder tokens
_KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_PUBLISHED = {
    "text_config": "llm_config",
    "audio_config": "sound_config",
    "vision_hidden_size": "vit_hidden_size",
    "image_token_id": "img_context_token_id",
    "video_token_id": "video_context_token_id",
    "audio_token_id": "sound_context_token_id",
}


@dataclass(frozen=True, slots=True)
class TinyOmni:
    """What to write.

    sound, video: whether there is a sound tower, and an embedder of its own for video (transformers always has one).
    dialect: "native" is what transformers 5.23 saves, tensors included; "published" is what released models have: other
    names in config.json, no layer scale, the buffers of the feature extractors, `mtp.*` beside the language model.
    """

    language: TinyModel = TinyModel("M*E-", latent=40, config={"n_routed_experts": 4})  # noqa: RUF009 (frozen)
    sound: bool = True
    video: bool = True
    registers: int = 7
    vision_layers: int = 2
    dialect: Literal["native", "published"] = "native"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    vision: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> TinyOmni:
        """The same model with some fields changed."""
        return replace(self, **changes)


OMNI: Mapping[str, TinyOmni] = {
    "omni": TinyOmni(),
    "published": TinyOmni(dialect="published"),
    "mtp": TinyOmni(
        TinyModel("M*E", mtp_pattern="*E", mtp_blocks=1, latent=40, config={"n_routed_experts": 4}), dialect="published"
    ),
    "vl": TinyOmni(TinyModel("M*-"), sound=False, video=False, registers=5, dialect="published"),
}


def _config(model: TinyOmni) -> Any:
    from fixtures_hf import _sizes
    from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3_Config

    text: dict[str, Any] = {
        "model_type": "nemotron_h",
        "layers_block_type": [_KINDS[symbol] for symbol in model.language.pattern],
        "num_nextn_predict_layers": model.language.mtp_blocks,
        **_sizes(model.language),
    }
    if model.language.mtp_blocks:
        text["mtp_layers_block_type"] = [_KINDS[symbol] for symbol in model.language.mtp_pattern]
    vision: dict[str, Any] = {
        "model_type": "radio", "hidden_size": 32, "num_hidden_layers": model.vision_layers, "num_attention_heads": 4,
        "mlp_ratio": 3.0, "patch_size": 4, "max_img_size": 32, "num_registers": model.registers,
        "video_temporal_patch_size": 2, **model.vision,
    }  # fmt: skip
    audio = {
        "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40,
        "num_mel_bins": 16, "subsampling_conv_channels": 8, "conv_kernel_size": 5, "convolution_bias": False,
        "projection_hidden_size": 56, "projection_bias": False,
    }  # fmt: skip
    return NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio if model.sound else None,
        vision_hidden_size=vision["hidden_size"],
        projector_hidden_size=48,
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        audio_token_id=SOUND if model.sound else None,
    )


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("lambda1"):
        return torch.ones(shape)
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    if name.endswith((".weight",)) and ("norm" in name) and len(shape) == 1:
        return 1.0 + 0.2 * torch.randn(shape, generator=generator)
    if len(shape) == 4:  # convolutions of the subsampling
        return torch.randn(shape, generator=generator) / 3
    return _random(name, shape, generator)


def _randomised(model: TinyOmni) -> Any:
    from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = _config(model)
    config.dtype = getattr(torch, model.dtype)
    hf = NemotronH_Omni_Reasoning_V3(config).to(getattr(torch, model.dtype)).eval()
    generator = torch.Generator().manual_seed(model.seed)
    with torch.no_grad():
        for name, tensor in hf.state_dict(keep_vars=True).items():
            if name.startswith("vision_final_layernorm."):
                continue  # no checkpoint holds it: identity
            if name.endswith("e_score_correction_bias"):
                tensor.data = _value(name, tuple(tensor.shape), generator).float()
            elif tensor.is_floating_point():
                tensor.copy_(_value(name, tuple(tensor.shape), generator))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(2**40 + 7)
    return hf


def _publish(model: TinyOmni, folder: Path) -> None:
    """Rewrite tensors and config as the released models have them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if "layer_scale" in n or "summary_idxs" in n or "vision_final_layernorm" in n]:
        del tensors[name]
    if not model.video:
        del tensors["vision_model.radio_model.model.patch_generator.video_embedder.weight"]
    generator = torch.Generator().manual_seed(2000 + model.seed)
    dtype = getattr(torch, model.dtype)
    for name in ("norm_mean", "norm_std"):
        value = torch.rand(3, 1, 1, generator=generator)
        tensors[f"vision_model.radio_model.input_conditioner.{name}"] = value.to(dtype)
    if model.sound:
        stem = "sound_encoder.encoder.feature_extractor.featurizer."
        tensors[stem + "fb"] = torch.rand(1, 16, 9, generator=generator)
        tensors[stem + "window"] = torch.rand(20, generator=generator)
    if model.language.mtp_blocks:
        tensors |= mtp_tensors(model.language.but(dtype=model.dtype))
    save_file(tensors, path, metadata={"format": "pt"})

    path = folder / "config.json"
    config = json.loads(path.read_text())
    config = {_PUBLISHED.get(key, key): value for key, value in config.items()}
    text = config["llm_config"]
    text["architectures"] = ["NemotronHForCausalLM"]
    text["hybrid_override_pattern"] = model.language.pattern
    text["num_hidden_layers"] = len(model.language.pattern)
    for key in ("layers_block_type", "mtp_layers_block_type", "time_step_limit"):
        text.pop(key, None)
    if model.language.mtp_blocks:
        text["mtp_hybrid_override_pattern"] = model.language.mtp_pattern
    config["torch_dtype"] = text["torch_dtype"] = config.pop("dtype")
    config["architectures"] = [config["architectures"][0].replace("H_Omni", "H_Nano_Omni")]
    config["vision_config"]["separate_video_embedder"] = model.video
    if not model.video:
        config.pop("video_temporal_patch_size")
        config["vision_config"].pop("video_temporal_patch_size")
    if model.sound:
        config["sound_config"]["model_type"] = "parakeet"
        for key in ("attention_bias", "convolution_bias", "scale_input", "projection_bias"):
            config["sound_config"].pop(key)  # released configs are silent and mean none
    path.write_text(json.dumps(config, indent=2))


def write_tiny_omni(model: TinyOmni | str, folder: Path) -> Path:
    """Write the checkpoint (a TinyOmni or the name of a variant) into `folder`, replacing it; returns the folder."""
    if isinstance(model, str):
        model = OMNI[model]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _randomised(model).save_pretrained(folder)
    if model.dialect == "published":
        _publish(model, folder)
    return folder


def media(model: TinyOmni, *, seed: int = 0, images: bool = True, videos: bool = True) -> dict[str, Tensor]:
    """Inputs with two images of different sizes, a video of three frames and two clips of sound, as the model has them.

    Args:
        images, videos: whether to have some; transformers takes only one of the two at a time.

    Returns:
        `input_ids` [1, s] with the placeholders; `images` [1, patches, 48], `imgs_sizes` [n, 2] and `num_frames`;
        `video` [frames, 3, h, w]; `sound_clips` [2, frames, 16] and `sound_length` [2].
    """
    draw = torch.Generator().manual_seed(seed)
    sizes = [(24, 16), (16, 32)] if images else []
    patches = torch.randn(1, sum(h * w // 16 for h, w in sizes), 48, generator=draw)
    video = torch.randn(3, 3, 16, 24, generator=draw)
    text = torch.randint(30, 250, (64,), generator=draw).tolist()
    ids = text[:5]
    for h, w in sizes:
        ids += [*([IMAGE] * (h * w // 64)), *text[5:9]]
    out = {"images": patches, "imgs_sizes": torch.tensor(sizes, dtype=torch.int64).view(-1, 2)}
    if model.video and videos:
        for _ in range(2):  # three frames, two in a group
            ids += [*([IMAGE] * (16 * 24 // 64)), *text[9:14]]
        out["video"] = video
    if model.sound:
        out["sound_clips"] = torch.randn(2, 41, 16, generator=draw)
        out["sound_length"] = torch.tensor([40, 29])
        ids += [*([SOUND] * 6), *text[14:18], *([SOUND] * 4), *text[18:23]]
    out["input_ids"] = torch.tensor([ids + text[23:40]])
    return out


def expanded_inputs(model: TinyOmni, **options: Any) -> dict[str, Tensor]:
    """`media` as the expanded assembly takes it: the frames of the video in one row with the images."""
    from mapspec.backends.multimodal_expanded import to_patches

    given = media(model, **options)
    given["num_frames"] = torch.ones(len(given["imgs_sizes"]), dtype=torch.int64)
    if "video" in given:
        video = given.pop("video")
        given["images"] = torch.cat([given["images"], to_patches(video, 4)], dim=1)
        given["imgs_sizes"] = torch.cat([given["imgs_sizes"], torch.tensor([list(video.shape[-2:])] * len(video))])
        given["num_frames"] = torch.tensor([*given["num_frames"], len(video)])
    return given
