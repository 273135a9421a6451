"""Random images and sound for models that see and hear, with their placeholders at the head of every sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Media", "language_part", "make_media", "sound_part"]

_GRIDS = ((4, 6), (8, 4))  # patches of the two images, rows and columns
_HEARD = 5  # embeddings of the clip


def language_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that is the language model's; the config itself where it has no parts."""
    return dict(config.get("llm_config") or config.get("text_config") or config)


def sound_part(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part of a config that is the sound encoder's, where it has one."""
    return config.get("sound_config") or config.get("audio_config")


@dataclass(frozen=True)
class Media:
    """Two images of different sizes and, for a model that hears, a clip of sound; the same for every sequence.

    Attributes:
        images: patches [patches, 3 * patch * patch], one image after the other.
        imgs_sizes: int64 [2, 2], height and width in pixels.
        patch: side of a patch in pixels.
        sound: mel features [frames, mel bins], or `None`.
        tokens: placeholder tokens of images and of sound.
        places: int64 [n], the placeholders in order.
    """

    images: Tensor
    imgs_sizes: Tensor
    patch: int
    sound: Tensor | None
    tokens: tuple[int, ...]
    places: Tensor

    def with_places(self, text: Tensor) -> Tensor:
        """Token ids [batch, s] of text -> [batch, n + s] with the placeholders in front; text holds none itself."""
        import torch

        text = text.clone()
        free = next(token for token in range(len(self.tokens) + 1) if token not in self.tokens)
        for token in self.tokens:
            text[text == token] = free
        return torch.cat([self.places.expand(len(text), -1), text], dim=1)

    def inputs(self, batch: int, device: str) -> dict[str, Tensor]:
        """`images` [1, patches, width], `imgs_sizes` and `sound_clips` for `batch` sequences."""
        out = {
            "images": self.images.repeat(batch, 1)[None].to(device),
            "imgs_sizes": self.imgs_sizes.repeat(batch, 1).to(device),
        }
        if self.sound is not None:
            out["sound_clips"] = self.sound.expand(batch, -1, -1).to(device)
        return out


def make_media(config: Mapping[str, Any], seed: int = 0) -> Media | None:
    """Media of the kinds that a config has parts for; `None` for a model of language alone.

    Raises:
        CheckpointError: MS821 where the config names no placeholder token.
    """
    import torch

    vision, sound = config.get("vision_config"), sound_part(config)
    if not isinstance(vision, dict):
        return None
    draw = torch.Generator().manual_seed(seed)
    patch = int(vision.get("patch_size") or 16)
    sizes = torch.tensor([[rows * patch, columns * patch] for rows, columns in _GRIDS])
    images = torch.randn(sum(rows * columns for rows, columns in _GRIDS), 3 * patch * patch, generator=draw)
    tokens = [_token(config, "img_context_token_id", "image_token_id")]
    places = tokens * sum(rows * columns // 4 for rows, columns in _GRIDS)
    clip = None
    if sound is not None:
        frames = _HEARD * int(sound.get("subsampling_factor") or 8)
        clip = torch.randn(frames, int(sound.get("num_mel_bins") or 128), generator=draw)
        tokens.append(_token(config, "sound_context_token_id", "audio_token_id"))
        places += tokens[-1:] * _HEARD
    return Media(images, sizes, patch, clip, tuple(tokens), torch.tensor(places))


def _token(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    message = f"the config does not say which token stands for media: none of {', '.join(names)} is there"
    raise CheckpointError(Diagnostic("MS821", message, where="config.json", help=f"give it: --set {names[0]}=..."))
