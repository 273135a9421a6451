"""The same inputs through transformers' Omni model and ours, as they are or with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fixtures_omni import TinyOmni, expanded_inputs, media
from oracle import read_hf
from oracle_omni import build_omni, fill_omni
from torch import Tensor

from mapspec.backends import multimodal_expanded
from mapspec.backends.reference import cpu_adapters
from mapspec.logits.hf_media import load_multimodal, run_multimodal

__all__ = ["DIFFERENCES", "Compared", "Difference", "compare", "cosine"]

Run = dict[str, Tensor]  # "vision features", "sound features", "logits"


@dataclass(frozen=True)
class Difference:
    """One thing that is otherwise than it should be: how our model is built, or what is done to it afterwards."""

    build: Mapping[str, Any] = field(default_factory=dict)
    ours: Callable[[Any], None] = lambda model: None
    context: Callable[[], Any] = nullcontext


@dataclass(frozen=True)
class Compared:
    """Largest difference as a part of the range of values, and cosine."""

    relative: float
    cosine: float


def cosine(a: Tensor, b: Tensor) -> float:
    """Of all values at once, in fp64."""
    return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()


_SEEN: dict[tuple[Path, bool, bool], Run] = {}


def reference(folder: Path, model: TinyOmni, video: bool, clamp: bool) -> Run:
    """What transformers makes of the inputs, once; `clamp` leaves its lower bound of the step size where it is."""
    if (folder, video, clamp) not in _SEEN:
        _SEEN[folder, video, clamp] = _reference(folder, model, video, clamp)
    return _SEEN[folder, video, clamp]


def _reference(folder: Path, model: TinyOmni, video: bool, clamp: bool) -> Run:
    _, config = read_hf(folder)
    hf, info = load_multimodal(folder, config, getattr(torch, model.dtype))
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for module in hf.modules() if clamp else ():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (hf.config.text_config.time_step_min, float("inf"))
    return _theirs(hf, media(model, images=not video, videos=video))


def compare(
    folder: Path, model: TinyOmni, difference: Difference = Difference(), *, video: bool = False, clamp: bool = False
) -> dict[str, Compared]:
    """Run both on an image and sound, or on a video and sound. Needs a process group."""
    left = reference(folder, model, video, clamp)
    _, config = read_hf(folder)
    build = {"dtype": getattr(torch, model.dtype), **difference.build}
    build["fields"] = {"vision_final_layernorm": model.language.mtp_blocks > 0, **build.get("fields", {})}
    with difference.context():
        ours = build_omni(config, **build)
        fill_omni(ours, folder)
        difference.ours(ours)
        right = _ours(ours, expanded_inputs(model, images=not video, videos=video))
    return {name: _compared(left[name], right[name]) for name in left}


def _compared(left: Tensor, right: Tensor) -> Compared:
    spread = (left.max() - left.min()).item()
    return Compared((left - right).abs().max().item() / spread, cosine(left, right))


def _theirs(model: Any, given: dict[str, Tensor]) -> Run:
    with torch.no_grad():
        out = {"logits": run_multimodal(model, given, 4)}
        if "video" in given:
            out["vision features"] = model.get_video_features(given["video"]).pooler_output.flatten(0, 1)
        else:
            seen = model.get_image_features(given["images"][0], given["imgs_sizes"] // 4)
            out["vision features"] = torch.cat(seen.pooler_output)
        if "sound_clips" in given:
            mask = torch.arange(given["sound_clips"].shape[1]) < given["sound_length"][:, None]
            out["sound features"] = model.get_audio_features(given["sound_clips"], mask).pooler_output
    return out


def _ours(model: Any, given: dict[str, Tensor]) -> Run:
    ids = given.pop("input_ids")
    with torch.no_grad(), cpu_adapters():
        out = {
            "logits": model(ids, torch.arange(ids.shape[1])[None], runtime_gather_output=True, **given),
            "vision features": model.encode_images(given["images"], given["imgs_sizes"], given["num_frames"]),
        }
        if "sound_clips" in given:
            out["sound features"] = model.encode_sound(given["sound_clips"], given["sound_length"])
    return out


# --- differences, each alone -------------------------------------------------------------------------------------


@contextmanager
def _rows_of_four() -> Any:
    """LLaVAModel's pixel shuffle for images of any size: four patches in a row, not a square of four."""

    def four(features: Tensor) -> Tensor:
        return features.reshape(-1, 4 * features.shape[-1])

    with mock.patch.object(multimodal_expanded, "pixel_shuffle", four):
        yield


@contextmanager
def _one_sequence() -> Any:
    """Patches of all images attend to each other."""
    from mapspec.backends.multimodal_specs import DotProductAttention, PackedDotProductAttention

    def together(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return DotProductAttention.forward(self, *(x.unsqueeze(1) for x in (query, key, value)), None).squeeze(1)

    with mock.patch.object(PackedDotProductAttention, "forward", together):
        yield


def _pad_class_tokens(model: Any) -> None:
    """Six rows of noise before the ten, as Megatron-Core pads them for FP8."""
    vision = model.vision_model
    noise = torch.randn(6, vision.class_token.shape[1], generator=torch.Generator().manual_seed(0))
    vision.class_token = torch.nn.Parameter(torch.cat([noise.to(vision.class_token.dtype), vision.class_token]))
    vision.class_token_len = 16


def _fewer_class_tokens(model: Any) -> None:
    vision = model.vision_model
    vision.class_token = torch.nn.Parameter(vision.class_token[-8:].clone())
    vision.class_token_len = 8


def _scale_sound(model: Any) -> None:
    model.sound_model.encoder.input_scale = model.sound_model.encoder.config.hidden_size**0.5


def _fast_gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


DIFFERENCES: Mapping[str, Difference] = {
    "plain ReLU in the projectors": Difference({"projection": {"activation_func": torch.nn.functional.relu}}),
    "four patches in a row instead of a square of four": Difference(context=_rows_of_four),
    "positions stretched to the image instead of cut from a square": Difference(
        {"fields": {"radio_interpolate_only_cpe": True}}
    ),
    "positions cut out, not resized": Difference({"fields": {"radio_disable_cpe": True}}),
    "8 of the 10 class tokens": Difference(ours=_fewer_class_tokens),
    "class tokens padded to 16 with noise": Difference(ours=_pad_class_tokens),
    "images attend to each other": Difference(context=_one_sequence),
    "tanh GELU in the vision tower": Difference({"vision": {"activation_func": _fast_gelu}}),
    "quick GELU in the vision tower": Difference({"vision": {"activation_func": _quick_gelu}}),
    "epsilon 1e-5 in the vision tower": Difference({"vision": {"layernorm_epsilon": 1e-5}}),
    "sound scaled by the root of its width": Difference(ours=_scale_sound),
}
