"""`mapspec keys`: the tensors of checkpoints of both kinds, from headers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_hf import write_tiny
from safetensors.torch import save_file

from mapspec.errors import CheckpointError
from mapspec.io.hf_folder import open_hf
from mapspec.keys import group_keys, read_keys

type Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("mtp_mamba", tmp_path_factory.mktemp("keys") / "tiny")


def test_patterns_name_every_tensor_once(tiny: Path) -> None:
    listing = read_keys(tiny)
    groups = group_keys(listing.tensors)
    assert sum(group.count for group in groups) == len(listing.tensors) == len(open_hf(tiny).tensors)
    assert sum(group.nbytes for group in groups) == sum(t.nbytes for t in listing.tensors.values())
    lines = {group.pattern: (group.shape, group.dtype, group.count) for group in groups}
    assert lines["backbone.layers.{0,1}.norm.weight"] == ((64,), "bfloat16", 2)
    assert lines["mtp.layers.3.mixer.experts.{0...7}.up_proj.weight"] == ((48, 64), "bfloat16", 8)
    assert lines["mtp.layers.3.mixer.gate.e_score_correction_bias"] == ((8,), "float32", 1)


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    names = ["b.10.w", "b.9.w", "a.w", "b.9.v"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    assert list(read_keys(tmp_path / "x.safetensors").tensors) == ["a.w", "b.9.v", "b.9.w", "b.10.w"]


def test_tensors_of_other_shapes_are_other_lines(tmp_path: Path) -> None:
    tensors = {
        "l.0.w": torch.zeros(2),
        "l.1.w": torch.zeros(3),
        "l.2.w": torch.zeros(2),
        "l.3.w": torch.zeros(2).half(),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert [(g.pattern, g.shape, g.dtype) for g in group_keys(read_keys(tmp_path / "x.safetensors").tensors)] == [
        ("l.{0,2}.w", (2,), "float32"),
        ("l.1.w", (3,), "float32"),
        ("l.3.w", (2,), "float16"),
    ]


def test_the_command(tiny: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("keys", str(tiny))
    assert code == 0
    assert "backbone.layers.0.mixer.in_proj.weight [264, 64] bfloat16\n" in out
    assert out.splitlines()[-1].startswith("Hugging Face: 59 tensors, ")
    assert (
        "\n| `backbone.layers.{0,1}.norm.weight` | [64] | bfloat16 | 2 |\n"
        in run("keys", str(tiny), "--format", "md")[1]
    )
    full = run("keys", str(tiny), "--full", "--format", "json")[1]
    (tmp_path / "keys.json").write_text(full, encoding="utf-8")
    again, there = read_keys(tmp_path / "keys.json"), read_keys(tiny)
    assert {n: (t.shape, t.dtype) for n, t in again.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in there.tensors.items()
    }
    assert list(again.tensors) == list(there.tensors)


def test_megatron_checkpoints_too(tiny: Path, tmp_path: Path, run: Run) -> None:
    run("convert", str(tiny), str(tmp_path / "megatron"))
    code, out, _ = run("keys", str(tmp_path / "megatron"), "--format", "json")
    assert code == 0
    report = json.loads(out)
    assert report["checkpoint"] == "megatron"
    lines = {entry["name"]: entry["shape"] for entry in report["tensors"]}
    assert lines["mtp.layers.0.mtp_model_layer.layers.3.mlp.experts.experts.linear_fc1.weight"] == [8, 48, 64]
    assert lines["decoder.layers.0.mixer.in_proj.weight.dt"] == [8, 64]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[]", "MS864"),
        ('{"checkpoint": "hf", "tensors": [{"name": "a", "shape": [1], "dtype": "bf17", "count": 1}]}', "MS864"),
        ('{"checkpoint": "hf", "tensors": [{"name": "a.{0,1}", "shape": [1], "dtype": "bool", "count": 2}]}', "MS864"),
        ("{", "MS864"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_keys(tmp_path / "x.json")
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError) as caught:
            read_keys(path)
        assert [d.code for d in caught.value.diagnostics] == ["MS601"]


def test_torch_stays_out_of_it(tiny: Path) -> None:
    code = (
        "import sys; from mapspec.keys import read_keys; from mapspec.render.keys import render_keys; "
        f"from pathlib import Path; render_keys(read_keys(Path({str(tiny)!r}))); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
