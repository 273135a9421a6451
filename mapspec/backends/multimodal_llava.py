"""Megatron-Core's own LLaVAModel around the same parts, under the name `llava_model`.

It reads sequences in which one token stands for a whole image and makes room for it; a clip of sound has one token for
each embedding. LLaVAModel builds its parts itself, and knows one size of RADIO only and layers for the GPU only: it is
made without any, and gets ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.models.multimodal.llava_model import LLaVAModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from mapspec.backends.multimodal_expanded import count_placeholders
from mapspec.backends.multimodal_parts import Parts
from mapspec.backends.multimodal_specs import Backend, projector_submodules, vision_layer_spec

__all__ = ["LlavaAssembly", "build_llava"]


class LlavaAssembly(MegatronModule):  # type: ignore[misc]
    """LLaVAModel as `llava_model`, with inputs that it cannot do without filled in."""

    def __init__(self, config: TransformerConfig, llava_model: LLaVAModel) -> None:
        super().__init__(config=config)
        self.llava_model = llava_model
        self.pg_collection = llava_model.pg_collection
        self.pre_process, self.post_process = llava_model.pre_process, llava_model.post_process
        self.share_embeddings_and_output_weights = llava_model.share_embeddings_and_output_weights

    def shared_embedding_or_output_weight(self) -> Any:
        """The word embeddings of this stage, where it has any."""
        return self.llava_model.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: Any) -> None:
        """What the previous pipeline stage sent."""
        self.llava_model.set_input_tensor(input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        images: Tensor | None = None,
        sound_clips: Tensor | None = None,
        sound_length: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Run this stage; further arguments are those of LLaVAModel.

        Args:
            input_ids: int64 [batch, s], one image token for each tile, one sound token for each embedding.
            position_ids: int64 [batch, s].
            attention_mask: that of the language model; None for a causal one.
            images: tiles [n, 3, height, width]; with `imgs_sizes`, patches [1, patches, 3 * patch * patch].
            sound_clips: mel features [clips, frames, mel bins].
            sound_length: int [clips], see `SoundEncoder`; all frames where it is missing.
            labels, loss_mask: [batch, s].

        Returns:
            Logits [batch, longer s, vocab] or a loss, or hidden states to send on; and the loss mask.

        Raises:
            MapspecError: MS760 where tokens and tiles do not go together.
        """
        model = self.llava_model
        none = torch.empty(0, device=input_ids.device, dtype=model.config.params_dtype)
        if self.pre_process and "num_image_tiles" not in others and "imgs_sizes" not in others:
            tiles = 0 if images is None else images.shape[0]
            count_placeholders(input_ids, model.image_token_index, tiles, "image", "tiles")
        if sound_clips is not None and sound_length is None:
            sound_length = torch.full((sound_clips.shape[0],), sound_clips.shape[1], device=input_ids.device)
        return model(
            images=none if images is None else images,
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            labels=labels,
            loss_mask=loss_mask,
            sound_clips=none if sound_clips is None else sound_clips,
            sound_length=sound_length,
            **others,
        )


def build_llava(
    configs: Mapping[str, TransformerConfig],
    parts: Parts,
    fields: Mapping[str, Any],
    *,
    pre_process: bool,
    post_process: bool,
    backend: Backend,
    groups: ProcessGroupCollection,
) -> LlavaAssembly:
    """LLaVAModel with these parts in their places."""
    config, vision = configs["language"], configs["vision"]
    # What LLaVAModel reads off its configs although they have no such fields.
    config.language_model_type = fields.get("language_model_type", "")
    vision.vision_model_type = fields.get("vision_model_type", "radio")
    model = LLaVAModel(
        language_transformer_config=config,
        language_transformer_layer_spec=None,
        language_vocab_size=parts.language_model.vocab_size,
        language_max_sequence_length=parts.language_model.max_sequence_length,
        vision_transformer_config=vision,
        vision_transformer_layer_spec=vision_layer_spec(backend),
        drop_vision_class_token=True,
        vision_projection_config=configs["vision_projection"],
        vision_projection_layer_spec=projector_submodules(backend),
        share_embeddings_and_output_weights=parts.language_model.share_embeddings_and_output_weights,
        pre_process=pre_process,
        post_process=post_process,
        add_encoder=False,
        add_decoder=False,
        img_h=fields.get("img_h", 512),
        img_w=fields.get("img_w", 512),
        patch_dim=fields.get("patch_dim", 16),
        image_token_index=fields.get("image_token_index", 0),
        pixel_shuffle=True,
        pg_collection=groups,
        max_num_tiles=fields.get("max_num_tiles", 12),
        tokenizer_type=fields.get("tokenizer_type", ""),
        use_vision_backbone_fp8_arch=fields.get("use_vision_backbone_fp8_arch", False),
        dynamic_resolution=fields.get("dynamic_resolution", False),
        sound_model=parts.sound_model,
        sound_projection=parts.sound_projection,
        sound_token_index=fields.get("sound_context_token_id") or 0,
        radio_force_eval_mode=fields.get("radio_force_eval_mode", False),
        radio_force_cpe_eval_mode=fields.get("radio_force_cpe_eval_mode", False),
        radio_interpolate_only_cpe=fields.get("radio_interpolate_only_cpe", False),
        radio_cpe_aspect_ratio_select=fields.get("radio_cpe_aspect_ratio_select", False),
        radio_disable_cpe=fields.get("radio_disable_cpe", False),
        temporal_patch_dim=fields.get("temporal_patch_dim", 1),
        separate_video_embedder=fields.get("separate_video_embedder", False),
        temporal_ckpt_compat=fields.get("temporal_ckpt_compat", False),
    )
    model.add_decoder, model.language_model = True, parts.language_model
    model._language_max_sequence_length = parts.language_model.max_sequence_length
    model._language_is_pipeline_parallel = config.pipeline_model_parallel_size > 1
    if parts.vision_model is not None:
        model.add_encoder, model.vision_model = True, parts.vision_model
        model.vision_projection = parts.vision_projection
        model._drop_vision_class_token = True
    return LlavaAssembly(config, model)
