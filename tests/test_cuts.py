"""Chunks of a torch_dist checkpoint: what a rank reads of the published models, and that cuts change nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_convert import CONFIGS, small, write_hf
from typer.testing import CliRunner

from mapspec.boxes import tiling_fault
from mapspec.cli import app
from mapspec.convert import Output, convert
from mapspec.cuts import Cuts, chunk_boxes, read_by_rank
from mapspec.errors import SpecError
from mapspec.io.torch_dist import open_torch_dist
from mapspec.mapping import compile_mapping
from mapspec.prepare import Request, prepare
from mapspec.ranks import Shard
from mapspec.render.plan import render_plan
from mapspec.tensors import box_shape, itemsize, numel
from mapspec.verify import verify

MODELS = ("nemotron-3-nano-30b-a3b", "nemotron-h-8b")


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_reads_its_own_bytes(name: str) -> None:
    """At TP 8 and EP 8, and at their divisors, nothing is read twice; without cuts, several times too much."""
    rows = compile_mapping("nemotron_h", CONFIGS / f"{name}.json").table.rows
    sizes = {MODELS[0]: ((8, 8), (4, 2)), MODELS[1]: ((8, 1), (2, 1))}[name]
    for tensor, expert in sizes:
        for rank in (tensor - 1,):
            dense = Shard(rank, tensor, min(rank, expert - 1), expert, 0, 1)
            owned, read = read_by_rank(rows, Cuts(), dense)
            assert owned <= read <= 1.01 * owned
            experts_too = Shard(rank, tensor, min(rank, expert - 1), expert, rank, tensor)
            owned, read = read_by_rank(rows, Cuts(8, expert_tensor=8), experts_too)
            assert owned <= read <= 1.01 * owned
    owned, read = read_by_rank(rows, None, Shard(3, 8, 0, 1, 3, 8))
    assert read > 7 * owned
    every, read = read_by_rank(rows, Cuts(), Shard())
    assert every == read == sum(row.numel * itemsize(row.rule.dtype) for row in rows)


@pytest.mark.parametrize("least", [1, 256 << 10, 1 << 20])
def test_chunks_tile_and_are_not_too_small(least: int) -> None:
    cuts = Cuts(8, expert_tensor=8, least_bytes=least)
    several = 0
    for row in {
        id(r.forms): r for r in compile_mapping("nemotron_h", CONFIGS / f"{MODELS[0]}.json").table.rows
    }.values():
        for form, boxes in zip(row.forms.surfaces["stored"], chunk_boxes(row.forms, cuts), strict=True):
            assert tiling_fault(form.slot.shape, boxes) is None
            sizes = [numel(box_shape(box)) * itemsize(row.rule.dtype) for box in boxes]
            assert len(boxes) == 1 or min(sizes) >= least
            several += len(boxes) > 1
    assert several


def test_sizes_that_do_not_divide() -> None:
    rows = compile_mapping("nemotron_h", CONFIGS / f"{MODELS[0]}.json").table.rows
    with pytest.raises(SpecError, match="tensor parallel size 7 does not divide"):
        read_by_rank(rows, Cuts(7, strict=True), Shard())
    for row in rows:
        chunk_boxes(row.forms, Cuts(7))
    with pytest.raises(SpecError, match="expert parallel size 7 does not divide"):
        read_by_rank(rows, Cuts(), Cuts(1, expert=7).rank)


@pytest.mark.parametrize("files", [1, 3])
def test_cut_chunks_there_and_back(tmp_path: Path, files: int) -> None:
    source = write_hf(tmp_path / "hf", small())
    convert(Request(source), Output(tmp_path / "whole"))
    cuts = Cuts(4, expert_tensor=2, least_bytes=1)
    convert(Request(source, cuts=cuts), Output(tmp_path / "cut", threads=files))
    whole, cut = open_torch_dist(tmp_path / "whole").tensors, open_torch_dist(tmp_path / "cut").tensors
    assert sum(len(t.chunks) for t in cut.values()) > 2 * sum(len(t.chunks) for t in whole.values())
    for tensor in cut.values():
        # slabs that share rows of the source stand in one file, where these rows are read once
        for rows in {chunk.box[:1] for chunk in tensor.chunks}:
            assert len({chunk.file for chunk in tensor.chunks if chunk.box[:1] == rows}) == 1
    assert verify(tmp_path / "whole", tmp_path / "cut").findings == ()
    convert(Request(tmp_path / "cut"), Output(tmp_path / "back"))
    assert verify(source, tmp_path / "back").findings == ()


def test_plan_says_what_whole_experts_cost(tmp_path: Path) -> None:
    """The line is about the default only; what it promises is what the cut gives."""
    source = write_hf(tmp_path / "hf", small())
    shown = render_plan(prepare(Request(source, cuts=Cuts(least_bytes=1), padded_vocab_size=256)))
    found = re.search(r"at expert TP (\d) a rank would read ([\d.]+) x .* makes that ([\d.]+) x, in ([\d,]+) ch", shown)
    assert found is not None
    size, wide, narrow, chunks = found.groups()
    assert float(wide) > 1.3 > float(narrow) >= 1
    cut = render_plan(
        prepare(Request(source, cuts=Cuts(int(size), int(size), strict=True, least_bytes=1), padded_vocab_size=256))
    )
    assert "experts are whole" not in cut
    assert f"chunks    {chunks}; a rank at TP {size}, EP 1, expert TP {size} owns" in cut
    assert f"reads {narrow} x that" in cut
    # experts so small that they are not cut anyway, and no experts
    assert "experts are whole" not in render_plan(prepare(Request(source, padded_vocab_size=256)))
    dense = write_hf(tmp_path / "dense", small(hybrid_override_pattern="M*-M"))
    assert "experts are whole" not in render_plan(
        prepare(Request(dense, cuts=Cuts(least_bytes=1), padded_vocab_size=256))
    )


def test_plan_says_what_ranks_read(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", small())
    runner = CliRunner()
    shown = runner.invoke(app, ["plan", str(source), "--tp", "2", "--ep", "2", "--padded-vocab-size", "252"])
    assert "a rank at TP 2, EP 2, expert TP 2 owns" in shown.output
    refused = runner.invoke(app, ["plan", str(source), "--tp", "2", "--ep", "3"])
    assert refused.exit_code != 0
    request = Request(source, cuts=Cuts(tensor=3, strict=True))
    with pytest.raises(SpecError, match="does not divide"):
        prepare(request)
