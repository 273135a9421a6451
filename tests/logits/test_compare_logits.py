"""Logits of two checkpoints: agreement within the noise floor, and where disagreement begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures_hf import VARIANTS, write_tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from mapspec.convert import Output, convert
from mapspec.errors import SpecError
from mapspec.logits import compare_logits, render_logits
from mapspec.logits.measure import measure
from mapspec.prepare import Request

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("logits")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("logits")

    @cache
    def make(name: str) -> tuple[Path, Path]:
        hf = write_tiny(VARIANTS[name], root / name / "hf")
        padded = 256 if name == "odd_vocab" else None
        convert(Request(hf, padded_vocab_size=padded), Output(root / name / "megatron", fsync=False))
        return hf, root / name / "megatron"

    return make


def edited(source: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a Hugging Face checkpoint with other tensors."""
    shutil.copytree(source, target)
    for path in target.glob("*.safetensors"):
        state = load_file(path)
        change(state)
        save_file(state, path, {"format": "pt"})
    return target


@pytest.mark.parametrize("name", VARIANTS)
def test_converted_checkpoints_agree_within_the_floor(pair: Callable[[str], tuple[Path, Path]], name: str) -> None:
    hf, megatron = pair(name)
    report = compare_logits(hf, megatron, device="cpu")
    assert report.findings == ()
    assert report.measured is not None
    assert report.floor is not None
    # Far from the limit, so that a change of torch does not tip it; far above zero, so that something was computed.
    assert 0 < report.measured.largest < 4 * report.floor.largest
    assert report.measured.argmax == 1.0
    blocks = VARIANTS[name].mtp_blocks
    assert len(report.layers) == len(VARIANTS[name].pattern) + 3 + blocks
    assert any("cuts at tensor parallel size 2" in note and "compared" in note for note in report.notes)


def test_bf16_agrees_too_and_sides_may_be_swapped(pair: Callable[[str], tuple[Path, Path]]) -> None:
    hf, megatron = pair("mtp1")
    report = compare_logits(megatron, hf, device="cpu", dtype="bfloat16", cuts=1)
    assert report.findings == ()
    assert report.left_model.startswith("Megatron")
    assert report.right_model.startswith("transformers")


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [
        ("backbone.layers.2.mixer.o_proj.weight", "layer 2"),
        ("backbone.norm_f.weight", "final norm"),
        ("lm_head.weight", "logits"),
        ("mtp.layers.0.hnorm.weight", "mtp 0"),
    ],
)
def test_the_first_diverging_layer_is_named(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path, tensor: str, stage: str
) -> None:
    _, megatron = pair("mtp1")
    other = edited(pair("mtp1")[0], tmp_path / "other", lambda state: state.update({tensor: state[tensor].flip(0)}))
    report = compare_logits(other, megatron, device="cpu")
    assert report.first_diverging is not None
    assert report.first_diverging.stage.key == stage
    assert tensor.startswith(report.first_diverging.stage.hf)
    finding = next(f for f in report.findings if f.code == "MS824")
    assert stage in finding.message
    assert report.first_diverging.stage.megatron in finding.message
    assert ("MS823" in {f.code for f in report.findings}) == (stage != "mtp 0")


def test_two_checkpoints_of_one_kind(pair: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    hf, megatron = pair("moe")
    for one in (hf, megatron):
        report = compare_logits(one, one, device="cpu")
        assert report.findings == ()
        assert report.measured is not None
        assert report.measured.largest == 0.0
    other = edited(hf, tmp_path / "other", lambda s: s.update({"lm_head.weight": s["lm_head.weight"].flip(0)}))
    assert {f.code for f in compare_logits(hf, other, device="cpu").findings} == {"MS823", "MS824"}


def test_a_checkpoint_that_does_not_fill_the_model(pair: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    hf = pair("mtp1")[0]
    less = edited(hf, tmp_path / "less", lambda state: state.__delitem__("mtp.layers.0.enorm.weight"))
    report = compare_logits(less, hf, device="cpu")
    assert [f.code for f in report.findings] == ["MS822"]
    assert "mtp.layers.0.enorm.weight" in report.findings[0].message
    report = compare_logits(hf, pair("latent")[1], device="cpu")
    assert {f.code for f in report.findings} == {"MS822"}
    assert "mtp" in report.findings[0].message
    assert "not compared" in render_logits(report)


def test_reports_are_text_and_json(pair: Callable[[str], tuple[Path, Path]]) -> None:
    report = compare_logits(*pair("mtp1"), device="cpu", tokens=16)
    assert report.tokens == (3, 17)  # one more: 16 is a multiple of the chunk size
    text = render_logits(report)
    assert "logits agree" in text
    assert "time_step_limit is set to (0, inf)" in text
    body = json.loads(render_logits(report, "json"))
    assert body["format_version"]
    assert body["kind"] == "logits"
    assert body["equal"] is True
    assert [layer["key"] for layer in body["layers"]][:2] == ["embedding", "layer 0"]


def test_what_is_not_there_is_said(pair: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    hf, megatron = pair("dense")
    for options, code in (({"dtype": "float16"}, "MS821"), ({"device": "tpu"}, "MS821")):
        with pytest.raises(SpecError) as caught:
            compare_logits(hf, megatron, **options)  # type: ignore[arg-type]
        assert caught.value.diagnostics[0].code == code
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="MS821"):
            compare_logits(hf, megatron, device="cuda")
    monkeypatch.setattr("mapspec.logits.require._found", lambda module: module != "transformers")
    with pytest.raises(SpecError) as caught:
        compare_logits(hf, megatron)
    assert "transformers" in caught.value.diagnostics[0].message
    assert "mapspec[megatron]" in str(caught.value.diagnostics[0].help)


def test_ties_are_no_mistakes_and_other_predictions_are() -> None:
    left = torch.tensor([[[1.0, 1.0 - 1e-6, 0.0], [2.0, 0.0, 0.0]]])
    tied = torch.tensor([[[1.0 - 1e-6, 1.0, 0.0], [2.0, 0.0, 0.0]]])
    other = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    assert measure(left, tied, tie=1e-6).argmax_wrong == 0
    assert measure(left, tied, tie=1e-6).argmax == 0.5
    assert measure(left, other, tie=1e-6).argmax_wrong == 1
    nan = measure(left, left * float("nan"), tie=1e-6)
    assert not nan.largest <= 1.0
