"""A language model that sees and hears, for token sequences in which media have their places already.

Every placeholder token stands for one embedding: an image of 4 x 6 embeddings comes as 24 image tokens, and the
sequence keeps its length. Images and videos share one token, sound has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from mapspec.backends.multimodal_parts import PIXEL_SHUFFLE, Parts
from mapspec.diagnostics import Diagnostic
from mapspec.errors import MapspecError, SpecError

__all__ = ["ExpandedModel", "count_placeholders", "pixel_shuffle", "to_patches"]


class ExpandedModel(MegatronModule):  # type: ignore[misc]
    """HybridModel, and on the first pipeline stage the encoders whose embeddings it reads.

    Attributes are the names in checkpoints: `language_model`, `vision_model`, `vision_projection`, `sound_model`,
    `sound_projection`; those that are not there are None.
    """

    def __init__(
        self,
        config: TransformerConfig,
        parts: Parts,
        fields: Mapping[str, Any],
        *,
        pre_process: bool,
        post_process: bool,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.pre_process, self.post_process = pre_process, post_process
        self.pg_collection = groups
        self.language_model = parts.language_model
        self.vision_model = parts.vision_model
        self.vision_projection = parts.vision_projection
        self.sound_model = parts.sound_model
        self.sound_projection = parts.sound_projection
        self.image_token_index = int(fields.get("image_token_index") or 0)
        self.sound_token_index = int(fields.get("sound_context_token_id") or 0)
        # Gradients of tied embeddings are summed over the first and last stage by whoever looks for these two.
        self.share_embeddings_and_output_weights = parts.language_model.share_embeddings_and_output_weights
        self.vocab_size = parts.language_model.vocab_size
        if parts.vision_model is not None and not parts.vision_model.dynamic_resolution:
            message = "images of one fixed size are for the llava assembly"
            raise SpecError(Diagnostic("MS761", message, help="set `dynamic_resolution` = True"))
        if config.context_parallel_size > 1:
            message = "the expanded assembly knows no context parallelism"
            raise SpecError(Diagnostic("MS761", message, help="set `context_parallel_size` = 1"))
        if pre_process and config.sequence_parallel and parts.language_model.embedding.scatter_to_sequence_parallel:
            message = "the language model scatters its embeddings before media are put between them"
            raise SpecError(Diagnostic("MS761", message, help="set `scatter_embedding_sequence_parallel` = False"))

    def shared_embedding_or_output_weight(self) -> Any:
        """The word embeddings of this stage, where it has any."""
        return self.language_model.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: Any) -> None:
        """What the previous pipeline stage sent, for the language model."""
        self.language_model.set_input_tensor(input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        images: Tensor | None = None,
        imgs_sizes: Tensor | None = None,
        num_frames: Tensor | None = None,
        sound_clips: Tensor | None = None,
        sound_length: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        runtime_gather_output: bool | None = None,
    ) -> Any:
        """Run this stage.

        Args:
            input_ids: int64 [batch, s], with a placeholder for every embedding of an image, a video or a clip.
            position_ids: int64 [batch, s].
            attention_mask: that of the language model; None for a causal one.
            images: patches [1, patches, 3 * patch * patch] of all images and frames, one after the other, or pixels
                [n, 3, height, width]; normalised already.
            imgs_sizes: int [n, 2], height and width in pixels of each image or frame; pixels need none.
            num_frames: int [media], frames of each image (1) or video; None where there are images only. Videos
                follow the order of their placeholders, as images do.
            sound_clips: mel features [clips, frames, mel bins].
            sound_length: int [clips], see `SoundEncoder`.
            labels, loss_mask: [batch, s], for the language model.
            packed_seq_params: for several samples in one row, for the language model.
            runtime_gather_output: gather logits over tensor parallel ranks.

        Returns:
            What HybridModel returns: logits [batch, s, vocab], a loss [batch, s], or hidden states to send on.

        Raises:
            MapspecError: MS760 where placeholders and embeddings do not go together.
        """
        combined = None
        if self.pre_process:
            combined = self._embed(input_ids, position_ids, images, imgs_sizes, num_frames, sound_clips, sound_length)
        return self.language_model(
            input_ids,
            position_ids,
            attention_mask,
            decoder_input=combined,
            labels=labels,
            loss_mask=loss_mask,
            packed_seq_params=packed_seq_params,
            runtime_gather_output=runtime_gather_output,
        )

    def _embed(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        images: Tensor | None,
        imgs_sizes: Tensor | None,
        num_frames: Tensor | None,
        sound_clips: Tensor | None,
        sound_length: Tensor | None,
    ) -> Tensor:
        """Embeddings [s, batch, hidden] (over tensor parallel ranks if sequence parallel), media in their places."""
        out: Tensor = self.language_model.embedding(input_ids=input_ids, position_ids=position_ids)
        seen = heard = out.new_empty(0, out.shape[-1])
        if images is not None and images.numel():
            seen = self.encode_images(images, imgs_sizes, num_frames)
        if sound_clips is not None and sound_clips.numel():
            heard = self.encode_sound(sound_clips, sound_length)
        out = put_media(out, input_ids, self.image_token_index, seen, "image")
        if self.sound_model is not None:
            out = put_media(out, input_ids, self.sound_token_index, heard, "sound")
        if self.config.sequence_parallel:
            out = tensor_parallel.scatter_to_sequence_parallel_region(out, group=self.pg_collection.tp)
        return out

    def vision_features(
        self, images: Tensor, imgs_sizes: Tensor | None = None, num_frames: Tensor | None = None
    ) -> list[Tensor]:
        """What the vision model makes of each image, or of each group of frames: [rows, columns, hidden].

        Arguments as for `forward`. Class tokens are dropped.
        """
        vision = self.vision_model
        side = int(vision.patch_dim)
        if images.dim() == 4:
            height, width = images.shape[-2:]
            imgs_sizes = torch.tensor([[height, width]] * images.shape[0], device=images.device)
            images = to_patches(images, side)
        if imgs_sizes is None:
            raise MapspecError(Diagnostic("MS760", "patches came without `imgs_sizes`", help="give [n, 2] in pixels"))
        temporal = vision.temporal_patch_dim > 1
        if temporal and num_frames is None:
            num_frames = torch.ones(len(imgs_sizes), dtype=torch.int64)
        images = images.to(vision.position_embeddings.dtype)
        bounds = torch.nn.functional.pad((imgs_sizes // side).prod(-1).cumsum(0), (1, 0)).to(torch.int32)
        longest = int((imgs_sizes // side).prod(-1).max())
        packed = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
        )
        frames = None if num_frames is None else [int(n) for n in num_frames]
        if frames is not None and sum(frames) != len(imgs_sizes):
            message = f"`num_frames` counts {sum(frames)} images and frames, `imgs_sizes` has {len(imgs_sizes)}"
            raise MapspecError(Diagnostic("MS760", message, help="list every frame of a video in `imgs_sizes`"))
        out = vision(images, imgs_sizes=imgs_sizes, packed_seq_params=packed, num_frames=frames)
        if temporal:
            out, imgs_sizes, _ = out
        grids = [(int(h) // side, int(w) // side) for h, w in imgs_sizes]
        skipped = vision.class_token_len if vision.add_class_token else 0
        chunks = out.squeeze(0).split([skipped + h * w for h, w in grids])
        return [chunk[skipped:].view(h, w, -1) for chunk, (h, w) in zip(chunks, grids, strict=True)]

    def encode_images(
        self, images: Tensor, imgs_sizes: Tensor | None = None, num_frames: Tensor | None = None
    ) -> Tensor:
        """Embeddings [n, hidden of the language model] of all images and videos, in order."""
        shuffled = [pixel_shuffle(one) for one in self.vision_features(images, imgs_sizes, num_frames)]
        projected: Tensor = self.vision_projection(torch.cat(shuffled).unsqueeze(1))
        return projected.squeeze(1)

    def encode_sound(self, sound_clips: Tensor, sound_length: Tensor | None = None) -> Tensor:
        """Embeddings [n, hidden of the language model] of all clips, in order, without those of padding."""
        if self.sound_model is None:
            help_ = "set `has_sound` = True and give its config, or leave sound out of the input"
            raise MapspecError(Diagnostic("MS760", "sound came for a model without a sound encoder", help=help_))
        heard, counts = self.sound_model(sound_clips, sound_length)
        real = torch.arange(heard.shape[1], device=heard.device) < counts[:, None]
        projected: Tensor = self.sound_projection(heard[real].unsqueeze(1))
        return projected.squeeze(1)


def put_media(embeddings: Tensor, input_ids: Tensor, token: int, media: Tensor, what: str) -> Tensor:
    """Embeddings [s, batch, hidden] with the rows of `media` [n, hidden] where `input_ids` [batch, s] have the token.

    Raises:
        MapspecError: MS760 where there are more or fewer placeholders than rows.
    """
    where = count_placeholders(input_ids, token, media.shape[0], what, "embeddings")
    out = embeddings.transpose(0, 1).clone()
    out[where] = media.to(out.dtype)
    return out.transpose(0, 1).contiguous()


def count_placeholders(input_ids: Tensor, token: int, count: int, what: str, of: str) -> Tensor:
    """Where `input_ids` have the token, bool [batch, s]; an error (MS760) unless that is `count` times."""
    where = input_ids == token
    found = int(where.sum())
    if found != count:
        message = f"{found} placeholders of {what} (token {token}) for {count} {of}"
        help_ = (
            "the expanded assembly takes one placeholder for each embedding; llava takes one for each tile, and for "
            "sound one for each embedding"
        )
        raise MapspecError(Diagnostic("MS760", message, help=help_))
    return where


def pixel_shuffle(features: Tensor) -> Tensor:
    """Patches [rows, columns, hidden] -> [rows * columns / 4, 4 * hidden]: each 2 x 2 square becomes one embedding.

    Within one: left then right of the upper row, then of the lower.
    """
    rows, columns, hidden = features.shape
    n = PIXEL_SHUFFLE
    if rows % n or columns % n:
        message = f"an image of {rows} x {columns} patches does not divide into squares of {n} x {n}"
        raise MapspecError(Diagnostic("MS760", message, help="resize images to an even number of patches"))
    squares = features.view(rows // n, n, columns // n, n, hidden).transpose(1, 2)
    return squares.reshape(rows * columns // n**2, n**2 * hidden)


def to_patches(images: Tensor, side: int) -> Tensor:
    """Pixels [n, channels, height, width] -> patches [1, n * rows * columns, channels * side * side]."""
    n, channels, height, width = images.shape
    grid = images.view(n, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(1, -1, channels * side * side)
