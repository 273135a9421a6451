"""An error on one rank is that error on all; nothing hangs, nothing is half done."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from fixtures_hf import VARIANTS, TinyModel, write_tiny
from processes import RankError, spawn
from safetensors.torch import load_file, save_file
from scenarios import killed_while_exporting, late_while_exporting, options, play

from mapspec.backends.reference_parallel import ParallelSizes
from mapspec.verify import verify

pytestmark = pytest.mark.megatron

# scenario -> exception, code and words of the finding that both ranks raise
EXPECTED = {
    "corrupt_on_one": ("CheckpointError", "MS6", ["seen on rank 1"]),
    "shape_on_one": ("PlanError", "MS752", ["decoder.final_norm.weight", "[65]", "[64]", "seen on rank 1"]),
    "narrow_router_bias": ("PlanError", "MS753", ["expert_bias", "bfloat16", "float32"]),
    "more_parameters": ("PlanError", "MS751", ["decoder.layers.0.mixer.in_proj.bias"]),
    "fewer_parameters": ("PlanError", "MS757", ["decoder.final_norm.weight"]),
    "other_flavours": ("SpecError", "MS756", ["ranks 0 and 1"]),
    "no_model": ("SpecError", "MS750", ["int"]),
    "no_memory": ("SpecError", "MS750", ["decoder.final_norm.weight", "meta", "seen on rank 1"]),
    "other_dtype": ("SpecError", "MS411", ["float8"]),
    "disk_full_on_one": ("ConvertError", "MS702", ["seen on rank 1"]),
    "destination_taken": ("ConvertError", "MS710", ["not empty"]),
    "reference_with_more": ("PlanError", "MS757", ["backbone.extra"]),
    "other_config": ("PlanError", "MS752", ["embedding.word_embeddings.weight", "hidden_size", "128", "64"]),
}
MODEL: TinyModel = VARIANTS["mtp1"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(MODEL, tmp_path_factory.mktemp("live") / "hf")


def test_one_rank_fails_all_fail(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "corrupt")
    with (tmp_path / "corrupt" / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    shutil.copytree(source, tmp_path / "more")
    held = load_file(tmp_path / "more" / "model.safetensors")
    save_file({**held, "backbone.extra": torch.zeros(3)}, tmp_path / "more" / "model.safetensors")
    seen = spawn(play, 2, str(source), str(tmp_path), sizes=ParallelSizes(tp=2))
    for name, (kind, code, words) in EXPECTED.items():
        for rank in range(2):
            got, told, untouched = seen[rank][name]
            assert got == kind, (name, rank, got, told)
            assert told[0].startswith(code), (name, told)
            assert all(word in told[0] for word in words), (name, told)
            assert untouched, name
        assert seen[0][name][1] == seen[1][name][1], name
    # An exception that is none of ours: the rank itself keeps it, the other says where to look.
    assert seen[1]["bug_on_one"][0] == "ZeroDivisionError"
    assert seen[0]["bug_on_one"][0] == "ConvertError"
    assert "MS754 rank 1 stopped with ZeroDivisionError: boom" in seen[0]["bug_on_one"][1][0]
    assert seen[0]["writes_end_early"][0] == "KeyError"
    assert "MS754 rank 0 stopped with KeyError" in seen[1]["writes_end_early"][1][0]
    # Nothing that looks like a checkpoint, and nothing hidden, is left of what was not finished.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corrupt", "more"]


def test_options(source: Path, tmp_path: Path) -> None:
    spawn(options, 2, str(source), str(tmp_path), sizes=ParallelSizes(tp=1, ep=2))
    found = verify(source, tmp_path / "short").findings
    assert [d.code for d in found] == ["MS801"]
    assert "mtp.layers" in found[0].message
    assert len(list((tmp_path / "short").glob("*.safetensors"))) > 1


def test_killed_rank(source: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RankError) as caught:
        spawn(killed_while_exporting, 2, str(source), sizes=ParallelSizes(tp=2))
    text = str(caught.value)
    assert "rank 1:\ndied without a word" in text
    assert "MS755 rank 0 lost touch" in text
    assert time.monotonic() - began < 60


def test_rank_that_hangs(source: Path) -> None:
    waited = spawn(late_while_exporting, 2, str(source), sizes=ParallelSizes(tp=2))[0]
    assert 1.0 < waited < 4.0
