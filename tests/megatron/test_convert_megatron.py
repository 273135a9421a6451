"""`mapspec convert` against Megatron-Core itself: what it writes, what it reads, and what it makes of odd layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from fixtures_hf import VARIANTS, TinyModel, write_tiny
from oracle import build_for, fill_model, load_with_megatron, read_hf, save_with_megatron
from processes import spawn

from mapspec.backends.reference_parallel import ParallelSizes, one_process_group
from mapspec.convert import Output, convert
from mapspec.copy import read_tensor
from mapspec.cuts import Cuts
from mapspec.io.hf_folder import open_hf
from mapspec.io.torch_dist import open_torch_dist
from mapspec.prepare import Request

pytestmark = pytest.mark.megatron

MODELS: dict[str, TinyModel] = {
    **VARIANTS,
    "native": VARIANTS["latent"].but(layout="native"),
    "fp32": VARIANTS["mtp1"].but(dtype="float32"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny(model, root / name) for name, model in MODELS.items()}


def assert_same_hf(left: Path, right: Path) -> None:
    """Both folders hold the same tensors, bit for bit, and the same config text."""
    a, b = open_hf(left), open_hf(right)
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype, name
        assert np.array_equal(read_tensor(tensor, a.root), read_tensor(b.tensors[name], b.root)), name
    assert a.config_text == b.config_text


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_same_bits(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    convert(Request(checkpoints[name]), Output(tmp_path / "megatron"))
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert_same_hf(checkpoints[name], tmp_path / "back")
    assert open_hf(checkpoints[name]).files == open_hf(tmp_path / "back").files


@pytest.mark.parametrize("norms", ["fused", "separate"])
@pytest.mark.parametrize("name", VARIANTS)
def test_keys_shapes_and_objects_are_those_of_megatron(checkpoints: dict[str, Path], name: str, norms: str) -> None:
    from mapspec.prepare import prepare

    table = prepare(Request(checkpoints[name], flavours={"norms": norms})).table
    ours = {f"{n} {'x'.join(map(str, decl.shape))}" for n, decl in table.inventory("stored").items()}
    for flavour in (norms, "fused-te") if norms == "fused" else (norms,):
        golden = Path(__file__).parent / "golden" / f"{name}.{flavour}.txt"
        lines = [line.split() for line in golden.read_text().splitlines()]
        assert ours == {f"{key} {rest[-1]}" for key, *rest in lines if rest != ["object"]}
        # A strict load fails on an object that the file lacks; objects that nobody asks for do no harm.
        assert {key for key, *rest in lines if rest == ["object"]} <= set(table.objects)


@pytest.mark.parametrize("name", [n for n in MODELS if MODELS[n].layout == "published"])
def test_file_equals_what_megatron_saves(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    """The same keys, dtypes and bits as Megatron-Core's own writer, from a model filled by an independent oracle."""
    convert(Request(checkpoints[name]), Output(tmp_path / "ours"))
    state, config = read_hf(checkpoints[name])
    dtype = torch.float32 if MODELS[name].dtype == "float32" else torch.bfloat16
    with one_process_group():
        model = build_for(config, dtype=dtype)
        fill_model(model, state, config)
        save_with_megatron(model, tmp_path / "theirs")
    ours, theirs = open_torch_dist(tmp_path / "ours"), open_torch_dist(tmp_path / "theirs")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for key, tensor in theirs.tensors.items():
        mine = ours.tensors[key]
        left, right = read_tensor(mine, ours.folder), read_tensor(tensor, theirs.folder)
        if mine.dtype != tensor.dtype:
            # A bare model keeps A_log and D in fp32; the mixed-precision wrapper of training makes them bf16 as here.
            assert key.endswith((".A_log", ".D"))
            assert (mine.dtype, tensor.dtype) == ("bfloat16", "float32")
            left = left.astype(np.uint32) << 16
        assert mine.shape == tensor.shape
        assert np.array_equal(left, right), key


def scramble(model: Any) -> None:
    """Fill everything with NaN, so that what a load leaves out cannot look right."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


def load_and_compare(rank: int, checkpoint: str, source: str, switches: dict[str, Any], cuts: tuple[int, ...]) -> int:
    """One rank's part: load strictly into a scrambled model and compare with one filled by the oracle."""
    state, config = read_hf(Path(source))
    expected, loaded = build_for(config, cuts=cuts, **switches), build_for(config, cuts=cuts, **switches)
    fill_model(expected, state, config)
    scramble(loaded)
    load_with_megatron(loaded, Path(checkpoint) / "iter_0000000", "raise_unexpected")
    compared = 0
    for name, value in expected.state_dict().items():
        if value is not None:
            assert torch.equal(value, loaded.state_dict()[name]), name
            compared += 1
    return compared


@pytest.mark.parametrize(
    ("name", "sizes", "cuts", "switches"),
    [
        pytest.param("latent", ParallelSizes(), (), {}, id="one-rank"),
        pytest.param("native", ParallelSizes(), (), {"experts": "grouped"}, id="one-rank-stacked-experts"),
        pytest.param("mtp_mamba", ParallelSizes(tp=4), (), {"norms": "separate"}, id="tp4-two-query-groups"),
        pytest.param("mtp1", ParallelSizes(tp=2, ep=2, etp=2), (), {"experts": "grouped"}, id="tp2-ep2-etp2"),
        pytest.param("mtp2", ParallelSizes(pp=2), (1,), {}, id="pp2-mtp"),
    ],
)
def test_megatron_loads_it_strictly(
    tmp_path: Path, name: str, sizes: ParallelSizes, cuts: tuple[int, ...], switches: dict[str, Any]
) -> None:
    source = write_tiny(MODELS[name].but(dtype="float32", layout="published"), tmp_path / "oracle")
    given = write_tiny(MODELS[name].but(dtype="float32"), tmp_path / "hf")
    convert(Request(given, flavours={"norms": switches.get("norms", "fused")}), Output(tmp_path / "ckpt"))
    args = (str(tmp_path / "ckpt"), str(source), switches, cuts)
    if sizes.world == 1:
        with one_process_group():
            assert load_and_compare(0, *args)
    else:
        assert all(spawn(load_and_compare, sizes.world, *args, sizes=sizes))


def count_and_compare(rank: int, checkpoint: str, source: str, switches: dict[str, Any]) -> float:
    """As `load_and_compare`; bytes of the chunks that Megatron-Core read, over bytes that it took from them."""
    from torch.distributed.checkpoint import filesystem

    read, taken = [0], [0]
    narrow = filesystem.narrow_tensor_by_index

    def counting(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        part: torch.Tensor = narrow(tensor, *args)
        read[0], taken[0] = read[0] + tensor.nbytes, taken[0] + part.nbytes
        return part

    with mock.patch.object(filesystem, "narrow_tensor_by_index", counting):
        assert load_and_compare(rank, checkpoint, source, switches, ())
    return read[0] / taken[0]


@pytest.mark.parametrize(
    ("cuts", "sizes", "most"),
    [
        pytest.param(Cuts(4, expert_tensor=2, least_bytes=1), ParallelSizes(tp=4, etp=1), 1.0, id="as-cut"),
        pytest.param(Cuts(4, expert_tensor=2, least_bytes=1), ParallelSizes(tp=2, ep=2, etp=2), 1.0, id="divisors"),
        pytest.param(Cuts(4, expert_tensor=2, least_bytes=1), ParallelSizes(), 1.0, id="one-rank"),
        pytest.param(Cuts(2, least_bytes=1), ParallelSizes(tp=4), 3.0, id="other-size"),
    ],
)
def test_a_rank_reads_what_it_owns(tmp_path: Path, cuts: Cuts, sizes: ParallelSizes, most: float) -> None:
    """Chunks cut for a parallel size are read without waste at its divisors, and load at other sizes, too."""
    source = write_tiny(MODELS["mtp1"].but(dtype="float32"), tmp_path / "hf")
    done = convert(Request(source, cuts=cuts), Output(tmp_path / "ckpt"))
    assert any(len(target.boxes) > 1 and len(target.shape) == 2 for target in done.prepared.plan.targets)
    args = (str(tmp_path / "ckpt"), str(source), {"experts": "grouped"})
    if sizes.world == 1:
        with one_process_group():
            ratios = [count_and_compare(0, *args)]
    else:
        ratios = spawn(count_and_compare, sizes.world, *args, sizes=sizes)
    assert max(ratios) <= most, ratios
    assert most == 1.0 or max(ratios) > 1.5
    convert(Request(tmp_path / "ckpt"), Output(tmp_path / "back"))
    assert_same_hf(source, tmp_path / "back")


def fill_and_save(rank: int, source: str, target: str, switches: dict[str, Any], cuts: tuple[int, ...]) -> None:
    """One rank's part: fill its model by the oracle and save with Megatron."""
    state, config = read_hf(Path(source))
    model = build_for(config, cuts=cuts, **switches)
    fill_model(model, state, config)
    save_with_megatron(model, Path(target))


@pytest.mark.parametrize(
    ("name", "sizes", "cuts", "switches"),
    [
        pytest.param("mtp_mamba", ParallelSizes(tp=4), (), {"norms": "separate"}, id="tp4-two-query-groups"),
        pytest.param("mtp1", ParallelSizes(tp=2, ep=2, etp=2), (), {}, id="tp2-ep2-etp2"),
        pytest.param("mtp2", ParallelSizes(tp=2, pp=2), (1,), {}, id="tp2-pp2"),
        pytest.param("tied", ParallelSizes(pp=2), (1,), {}, id="pp2-tied"),
    ],
)
def test_what_ranks_saved_comes_back(
    tmp_path: Path, name: str, sizes: ParallelSizes, cuts: tuple[int, ...], switches: dict[str, Any]
) -> None:
    """A checkpoint that Megatron-Core cut over ranks, read with a reference for config and layout."""
    source = write_tiny(MODELS[name].but(dtype="float32"), tmp_path / "hf")
    spawn(fill_and_save, sizes.world, str(source), str(tmp_path / "ckpt"), switches, cuts, sizes=sizes)
    request = Request(tmp_path / "ckpt", reference=source, flavours={"norms": switches.get("norms", "fused")})
    convert(request, Output(tmp_path / "back"))
    assert_same_hf(source, tmp_path / "back")


def test_padded_vocabulary_there_and_back(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """251 rows become 256: Megatron loads them at TP 2, the padding is zero, and the way back drops it."""
    source = write_tiny(MODELS["odd_vocab"].but(dtype="float32"), tmp_path / "hf")
    done = convert(Request(source, padded_vocab_size=256), Output(tmp_path / "ckpt"))
    assert [step.kind for step in done.prepared.plan.steps] == ["pad"]
    spawn(load_padded, 2, str(tmp_path / "ckpt"), str(source), sizes=ParallelSizes(tp=2))
    back = convert(Request(tmp_path / "ckpt"), Output(tmp_path / "back"))
    assert [step.kind for step in back.prepared.plan.steps] == ["trim"]
    assert_same_hf(source, tmp_path / "back")


def load_padded(rank: int, checkpoint: str, source: str) -> None:
    """One rank's half of a padded vocabulary."""
    state, config = read_hf(Path(source))
    model = build_for(config, vocab_size=256)
    scramble(model)
    load_with_megatron(model, Path(checkpoint) / "iter_0000000", "raise_unexpected")
    whole = torch.zeros(256, config["hidden_size"])
    whole[:251] = state["backbone.embeddings.weight"]
    assert torch.equal(model.state_dict()["embedding.word_embeddings.weight"], whole.chunk(2)[rank])
