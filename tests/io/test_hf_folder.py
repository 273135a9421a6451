"""Opening Hugging Face folders: real ones as they are, broken ones with a finding that says what to do."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapspec.copying.compare import read_tensor
from mapspec.errors import CheckpointError
from mapspec.io.hf_folder import HFCheckpoint, open_hf
from mapspec.io.safetensors_header import DTYPE_CODES
from mapspec.tensors import DTYPES


def findings(root: Path, **options: bool) -> list[tuple[str, str]]:
    with pytest.raises(CheckpointError) as caught:
        open_hf(root, **options)
    for finding in caught.value.diagnostics:
        assert finding.help or "more findings" in finding.message
    return [(finding.code, finding.message) for finding in caught.value.diagnostics]


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), float(at)) for at, name in enumerate(names)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with index and config."""
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file(tensors("a", "b"), tmp_path / one, {"format": "pt"})
    save_file(tensors("c"), tmp_path / two, {"format": "pt", "note": "second"})
    index = {"metadata": {"total_size": 72}, "weight_map": {"a": one, "b": one, "c": two}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def raw_file(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny NemotronH, written by transformers in several shards."""
    transformers = pytest.importorskip("transformers")
    config = transformers.NemotronHConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        layers_block_type=["mamba", "moe", "attention", "mlp"],
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = transformers.NemotronHForCausalLM(config).to(torch.bfloat16)
    root = tmp_path_factory.mktemp("nemotron")
    model.save_pretrained(root, max_shard_size="20KB")
    from safetensors.torch import load_file

    return root, {name: t for file in root.glob("*.safetensors") for name, t in load_file(file).items()}


def test_what_transformers_writes(nemotron: tuple[Path, dict[str, torch.Tensor]]) -> None:
    root, expected = nemotron
    opened = open_hf(root)
    assert opened.tensors.keys() == expected.keys()
    assert len(opened.files) > 2
    assert opened.files == tuple(sorted(opened.files))
    for name, stored in opened.tensors.items():
        assert stored.shape == tuple(expected[name].shape)
        assert f"torch.{stored.dtype}" == str(expected[name].dtype)
        bits = expected[name].contiguous().view(torch.uint8).numpy().reshape(-1)
        np.testing.assert_array_equal(read_tensor(stored, root).reshape(-1).view(np.uint8), bits)
    assert opened.config["model_type"] == "nemotron_h"
    assert opened.config["time_step_limit"][1] == float("inf")
    assert opened.side_files == ("generation_config.json",)
    assert opened.index_metadata["total_size"] == opened.nbytes
    assert all(metadata == {"format": "pt"} for metadata in opened.metadata.values())


def test_every_dtype_of_the_library(tmp_path: Path) -> None:
    every = {dtype: torch.zeros(4, dtype=torch.uint8).to(getattr(torch, dtype)) for dtype in DTYPES}
    every["scalar"] = torch.tensor(1.5)
    every["none"] = torch.zeros(0, 7)
    save_file(every, tmp_path / "model.safetensors")
    opened = open_hf(tmp_path, config=False)
    assert {name: t.dtype for name, t in opened.tensors.items() if name in DTYPES} == {name: name for name in DTYPES}
    assert set(DTYPE_CODES.values()) == set(DTYPES)
    assert opened.tensors["scalar"].shape == ()
    assert opened.tensors["none"].nbytes == 0
    assert opened.config == {}
    assert opened.metadata == {"model.safetensors": {}}


def test_shards_by_any_name_and_without_index(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").rename(folder / "first.safetensors")
    (folder / "model-00002-of-00002.safetensors").rename(folder / "second.safetensors")
    change_index(
        folder, lambda index: index.update(a="first.safetensors", b="first.safetensors", c="second.safetensors")
    )
    assert open_hf(folder).shard_of == {"a": "first.safetensors", "b": "first.safetensors", "c": "second.safetensors"}
    (folder / "model.safetensors.index.json").unlink()
    opened = open_hf(folder)
    assert opened.files == ("first.safetensors", "second.safetensors")
    assert opened.index_metadata == {}


def test_links_into_the_hub_cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    blobs = tmp_path_factory.mktemp("blobs")
    for at, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(at))
        path.symlink_to(blobs / str(at))
    assert set(open_hf(folder).tensors) == {"a", "b", "c"}
    (blobs / "2").unlink()
    assert findings(folder) == [
        ("MS622", "the index names `model-00002-of-00002.safetensors`, which is a link to a file that is gone")
    ]


def test_side_files(folder: Path) -> None:
    carried = ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "modeling_x.py", "LICENSE", "README.md"]
    for name in [*carried, "nested/vocab.txt"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    for name in [".gitattributes", ".cache/x.json", "__pycache__/x.pyc", "other/config.json", "other/tokenizer.json"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    for name in ["model.gguf", "pytorch_model.bin", "optimizer.pt", "consolidated.safetensors"]:
        (folder / name).write_text("x")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    opened = open_hf(folder)
    assert opened.side_files == tuple(sorted([*carried, "nested/vocab.txt"]))
    assert opened.left_out == ("consolidated.safetensors", "model.gguf", "optimizer.pt", "pytorch_model.bin")
    (folder / "NOTICE").symlink_to("gone")
    assert findings(folder) == [("MS629", "`NOTICE` is a link to a file that is gone")]


def test_no_folder_and_no_weights(tmp_path: Path) -> None:
    assert findings(tmp_path / "no") == [("MS601", "there is no such folder")]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert findings(tmp_path / "model.safetensors") == [
        ("MS601", "`model.safetensors` is a file, not a checkpoint folder")
    ]
    (tmp_path / "model.safetensors").unlink()
    assert findings(tmp_path) == [
        ("MS602", "`config.json` is not there"),
        ("MS605", "no safetensors files here"),
    ]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_text("x")
    assert findings(tmp_path) == [("MS605", "no safetensors files here, only `model.gguf`")]
    for at in range(1, 6):
        (tmp_path / f"pytorch_model-{at}.bin").write_text("x")
    assert findings(tmp_path) == [
        (
            "MS606",
            "the weights are in `pytorch_model-1.bin`, `pytorch_model-2.bin`, `pytorch_model-3.bin` and 2 more; "
            "mapspec reads safetensors files only",
        )
    ]
    save_file({}, tmp_path / "model.safetensors")
    assert findings(tmp_path) == [("MS605", "no tensors in `model.safetensors`")]


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ("MS610", "`model.safetensors` has 0 bytes, too few for a safetensors file")),
        (b"\0" * 9, ("MS610", "`model.safetensors` claims a header of 0 bytes; it is no safetensors file")),
        (
            struct.pack("<Q", 5000) + b"{}",
            ("MS610", "`model.safetensors` is cut off in its header: 5008 bytes expected, 10 there"),
        ),
        (
            b"PK\3\4 this is a zip",
            ("MS610", "`model.safetensors` claims a header of 7595448452415441744 bytes; it is no safetensors file"),
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            ("MS617", "`model.safetensors` is a Git LFS pointer, not the file itself"),
        ),
    ],
    ids=["empty", "zeros", "cut", "zip", "lfs"],
)
def test_not_a_safetensors_file(tmp_path: Path, content: bytes, expected: tuple[str, str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert findings(tmp_path, config=False) == [expected]


@pytest.mark.parametrize(
    ("header", "data", "expected"),
    [
        (b'{"a\xff": 1}', 0, ("MS611", "the header of `model.safetensors` is unusable: byte 11 is not UTF-8")),
        (b'{"a": }', 0, ("MS611", "the header of `model.safetensors` is unusable: expecting value at character 6")),
        (b"[1, 2]", 0, ("MS611", "the header of `model.safetensors` is unusable: it is not an object")),
        (
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            1,
            ("MS611", "the header of `model.safetensors` is unusable: `a` stands in it twice"),
        ),
        (
            b"[" * 200_000,
            0,
            ("MS611", "the header of `model.safetensors` is unusable: it is nested too deeply"),
        ),
        (
            {"__metadata__": {"n": 3}, "a": F32},
            8,
            ("MS612", "`__metadata__` of `model.safetensors` is not a map of text to text"),
        ),
        (
            {"a": {"dtype": "F32", "shape": [2]}},
            8,
            ("MS612", "tensor `a` in `model.safetensors` lacks a usable `dtype`, `shape` or `data_offsets`"),
        ),
        (
            {"a": {**F32, "shape": [-2]}},
            8,
            ("MS612", "tensor `a` in `model.safetensors` lacks a usable `dtype`, `shape` or `data_offsets`"),
        ),
        (
            {"a": {**F32, "dtype": "F4"}},
            8,
            ("MS613", "tensor `a` in `model.safetensors` has dtype `F4`, which mapspec does not know"),
        ),
        (
            {"a": {**F32, "shape": [3]}},
            8,
            (
                "MS614",
                "tensor `a` in `model.safetensors` is F32 [3], which is 12 bytes, but its offsets 0 to 8 span 8",
            ),
        ),
        (
            {"a": {**F32, "data_offsets": [8, 0]}},
            8,
            (
                "MS614",
                "tensor `a` in `model.safetensors` is F32 [2], which is 8 bytes, but its offsets 8 to 0 span -8",
            ),
        ),
        (
            {"a": F32, "b": {**F32, "data_offsets": [4, 12]}},
            12,
            (
                "MS615",
                "tensor `b` in `model.safetensors` begins at offset 4 of the data: an overlap of 4 bytes after `a`",
            ),
        ),
        (
            {"b": {**F32, "data_offsets": [12, 20]}, "a": F32},
            20,
            (
                "MS615",
                "tensor `b` in `model.safetensors` begins at offset 12 of the data: 4 unused bytes after `a`",
            ),
        ),
        (
            {"a": {**F32, "data_offsets": [4, 12]}},
            12,
            (
                "MS615",
                "tensor `a` in `model.safetensors` begins at offset 4 of the data: "
                "4 unused bytes at the start of the data",
            ),
        ),
        (
            {"a": F32},
            5,
            ("MS616", "`model.safetensors` is cut off: its header describes 77 bytes, the file has 74"),
        ),
        (
            {"a": F32},
            9,
            (
                "MS616",
                "`model.safetensors` has bytes after its last tensor: its header describes 77 bytes, the file has 78",
            ),
        ),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, data: int, expected: tuple[str, str]) -> None:
    raw_file(tmp_path / "model.safetensors", header, bytes(data))
    assert findings(tmp_path, config=False) == [expected]


def test_offsets_in_another_order_than_the_names_are_fine(tmp_path: Path) -> None:
    header = {"a": {**F32, "data_offsets": [8, 16]}, "b": F32}
    raw_file(tmp_path / "model.safetensors", header, struct.pack("<4f", 1, 2, 3, 4))
    opened = open_hf(tmp_path, config=False)
    assert list(opened.tensors) == ["b", "a"]
    assert read_tensor(opened.tensors["a"], tmp_path).view(np.float32).tolist() == [3, 4]


def test_findings_are_collected_and_bounded(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    raw_file(folder / "model-00001-of-00002.safetensors", {f"t{n}": {**F32, "dtype": "C64"} for n in range(50)}, b"")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    found = findings(folder)
    assert [code for code, _ in found] == ["MS603"] + ["MS613"] * 20 + ["MS612", "MS610"]
    assert found[21][1] == "30 more findings in `model-00001-of-00002.safetensors`"


def test_a_tensor_in_two_shards(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors("c", "a"), folder / "model-00002-of-00002.safetensors")
    message = "tensor `a` is in `model-00001-of-00002.safetensors` and again in `model-00002-of-00002.safetensors`"
    assert findings(folder) == [("MS625", message)]


def test_index_and_headers_disagree(folder: Path) -> None:
    save_file(tensors("c", "x"), folder / "model-00002-of-00002.safetensors")
    change_index(folder, lambda index: index.update(d="model-00001-of-00002.safetensors"))
    assert findings(folder) == [
        ("MS623", "the index places tensor `d` in `model-00001-of-00002.safetensors`, which does not hold it"),
        ("MS624", "tensor `x` is in `model-00002-of-00002.safetensors`, but the index does not say so"),
    ]


def test_index_places_a_tensor_in_the_wrong_shard(folder: Path) -> None:
    change_index(folder, lambda index: index.update(a="model-00002-of-00002.safetensors"))
    with pytest.raises(CheckpointError) as caught:
        open_hf(folder)
    listed, held = sorted(caught.value.diagnostics, key=lambda finding: finding.code)
    assert listed.message == (
        "the index places tensor `a` in `model-00002-of-00002.safetensors`, which does not hold it"
    )
    assert held.notes[0].message == "the index places `a` in `model-00002-of-00002.safetensors`"


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "", "./a.safetensors", "x.bin", "a\0"],
)
def test_index_that_leads_outside(folder: Path, name: str) -> None:
    change_index(folder, lambda index: index.update(a=name))
    assert findings(folder) == [("MS621", f"the index names {name!r}, which is not a file inside the folder")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: expecting property name enclosed in double quotes"),
        ("{}", "has no `weight_map` from tensor names to file names"),
        ('{"weight_map": {"a": 1}}', "has no `weight_map` from tensor names to file names"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "key `a` stands here a second time"),
    ],
)
def test_broken_index(folder: Path, text: str, message: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    ((code, said),) = findings(folder)
    assert code == "MS620"
    assert message in said


def test_missing_and_forgotten_shards(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").rename(folder / "away")
    assert findings(folder) == [("MS622", "the index names `model-00001-of-00002.safetensors`, which is not there")]
    (folder / "model.safetensors.index.json").unlink()
    assert findings(folder) == [("MS626", "1 of 2 shards are missing, first `model-00001-of-00002.safetensors`")]


def test_shard_that_the_index_forgot(folder: Path) -> None:
    change_index(folder, lambda index: index.pop("c"))
    assert findings(folder) == [
        (
            "MS626",
            "`model-00002-of-00002.safetensors` is named like a shard, but `model.safetensors.index.json` "
            "does not mention it",
        )
    ]


def test_two_checkpoints_in_one_folder(folder: Path) -> None:
    save_file(tensors("a"), folder / "model.safetensors")
    assert findings(folder) == [
        ("MS627", "`model.safetensors` stands beside an index of other files: two checkpoints in one folder")
    ]
    (folder / "model.safetensors").unlink()
    text = (folder / "model.safetensors.index.json").read_text()
    (folder / "model.safetensors.index.json").rename(folder / "model.fp32.safetensors.index.json")
    assert set(open_hf(folder).tensors) == {"a", "b", "c"}
    (folder / "model.fp16.safetensors.index.json").write_text(text)
    ((code, message),) = findings(folder)
    assert code == "MS627"
    assert "several indexes and none is `model.safetensors.index.json`" in message


def test_45_000_tensors_open_quickly_and_without_torch(tmp_path: Path) -> None:
    for shard in range(15):
        header = {
            f"backbone.layers.{shard}.mixer.experts.{n}.up_proj.weight": {
                "dtype": "BF16",
                "shape": [2, 4],
                "data_offsets": [16 * n, 16 * n + 16],
            }
            for n in range(3000)
        }
        raw_file(tmp_path / f"model-{shard + 1:05d}-of-00015.safetensors", header, bytes(16 * 3000))
    # Against the parsing of the same headers, since machines differ, and one is slower at times.
    code = (
        "import json, pathlib, sys, time\nfrom mapspec.io.hf_folder import open_hf\n"
        "def read():\n"
        "    for path in pathlib.Path(sys.argv[1]).glob('*.safetensors'):\n"
        "        data = path.read_bytes()\n"
        "        json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])\n"
        "t = time.process_time()\nread()\nparsed = time.process_time() - t\nt = time.process_time()\n"
        "n = len(open_hf(sys.argv[1], config=False).tensors)\n"
        "print(n, (time.process_time() - t) / parsed, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    count, times, has_torch = done.stdout.split()
    assert int(count) == 45_000
    assert float(times) < 12, times
    assert has_torch == "False"


def test_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path | str, *args: int, **named: int) -> int:
        if Path(path).name.startswith("model-00002"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert findings(folder) == [("MS628", "`model-00002-of-00002.safetensors` cannot be read: Permission denied")]


def test_checkpoint_is_frozen(folder: Path) -> None:
    opened = open_hf(folder)
    assert isinstance(opened, HFCheckpoint)
    with pytest.raises(AttributeError):
        opened.root = folder  # type: ignore[misc]
