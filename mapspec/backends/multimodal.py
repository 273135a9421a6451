"""`build`: a language model, encoders and projectors, put together in one of two ways.

`expanded` is a model of our own that replaces placeholders one for one, `llava` Megatron-Core's LLaVAModel. The parts,
and below their prefix the names in checkpoints, are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from mapspec.backends.cpu_adapters import cpu_adapters
from mapspec.backends.multimodal_expanded import ExpandedModel
from mapspec.backends.multimodal_llava import build_llava
from mapspec.backends.multimodal_parts import build_parts
from mapspec.backends.multimodal_specs import Backend

__all__ = ["build"]


def build(
    assembly: Literal["expanded", "llava"],
    *,
    language: Callable[[bool, bool], nn.Module],
    configs: Mapping[str, TransformerConfig],
    fields: Mapping[str, Any],
    pre_process: bool,
    post_process: bool,
    backend: Backend,
) -> nn.Module:
    """The model of this rank. Encoders and projectors are on the first pipeline stage only.

    Args:
        assembly: see above.
        language: called with (pre_process, post_process); a HybridModel.
        configs: `language`, `vision`, `vision_projection` and, with sound, `sound_projection`. On a CPU with the
            switches of `reference.on_cpu`.
        fields: provider fields. Read here: `has_sound`, `sound_config`, `sound_hidden_size`, `sound_model_type`,
            `sound_context_token_id`, `image_token_index`, `vision_model_type`, `vision_class_token_len`,
            `use_vision_backbone_fp8_arch`, `radio_*`, `dynamic_resolution`, `temporal_patch_dim`,
            `separate_video_embedder`, `temporal_ckpt_compat`, `language_model_type`, `tokenizer_type`,
            `vision_final_layernorm` (a norm without weights behind the last vision layer), `norms` ("fused" or
            "separate"), and sizes in pixels: `img_h`, `img_w` (512), `patch_dim` (16), `max_img_size` (2048). A field
            that is not given has the default of Megatron-Core.
        pre_process, post_process: whether this is the first and the last pipeline stage.
        backend: `reference` runs on a CPU (inside `cpu_adapters`), `transformer_engine` on a GPU.

    Raises:
        SpecError: MS761 for encoders and layouts that are not known here.
    """
    groups = ProcessGroupCollection.use_mpu_process_groups()
    adapters: Any = cpu_adapters if backend == "reference" else nullcontext
    with adapters():
        language_model = language(pre_process, post_process)
        parts = build_parts(
            language_model, configs, fields, encoders=pre_process, backend=backend, groups=groups
        )  # fmt: skip
        ends: Any = {"pre_process": pre_process, "post_process": post_process, "groups": groups}
        model: nn.Module
        if assembly == "llava":
            model = build_llava(configs, parts, fields, backend=backend, **ends)
        else:
            model = ExpandedModel(configs["language"], parts, fields, **ends)
    # Megatron-Core makes class tokens and positions on the CPU, transformers all of its encoder.
    return model if backend == "reference" else model.to(torch.cuda.current_device())
