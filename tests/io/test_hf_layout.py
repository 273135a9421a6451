"""Laying out safetensors files: the same bytes as the library writes, the same shards as transformers makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mapspec.copy import execute
from mapspec.fill import Fill, Part
from mapspec.io.hf_folder import HFCheckpoint, open_hf
from mapspec.io.layout import Layout, NewTensor
from mapspec.io.safetensors_layout import layout_safetensors
from mapspec.tensors import DTYPES, whole


def new(name: str, dtype: str, *shape: int) -> NewTensor:
    return NewTensor(name, dtype, shape, (whole(shape),))


def copy(source: HFCheckpoint, layout: Layout, target: Path) -> None:
    target.mkdir()
    fills = [
        Fill(tensor, tensor.chunks[0], (Part(whole(tensor.shape), source.tensors[name], whole(tensor.shape)),))
        for name, tensor in layout.tensors.items()
    ]
    execute(fills, layout, source_root=source.root, target_root=target, fsync=False)


def test_byte_identical_to_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    every = {
        f"{dtype}.{at}": torch.randint(0, 2, (5, at + 1), dtype=torch.uint8).to(getattr(torch, dtype))
        for at in range(2)
        for dtype in DTYPES
    }
    every['quote"back\\slash\u00fc\n\x7f\u2028'] = torch.tensor(2.0)
    every["empty"] = torch.zeros(0, 3, dtype=torch.bfloat16)
    (tmp_path / "in").mkdir()
    save_file(every, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    source = open_hf(tmp_path / "in", config=False)
    layout = layout_safetensors([new(name, t.dtype, *t.shape) for name, t in source.tensors.items()])
    assert layout.small_files == {}
    copy(source, layout, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "in" / "model.safetensors").read_bytes()


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tensors = {f"t{n}": torch.randn(n, 7) for n in range(1, 9)}
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    source = open_hf(tmp_path / "in", config=False)
    wanted = [new(name, t.dtype, *t.shape) for name, t in source.tensors.items()]
    layout = layout_safetensors(wanted, max_shard_bytes=300, metadata={"format": "pt", "mapspec": "yes"})
    copy(source, layout, tmp_path / "out")
    back = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    again = open_hf(tmp_path / "out", config=False)
    assert again.shard_of == {name: t.chunks[0].file for name, t in layout.tensors.items()}
    assert set(map(str, again.metadata.values())) == {str({"format": "pt", "mapspec": "yes"})}


@pytest.mark.parametrize("bound", [1, 60, 100, 1000, 10**9])
def test_shards_and_index_as_the_hub_library_makes_them(tmp_path: Path, bound: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {f"t{n:02d}": torch.zeros(n * 7 % 40 + 1) for n in range(25)}
    expected = split_torch_state_dict_into_shards(state, max_shard_size=bound)
    layout = layout_safetensors([new(k, "float32", *v.shape) for k, v in state.items()], max_shard_bytes=bound)
    assert {name: t.chunks[0].file for name, t in layout.tensors.items()} == expected.tensor_to_filename
    if not expected.is_sharded:
        assert layout.small_files == {}
        return
    index = {
        "metadata": {"total_parameters": sum(v.numel() for v in state.values()), **expected.metadata},
        "weight_map": expected.tensor_to_filename,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert layout.small_files == {"model.safetensors.index.json": text.encode()}


def test_the_source_s_shards_are_kept() -> None:
    wanted = [new(name, "uint8", 4) for name in ("new0", "a", "new1", "b", "c", "new2")]
    layout = layout_safetensors(
        wanted,
        max_shard_bytes=1,
        file_of={"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors", "gone": "z.safetensors"},
    )
    files = {name: t.chunks[0].file[0] for name, t in layout.tensors.items()}
    assert files == {"new0": "x", "a": "x", "new1": "x", "b": "y", "c": "y", "new2": "y"}
    assert set(layout.file_sizes) == {"x.safetensors", "y.safetensors"}
    assert json.loads(layout.small_files["model.safetensors.index.json"])["weight_map"]["new2"] == "y.safetensors"


def test_kept_shards_that_are_none() -> None:
    wanted = [new("a", "uint8", 4), new("b", "uint8", 4)]
    single = layout_safetensors(wanted, file_of={"a": "model.safetensors"})
    assert (list(single.file_sizes), single.small_files) == (["model.safetensors"], {})
    odd = layout_safetensors(wanted, file_of={"a": "weights.safetensors"})
    assert "model.safetensors.index.json" in odd.small_files
    assert list(layout_safetensors(wanted, file_of={"x": "y.safetensors"}).file_sizes) == ["model.safetensors"]


def test_no_tensors(tmp_path: Path) -> None:
    layout = layout_safetensors([], metadata={})
    execute([], layout, source_root=tmp_path, target_root=tmp_path)
    save_file({}, tmp_path / "theirs.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_names_must_be_distinct_and_tensors_whole() -> None:
    with pytest.raises(AssertionError, match="same name"):
        layout_safetensors([new("a", "uint8", 1), new("a", "uint8", 2)])
    with pytest.raises(AssertionError, match="whole tensors"):
        layout_safetensors([NewTensor("a", "uint8", (2,), (((0, 1),), ((1, 2),)))])
