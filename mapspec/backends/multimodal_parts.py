"""The parts of a model that sees and hears: encoders and projectors, as Megatron-Core and transformers have them.

Vision is Megatron-Core's RADIOViTModel, projectors are its MultimodalProjector, sound is transformers' ParakeetEncoder,
whole on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.models.vision.radio import RADIOViTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional

from mapspec.backends.multimodal_specs import Backend, projector_submodules, vision_layer_spec
from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError

__all__ = ["PIXEL_SHUFFLE", "Parts", "SoundEncoder", "build_parts", "class_token_len"]

PIXEL_SHUFFLE = 2  # so many patches, in each direction, become one embedding

# What a sound config that is silent means: a released one names no bias, no scaling, and its files hold no bias.
_SOUND_DEFAULTS: Mapping[str, Any] = {
    "attention_bias": False,
    "convolution_bias": False,
    "scale_input": False,
    "conv_kernel_size": 9,
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model is put together from; encoders are None where this rank, or the model, has none."""

    language_model: Any
    vision_model: Any = None
    vision_projection: Any = None
    sound_model: Any = None
    sound_projection: Any = None


class SoundEncoder(MegatronModule):  # type: ignore[misc]
    """transformers' ParakeetEncoder under the name `encoder`, whole on every tensor parallel rank.

    Sound comes as mel features; the buffers that extract them are not part of the model.
    """

    def __init__(self, config: TransformerConfig, sound: Mapping[str, Any]) -> None:
        from transformers import ParakeetEncoder, ParakeetEncoderConfig

        super().__init__(config=config)
        known = set(ParakeetEncoderConfig().to_dict()) - {"model_type", "dtype"}
        given = {name: value for name, value in {**_SOUND_DEFAULTS, **sound}.items() if name in known}
        self.encoder = ParakeetEncoder(ParakeetEncoderConfig(**given))
        for value in self.encoder.state_dict(keep_vars=True).values():  # not the buffers that it computes for itself
            if value.is_floating_point():
                value.data = value.data.to(config.params_dtype)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Args:
            features: mel features [clips, frames, mel bins], padded to the longest clip.
            lengths: frames of each clip, as the attention mask of the feature extractor counts them: without the
                last, half empty one. None: all of them.

        Returns:
            [clips, embeddings, hidden] and the number of embeddings of each clip, int64 [clips].
        """
        mask = None
        if lengths is not None:
            mask = torch.arange(features.shape[1], device=features.device) < lengths.to(features.device)[:, None]
        dtype = next(self.encoder.parameters()).dtype
        out = self.encoder(input_features=features.to(dtype), attention_mask=mask).last_hidden_state
        if lengths is None:
            return out, torch.full((out.shape[0],), out.shape[1], device=out.device)
        # The processor counts placeholders by all frames of the spectrogram, the last one included.
        counts = self.encoder._get_subsampling_output_length(lengths.to(out.device) + 1)
        return out, counts.long().clamp(max=out.shape[1])


def build_parts(
    language_model: nn.Module,
    configs: Mapping[str, TransformerConfig],
    fields: Mapping[str, Any],
    *,
    encoders: bool,
    backend: Backend,
    groups: ProcessGroupCollection,
) -> Parts:
    """The parts of this rank. See `multimodal.build` for the fields.

    Raises:
        SpecError: MS761 for a vision or sound model that is not known, or a sound model without its config.
    """
    if not encoders:
        return Parts(language_model)
    has_sound = bool(fields.get("has_sound"))
    _check(fields, has_sound)
    norms = fields.get("norms", "fused")
    vision = configs["vision"]
    vision_model = RADIOViTModel(
        vision,
        vision_layer_spec(backend, norms),
        img_h=fields.get("img_h", 512),
        img_w=fields.get("img_w", 512),
        max_img_h=fields.get("max_img_size", 2048),
        max_img_w=fields.get("max_img_size", 2048),
        class_token_len=class_token_len(vision, fields),
        patch_dim=fields.get("patch_dim", 16),
        dynamic_resolution=fields.get("dynamic_resolution", False),
        force_eval_mode=fields.get("radio_force_eval_mode", False),
        force_cpe_eval_mode=fields.get("radio_force_cpe_eval_mode", False),
        interpolate_only_cpe=fields.get("radio_interpolate_only_cpe", False),
        cpe_aspect_ratio_select=fields.get("radio_cpe_aspect_ratio_select", False),
        has_cpe=not fields.get("radio_disable_cpe", False),
        temporal_patch_dim=fields.get("temporal_patch_dim", 1),
        separate_video_embedder=fields.get("separate_video_embedder", False),
        temporal_ckpt_compat=fields.get("temporal_ckpt_compat", False),
        pg_collection=groups,
    )
    if fields.get("vision_final_layernorm"):
        vision_model.register_forward_hook(_normalise)
    width = vision.hidden_size * PIXEL_SHUFFLE**2
    vision_projection = _projector(configs["vision_projection"], width, backend, groups)
    if not has_sound:
        return Parts(language_model, vision_model, vision_projection)
    sound = fields["sound_config"]
    hidden = fields.get("sound_hidden_size") or sound["hidden_size"]
    return Parts(
        language_model,
        vision_model,
        vision_projection,
        SoundEncoder(configs["language"], {**sound, "hidden_size": hidden}),
        _projector(configs["sound_projection"], hidden, backend, groups),
    )


def _normalise(module: RADIOViTModel, given: Any, output: Any) -> Any:
    """A LayerNorm without weights behind the last layer.

    Language models with multi-token prediction were trained with one: Megatron-Core gave a final norm to every block
    that was built from a config with `mtp_num_layers`. No checkpoint holds its weights, and transformers applies it as
    identity weights would.
    """
    features, *others = output if isinstance(output, tuple) else (output,)
    normed = functional.layer_norm(features, features.shape[-1:], eps=module.config.layernorm_epsilon)
    return (normed, *others) if others else normed


def _projector(
    config: TransformerConfig, width: int, backend: Backend, groups: ProcessGroupCollection
) -> MultimodalProjector:
    return MultimodalProjector(config, projector_submodules(backend), "mlp", width, tp_group=groups.tp)


def _check(fields: Mapping[str, Any], has_sound: bool) -> None:
    found = []
    for name, known, used in (
        ("vision_model_type", ("radio",), True),
        ("sound_model_type", ("parakeet", "parakeet_encoder"), has_sound),
    ):
        value = fields.get(name, known[0])
        if used and value not in known:
            help_ = f"set `{name}` = {known[0]!r}; other encoders are not built here"
            found.append(Diagnostic("MS761", f"`{name}` is {value!r}, and only {known[0]!r} is known", help=help_))
    if has_sound and not fields.get("sound_config"):
        help_ = "give the sound part of the Hugging Face config, or set `has_sound` = False"
        found.append(Diagnostic("MS761", "`has_sound` is on and there is no `sound_config`", help=help_))
    if found:
        raise SpecError(found)


def class_token_len(vision: TransformerConfig, fields: Mapping[str, Any]) -> int:
    """Rows of class tokens: padded for FP8 where that is asked for, else as given, else RADIO's 8.

    The rule is that of Megatron-Core's LLaVAModel.
    """
    if vision.fp8 or fields.get("use_vision_backbone_fp8_arch"):
        return 32 if vision.fp8_recipe == "mxfp8" else 16
    return int(fields.get("vision_class_token_len") or 8)
