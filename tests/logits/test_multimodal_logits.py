"""Logits of models that see and hear: agreement within the floor, and the tower where disagreement begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_omni import OMNI, write_tiny_omni
from safetensors.torch import load_file, save_file
from torch import Tensor

from mapspec.convert import Output, convert
from mapspec.errors import CheckpointError
from mapspec.logits import compare_logits
from mapspec.prepare import Request

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("logits")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("multimodal")
    out = {}
    for name in ("mtp", "vl"):
        hf = write_tiny_omni(OMNI[name], root / name / "hf")
        convert(Request(hf), Output(root / name / "megatron", fsync=False))
        out[name] = hf, root / name / "megatron"
    return out


@pytest.mark.parametrize("name", ["mtp", "vl"])
def test_converted_checkpoints_agree_within_the_floor(pairs: dict[str, tuple[Path, Path]], name: str) -> None:
    report = compare_logits(*pairs[name], device="cpu")
    assert report.findings == ()
    assert report.measured is not None
    assert report.floor is not None
    assert 0 < report.measured.largest < 4 * report.floor.largest
    keys = [line.stage.key for line in report.layers]
    towers = ["vision features", "sound features"] if OMNI[name].sound else ["vision features"]
    assert keys[: len(towers) + 2] == [*towers, "embedding", "layer 0"]
    assert len(keys) == len(towers) + 3 + len(OMNI[name].language.pattern) + OMNI[name].language.mtp_blocks
    first = report.layers[len(towers) + 1].stage
    assert (first.hf, first.megatron) == ("language_model.backbone.layers.0", "language_model.decoder.layers.0")
    assert any("cuts at tensor parallel size 2" in note and "compared" in note for note in report.notes)
    assert any("two images" in note for note in report.notes)


def swap_heads(state: dict[str, Tensor]) -> None:
    """Keys and values of one layer of the vision tower in each other's place."""
    name = "vision_model.radio_model.model.blocks.1.attn.qkv.weight"
    queries, keys, values = state[name].chunk(3)
    state[name] = torch.cat([queries, values, keys])


def turn_sound(state: dict[str, Tensor]) -> None:
    state["sound_projection.linear1.weight"] = state["sound_projection.linear1.weight"].flip(0)


@pytest.mark.parametrize(
    ("change", "stage"), [(swap_heads, "vision features"), (turn_sound, "sound features")], ids=["vision", "sound"]
)
def test_the_tower_that_differs_is_named(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, change: Callable[[dict[str, Tensor]], None], stage: str
) -> None:
    hf, megatron = pairs["mtp"]
    state = load_file(hf / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((hf / "config.json").read_text())
    report = compare_logits(tmp_path, megatron, device="cpu", cuts=1)
    assert report.first_diverging is not None
    assert report.first_diverging.stage.key == stage
    assert {"MS823", "MS824"} == {finding.code for finding in report.findings}


def test_an_assembly_that_reads_other_sequences(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    hf, _ = pairs["mtp"]
    convert(Request(hf, flavours={"assembly": "llava"}), Output(tmp_path / "llava", fsync=False))
    with pytest.raises(CheckpointError) as caught:
        compare_logits(hf, tmp_path / "llava", device="cpu")
    assert caught.value.diagnostics[0].code == "MS821"
    assert "assembly=expanded" in str(caught.value.diagnostics[0].help)
