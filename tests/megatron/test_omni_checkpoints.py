"""Omni models of real Megatron-Core modules against converted checkpoints: keys, strict loads, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_omni import OMNI, write_tiny_omni
from oracle import load_with_megatron, read_hf, save_with_megatron, sharded_lines
from oracle_omni import build_omni, fill_omni, parts_of
from processes import spawn
from test_convert_megatron import assert_same_hf
from torch import Tensor

from mapspec.backends.reference import one_process_group
from mapspec.backends.reference_parallel import ParallelSizes
from mapspec.convert import Output, convert
from mapspec.io.torch_dist import open_torch_dist
from mapspec.prepare import Request, prepare

pytestmark = pytest.mark.megatron


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("omni")
    return {name: write_tiny_omni(model, root / name) for name, model in OMNI.items()}


@pytest.mark.parametrize("norms", ["fused", "separate"])
@pytest.mark.parametrize("assembly", ["expanded", "llava"])
@pytest.mark.parametrize("name", OMNI)
def test_keys_shapes_and_objects_are_those_of_megatron(
    checkpoints: dict[str, Path], name: str, assembly: str, norms: str
) -> None:
    _, config = read_hf(checkpoints[name])
    with one_process_group():
        lines = [line.split(" ") for line in sharded_lines(build_omni(config, assembly, norms=norms))]
    table = prepare(Request(checkpoints[name], flavours={"assembly": assembly, "norms": norms})).table
    ours = {f"{key} {'x'.join(map(str, decl.shape))}" for key, decl in table.inventory("stored").items()}
    assert ours == {f"{key} {rest[-1]}" for key, *rest in lines if rest != ["object"]}
    assert {key for key, *rest in lines if rest == ["object"]} <= set(table.objects)


def scramble(model: Any) -> None:
    """Fill everything with values that no checkpoint holds, so that what a load leaves out cannot look right."""
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor is not None:
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


def load_compare_save(
    rank: int, checkpoint: str, source: str, target: str, assembly: str, build: dict[str, Any]
) -> list[str]:
    """One rank's part: a strict load by Megatron-Core, compared with the oracle, saved again; the parts it has."""
    _, config = read_hf(Path(source))
    expected, loaded = (build_omni(config, assembly, **build) for _ in range(2))
    used = fill_omni(expected, Path(source))
    scramble(loaded)
    load_with_megatron(loaded, Path(checkpoint) / "iter_0000000", "raise_unexpected")
    compared = 0
    for name, value in expected.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, loaded.state_dict()[name]), name
            compared += 1
    parts = parts_of(loaded)
    there = ("language_model", "vision_model", "vision_projection", "sound_model", "sound_projection")
    assert used
    assert compared
    save_with_megatron(expected, Path(target))
    return [name for name in there if getattr(parts, name) is not None]


LAYOUTS = [
    pytest.param("omni", "expanded", ParallelSizes(), {}, id="one-rank"),
    pytest.param("vl", "llava", ParallelSizes(), {"norms": "separate"}, id="one-rank-vl-llava-separate"),
    pytest.param("mtp", "expanded", ParallelSizes(tp=2, ep=2), {"experts": "grouped"}, id="tp2-ep2-mtp"),
    pytest.param("published", "llava", ParallelSizes(pp=2), {"cuts": (2,)}, id="pp2-llava"),
    pytest.param("published", "expanded", ParallelSizes(tp=2, pp=2), {"cuts": (1,)}, id="tp2-pp2"),
]


@pytest.mark.parametrize(("name", "assembly", "sizes", "build"), LAYOUTS)
def test_megatron_loads_it_strictly_and_what_it_saves_comes_back(
    tmp_path: Path, name: str, assembly: str, sizes: ParallelSizes, build: dict[str, Any]
) -> None:
    source = write_tiny_omni(OMNI[name].but(dtype="float32"), tmp_path / "hf")
    flavours = {"assembly": assembly, "norms": build.get("norms", "fused")}
    convert(Request(source, flavours=flavours), Output(tmp_path / "ckpt"))
    args = (*(str(tmp_path / name) for name in ("ckpt", "hf", "saved")), assembly, build)
    if sizes.world == 1:
        with one_process_group():
            seen = [load_compare_save(0, *args)]
    else:
        seen = spawn(load_compare_save, sizes.world, *args, sizes=sizes)
    for rank, parts in enumerate(seen):  # encoders are on the first stage; tensor parallel ranks come first
        assert ("vision_model" in parts) == (rank < sizes.world // sizes.pp)
    convert(Request(tmp_path / "saved", reference=source, flavours=flavours), Output(tmp_path / "back"))
    assert_same_hf(source, tmp_path / "back")
    ours, theirs = open_torch_dist(tmp_path / "ckpt"), open_torch_dist(tmp_path / "saved")
    assert ours.tensors.keys() == theirs.tensors.keys()
