"""Omni models of real Megatron-Core modules, run on the CPU: media in their places, and input that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_omni import IMAGE, OMNI, SOUND, expanded_inputs, write_tiny_omni
from oracle import read_hf
from oracle_omni import build_omni, fill_omni
from torch import Tensor

from mapspec.backends.reference import cpu_adapters
from mapspec.errors import MapspecError

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_group")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("omni")
    return {name: write_tiny_omni(model, root / name) for name, model in OMNI.items()}


def run(model: Any, given: dict[str, Tensor]) -> Tensor:
    """Logits of the expanded assembly."""
    ids = given["input_ids"]
    others = {name: value for name, value in given.items() if name != "input_ids"}
    with cpu_adapters(), torch.no_grad():
        out: Tensor = model(ids, torch.arange(ids.shape[1])[None], runtime_gather_output=True, **others)
    return out


@pytest.fixture(scope="module")
def built(checkpoints: dict[str, Path]) -> Any:
    model = build_omni(read_hf(checkpoints["omni"])[1])
    fill_omni(model, checkpoints["omni"])
    return model


def test_text_images_video_and_sound(built: Any) -> None:
    given = expanded_inputs(OMNI["omni"])
    logits = run(built, given)
    assert logits.shape == (1, given["input_ids"].shape[1], 256)
    assert logits.isfinite().all()
    text = given["input_ids"].clone()
    text[(text == IMAGE) | (text == SOUND)] = 60
    assert run(built, {"input_ids": text}).isfinite().all()
    for name in ("images", "sound_clips"):  # each medium is seen
        other = run(built, {**given, name: -given[name]})
        assert (other - logits).abs().max() > 1e-3, name
    # An image is one sequence for the encoder: others in the row do not change what it sees.
    with cpu_adapters(), torch.no_grad():
        alone = built.encode_images(given["images"][:, :24], given["imgs_sizes"][:1], torch.tensor([1]))
        together = built.encode_images(given["images"], given["imgs_sizes"], given["num_frames"])
    torch.testing.assert_close(alone, together[: len(alone)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": IMAGE}, "placeholders of image (token 18) for"),
        ({"input_ids": SOUND}, "placeholders of sound (token 27) for"),
        ({"images": None}, "placeholders of image (token 18) for 0 embeddings"),
        ({"sound_clips": None}, "10 placeholders of sound (token 27) for 0 embeddings"),
        ({"num_frames": torch.tensor([1, 1])}, "`num_frames` counts 2 images and frames, `imgs_sizes` has 5"),
        ({"imgs_sizes": None}, "patches came without `imgs_sizes`"),
        ({"imgs_sizes": torch.tensor([[48, 8], [4, 128], [16, 24], [16, 24], [16, 24]])}, "does not divide"),
    ],
)
def test_media_that_do_not_fit_their_places(built: Any, change: dict[str, Any], message: str) -> None:
    given = expanded_inputs(OMNI["omni"])
    for name, value in change.items():
        if isinstance(value, int):  # one placeholder too few
            at = int((given[name] == value).nonzero()[0, 1])
            given[name][0, at] = 61
        else:
            given[name] = value
    with pytest.raises(MapspecError) as caught:
        run(built, given)
    assert caught.value.diagnostics[0].code == "MS760"
    assert message in caught.value.diagnostics[0].message


def test_llava_makes_room_for_tiles(checkpoints: dict[str, Path]) -> None:
    fields = {"dynamic_resolution": False, "temporal_patch_dim": 1, "separate_video_embedder": False}
    model = build_omni(read_hf(checkpoints["vl"])[1], "llava", fields=fields)
    fill_omni(model, checkpoints["vl"])
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(30, 250, (1, 20), generator=draw)
    positions = torch.arange(20)[None]
    ids[0, 3] = ids[0, 11] = IMAGE
    with cpu_adapters(), torch.no_grad():
        logits, _ = model(ids, positions, images=torch.randn(2, 3, 32, 32, generator=draw))
        assert logits.shape[:2] == (1, 18 + 2 * 16)
        with pytest.raises(MapspecError, match="2 placeholders of image"):
            model(ids, positions, images=torch.randn(1, 3, 32, 32, generator=draw))
        text, _ = model(ids.clamp(min=30), positions)
    assert text.shape[:2] == (1, 20)


def test_llava_with_sound(checkpoints: dict[str, Path]) -> None:
    fields = {"dynamic_resolution": False, "temporal_patch_dim": 1, "separate_video_embedder": False}
    model = build_omni(read_hf(checkpoints["omni"])[1], "llava", fields=fields)
    ids = torch.full((1, 12), 40)
    ids[0, 2], ids[0, 5:8] = IMAGE, SOUND
    with cpu_adapters(), torch.no_grad():
        logits, _ = model(
            ids, torch.arange(12)[None], images=torch.randn(1, 3, 32, 32), sound_clips=torch.randn(1, 24, 16)
        )
    assert logits.shape[:2] == (1, 11 + 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_model_type": "siglip"}, "`vision_model_type` is 'siglip'"),
        ({"sound_model_type": "whisper"}, "`sound_model_type` is 'whisper'"),
        ({"sound_config": None}, "`has_sound` is on and there is no `sound_config`"),
        ({"dynamic_resolution": False}, "one fixed size"),
    ],
)
def test_what_is_not_built(checkpoints: dict[str, Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MapspecError) as caught:
        build_omni(read_hf(checkpoints["omni"])[1], fields=fields)
    assert caught.value.diagnostics[0].code == "MS761"
    assert message in caught.value.diagnostics[0].message
