"""Opening checkpoints: torch's own, older forms, damaged ones, malicious ones."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from mapspec.errors import CheckpointError
from mapspec.io.torch_dist import (
    common_pt,
    common_state_for_weights,
    find_folder,
    is_torch_dist,
    iteration_folder,
    open_torch_dist,
    tracker_text,
)
from mapspec.tensors import DTYPES, StoredTensor


def save_by_torch(folder: Path, state: dict[str, object], **options: object) -> Path:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, **options), no_dist=True)
    return folder


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored(folder: Path, tensor: StoredTensor) -> bytes:
    (chunk,) = tensor.chunks
    return (folder / chunk.file).read_bytes()[chunk.offset : chunk.offset + chunk.nbytes]


def saved_item(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def checkpoint_of(folder: Path, items: dict[str, tuple[list[int], torch.dtype, list]], before: bytes = b"") -> Path:
    """A checkpoint put together by hand: name -> (shape, dtype, [(offsets, sizes, item bytes)])."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, places, data = {}, {}, bytearray(before)
    for name, (shape, dtype, chunks) in items.items():
        listed = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s, _ in chunks]
        entries[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), listed)
        for offsets, _, item in chunks:
            places[MetadataIndex(name, offsets)] = _StorageInfo("__0_0.distcp", len(data), len(item))
            data += item
    (folder / "__0_0.distcp").write_bytes(data)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(entries, None, places)))
    return folder


def one_tensor(folder: Path, item: bytes, shape=(4, 6), dtype=torch.float32, before: bytes = b"") -> Path:
    return checkpoint_of(folder, {"w": (list(shape), dtype, [([0] * len(shape), list(shape), item)])}, before)


def refusal(folder: Path, code: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_torch_dist(folder)
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert found.where
    assert found.help
    return found.message


WEIGHT = torch.arange(24, dtype=torch.float32).reshape(4, 6)


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_s_own_checkpoint(tmp_path, threads):
    state = {d: torch.arange(12).to(getattr(torch, d)).reshape(3, 4) for d in DTYPES}
    state |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "step": 7, "optimizer": {"m": WEIGHT}}
    save_by_torch(tmp_path, state, thread_count=threads)
    opened = open_torch_dist(tmp_path)
    assert set(opened.tensors) == {*DTYPES, "scalar", "empty", "optimizer.m"}
    for name in (*DTYPES, "scalar", "empty"):
        assert opened.tensors[name].shape == tuple(state[name].shape)
        assert stored(tmp_path, opened.tensors[name]) == raw(state[name])
    assert torch.load(io.BytesIO(opened.read_object("step")), weights_only=True) == 7
    assert opened.iteration is None
    assert opened.run_config is None


def test_select_leaves_the_rest_unopened(tmp_path):
    save_by_torch(tmp_path, {"w": WEIGHT, "optimizer.m": WEIGHT.to(torch.complex64), "other": WEIGHT + 0j})
    opened = open_torch_dist(tmp_path, select=lambda name: not name.startswith("optimizer."))
    assert set(opened.tensors) == {"w"}
    assert opened.left_out == ("optimizer.m",)
    assert opened.unsupported["other"].code == "MS659"
    assert "complex64" in opened.unsupported["other"].message


def test_views_parameters_and_shared_storage(tmp_path):
    base = torch.arange(100, dtype=torch.int32)
    for n, value in enumerate([base[10:34].view(4, 6), base[90:].view(2, 5), base.view(10, 10)[3:5]]):
        folder = one_tensor(tmp_path / str(n), saved_item(value), tuple(value.shape), torch.int32)
        assert stored(folder, open_torch_dist(folder).tensors["w"]) == raw(value)
    folder = one_tensor(tmp_path / "p", saved_item(torch.nn.Parameter(WEIGHT)))
    assert stored(folder, open_torch_dist(folder).tensors["w"]) == raw(WEIGHT)


def test_not_row_major_is_refused(tmp_path):
    folder = one_tensor(tmp_path, saved_item(WEIGHT.t()), (6, 4))
    assert "strides [1, 6]" in refusal(folder, "MS658")
    shutil.rmtree(folder)
    assert "strides" in refusal(one_tensor(folder, saved_item(torch.zeros(1).expand(4, 6))), "MS658")


def rezipped(item: bytes, drop: tuple[str, ...] = (), folder: str = "archive", replace: dict | None = None) -> bytes:
    """The item as another program writes it: Python's zipfile, without descriptors, padding and some records."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(item)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            short = name.partition("/")[2]
            if short not in drop:
                new.writestr(f"{folder}/{short}", (replace or {}).get(short, old.read(name)))
    return stream.getvalue()


def test_items_of_older_writers(tmp_path):
    item = saved_item(WEIGHT)
    extras = ("byteorder", ".data/serialization_id", ".format_version", ".storage_alignment")
    forms = {
        "plain": rezipped(item),
        "old": rezipped(item, extras, "archive"),
        "named": rezipped(item, extras, "some_file_name"),
    }
    for name, form in forms.items():
        folder = one_tensor(tmp_path / name, form, before=b"x" * 77)
        assert stored(folder, open_torch_dist(folder).tensors["w"]) == raw(WEIGHT), name


def test_forms_that_cannot_be_read(tmp_path):
    item = saved_item(WEIGHT)
    assert "big-endian" in refusal(one_tensor(tmp_path / "1", rezipped(item, replace={"byteorder": b"big"})), "MS658")
    legacy = io.BytesIO()
    torch.save(WEIGHT, legacy, _use_new_zipfile_serialization=False)
    assert "does not begin" in refusal(one_tensor(tmp_path / "2", legacy.getvalue()), "MS655")
    assert "no `data.pkl`" in refusal(one_tensor(tmp_path / "3", rezipped(item, ("data.pkl",))), "MS655")
    assert "no storage" in refusal(one_tensor(tmp_path / "4", rezipped(item, ("data/0",))), "MS655")
    assert "holds an object" in refusal(one_tensor(tmp_path / "5", saved_item([1])), "MS656")
    squeezed = io.BytesIO()
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 500)
    assert "compressed" in refusal(one_tensor(tmp_path / "6", squeezed.getvalue()), "MS658")
    save_by_torch(tmp_path / "7", {"w": WEIGHT}, serialization_format=SerializationFormat.SAFETENSORS)
    refusal(tmp_path / "7", "MS655")


def test_metadata_that_lies(tmp_path):
    item = saved_item(WEIGHT)
    assert "holds float32, `.metadata` says bfloat16" in refusal(
        one_tensor(tmp_path / "1", item, dtype=torch.bfloat16), "MS656"
    )
    assert "[4, 6], `.metadata` says [6, 4]" in refusal(one_tensor(tmp_path / "2", item, (6, 4)), "MS656")

    def cut(name: str, shape: list[int], *chunks: tuple[list[int], list[int]]) -> str:
        listed = [(o, s, saved_item(torch.zeros(s))) for o, s in chunks]
        return refusal(checkpoint_of(tmp_path / name, {"a.w": (shape, torch.float32, listed)}), "MS657")

    assert "`a.w`" in cut("3", [4, 6], ([0, 0], [2, 6]))
    assert "12 of 24" in cut("3", [4, 6], ([0, 0], [2, 6]))
    assert "[0:3, 0:6] and [2:4, 0:6] overlap" in cut("4", [4, 6], ([0, 0], [3, 6]), ([2, 0], [2, 6]))
    assert "lies outside of [4, 6]" in cut("5", [4, 6], ([0, 0], [5, 6]))
    assert "overlap" in cut("6", [4, 6], ([0, 0], [4, 4]), ([0, 3], [4, 2]), ([0, 1], [4, 1]))

    for name, place in {
        "7": _StorageInfo("../__0_0.distcp", 0, len(item)),
        "8": _StorageInfo("/etc/passwd", 0, 10),
        "9": _StorageInfo("__0_0.distcp", -1, 10),
    }.items():
        folder = one_tensor(tmp_path / name, item)
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        metadata.storage_data[MetadataIndex("w", [0, 0])] = place
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        refusal(folder, "MS652")
    metadata.storage_data = {}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "chunk at [0, 0] of `w` without a place" in refusal(folder, "MS652")
    for content in (Metadata({"w": 3}, None, {}), Metadata({}, None, {1: 2}), Metadata({}, None, None), [1]):
        (folder / ".metadata").write_bytes(pickle.dumps(content))
        refusal(folder, "MS652")


def test_transformed_items_are_refused(tmp_path):
    folder = one_tensor(tmp_path, saved_item(WEIGHT))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.storage_data[MetadataIndex("w", [0, 0])].transform_descriptors = ["stream.zstd"]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "stream.zstd" in refusal(folder, "MS658")


def test_missing_and_truncated_files(tmp_path):
    save_by_torch(tmp_path, {"w": WEIGHT, "v": WEIGHT, "step": 1})
    data = tmp_path / "__0_0.distcp"
    size = data.stat().st_size
    os.truncate(data, size - 1)
    assert f"has {size - 1} bytes" in refusal(tmp_path, "MS654")
    data.unlink()
    assert "cannot be opened" in refusal(tmp_path, "MS654")
    metadata = (tmp_path / ".metadata").read_bytes()
    for length in (0, 1, 100, len(metadata) // 2, len(metadata) - 1):
        (tmp_path / ".metadata").write_bytes(metadata[:length])
        refusal(tmp_path, "MS652")


@pytest.mark.parametrize("after_a_sound_one", [False, True])  # items like an earlier one take a shorter way
def test_damage_anywhere_is_a_finding_or_harmless(tmp_path, after_a_sound_one):
    item = saved_item(WEIGHT)
    place = item.index(raw(WEIGHT))
    sound = saved_item(WEIGHT + 1) if after_a_sound_one else b""
    items = {"a": ([4, 6], torch.float32, [([0, 0], [4, 6], sound)])} if sound else {}
    folder = checkpoint_of(tmp_path, items | {"w": ([4, 6], torch.float32, [([0, 0], [4, 6], item)])})
    file = folder / "__0_0.distcp"
    caught = 0
    for position in [n for n in range(len(item)) if not place <= n < place + 96]:
        broken = bytearray(item)
        broken[position] ^= 0xFF
        file.write_bytes(sound + broken)
        try:
            tensor = open_torch_dist(folder).tensors["w"]
        except CheckpointError:
            caught += 1
        else:  # padding, times, checksums of records that do not matter: the data is still found
            assert stored(folder, tensor) == raw(WEIGHT), position
    assert caught > 400
    metadata = (folder / ".metadata").read_bytes()
    file.write_bytes(sound + item)
    for position in range(len(metadata)):
        broken = bytearray(metadata)
        broken[position] ^= 0x11
        (folder / ".metadata").write_bytes(broken)
        try:
            open_torch_dist(folder)
        except CheckpointError:
            caught += 1
    assert caught > 600


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_malicious_pickles_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    payload = Payload(f"touch {marker}")
    folder = one_tensor(tmp_path / "a", saved_item(WEIGHT))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for content in (payload, Metadata({}, payload, {}), {"x": 1, "y": [payload]}):
        (folder / ".metadata").write_bytes(pickle.dumps(content))
        assert f"`{os.system.__module__}.system`" in refusal(folder, "MS653")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))

    evil = rezipped(saved_item(WEIGHT), replace={"data.pkl": pickle.dumps(payload, protocol=2)})
    other = one_tensor(tmp_path / "b", evil)
    assert ".system`" in refusal(other, "MS653")

    torch.save({"args": payload}, folder / "common.pt")
    with pytest.raises(CheckpointError, match="MS653"):
        open_torch_dist(folder).read_common_state()
    (folder / "run_config.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {marker}']\n")
    assert open_torch_dist(folder).run_config == {"model": [f"touch {marker}"]}
    # Names that are listed, but used for what they are not: altering a class, or calling a data type.
    for pickled in (
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x04\x00\x00\x00argsK\x01s\x86b.",
        b"\x80\x02ctorch\nbfloat16\n)R.",
        b"\x80\x02ctorch\nSize\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
    ):
        (folder / ".metadata").write_bytes(pickled)
        refusal(folder, "MS652")
    assert not marker.exists()


def test_common_state(tmp_path):
    one_tensor(tmp_path, saved_item(WEIGHT))
    with pytest.raises(CheckpointError, match="MS661 the checkpoint holds neither"):
        open_torch_dist(tmp_path).read_common_state()
    args = Namespace(num_layers=4, params_dtype=torch.bfloat16, spec=["a", "b"], moe=None, path=Path("x"))
    torch.save({"args": args, "iteration": 7, "rng": torch.arange(4)}, tmp_path / "common.pt")
    state = open_torch_dist(tmp_path).read_common_state()
    assert state["iteration"] == 7
    assert (state["args"].num_layers, state["args"].params_dtype, state["args"].spec) == (4, "bfloat16", ["a", "b"])
    plain = common_state_for_weights(9, args=Namespace(num_layers=2))
    (tmp_path / "common.pt").write_bytes(common_pt(plain))
    assert open_torch_dist(tmp_path).read_common_state() == plain
    for content in (b"", b"no archive", saved_item([1]), saved_item({"a": 1})[:-30]):
        (tmp_path / "common.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="MS661"):
            open_torch_dist(tmp_path).read_common_state()


def test_run_config(tmp_path):
    one_tensor(tmp_path, saved_item(WEIGHT))
    (tmp_path / "run_config.yaml").write_text(
        "model:\n"
        "  _target_: megatron.bridge.models.Provider\n"
        "  params_dtype: !!python/name:torch.bfloat16 ''\n"
        "  spec: !!python/tuple [1, 2]\n"
        "  other: !!python/object:os.Thing {a: 1}\n"
        "  act: {_call_: false, _target_: torch.nn.functional.silu}\n"
    )
    model = open_torch_dist(tmp_path).run_config["model"]
    assert model["_target_"] == "megatron.bridge.models.Provider"
    assert model["params_dtype"] == "torch.bfloat16"
    assert model["spec"] == [1, 2]
    assert model["other"] == {"a": 1}
    assert model["act"] == {"_call_": False, "_target_": "torch.nn.functional.silu"}
    for text in ("model: [", "- 1\n", "a: 1\na: 2\n", "\x00"):
        (tmp_path / "run_config.yaml").write_text(text)
        refusal(tmp_path, "MS660")


def test_which_iteration(tmp_path):
    assert (iteration_folder(7), iteration_folder(None)) == ("iter_0000007", "release")
    assert (tracker_text(7), tracker_text(None)) == (b"7", b"release")
    root = tmp_path / "run"
    root.mkdir()
    assert not is_torch_dist(root)
    refusal(root, "MS650")
    refusal(tmp_path / "nowhere", "MS650")
    first = one_tensor(root / "iter_0000007", saved_item(WEIGHT))
    assert is_torch_dist(root)
    assert find_folder(root).path == first
    assert open_torch_dist(root).iteration == open_torch_dist(first).iteration == 7
    one_tensor(root / "release", saved_item(WEIGHT))
    second = one_tensor(root / "iter_0000010", saved_item(WEIGHT))
    assert "iter_0000007, iter_0000010, release" in refusal(root, "MS651")
    tracker = root / "latest_checkpointed_iteration.txt"
    for text, folder, number in ((b"10\n", second, 10), (b"release", root / "release", None)):
        tracker.write_bytes(text)
        opened = open_torch_dist(root)
        assert (opened.root, opened.folder, opened.iteration) == (root, folder, number)
    tracker.write_text("8")
    assert "there is no iter_0000008/.metadata" in refusal(root, "MS650")
    tracker.write_text("../x")
    assert "says `../x`" in refusal(root, "MS650")


def test_other_formats(tmp_path):
    one_tensor(tmp_path, saved_item(WEIGHT))
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    assert "`zarr`" in refusal(tmp_path, "MS662")
    (tmp_path / "metadata.json").write_text("[]")
    refusal(tmp_path, "MS662")


def test_zip64_end_record_out_of_place(tmp_path):
    item = saved_item(WEIGHT)
    at = item.rindex(b"PK\x06\x07") + 8
    for offset in (0, 2**63, 1):
        broken = item[:at] + struct.pack("<Q", offset) + item[at + 8 :]
        refusal(one_tensor(tmp_path, broken), "MS655")
