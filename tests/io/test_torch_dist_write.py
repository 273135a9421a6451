"""What `layout_torch_dist` lays out is what torch writes and reads."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapspec.io.layout import Layout, NewTensor
from mapspec.io.torch_dist import (
    common_pt,
    common_state_for_weights,
    common_state_object,
    extra_state_key,
    extra_state_stub,
    layout_torch_dist,
    open_torch_dist,
)
from mapspec.io.torch_dist.emit_metadata import metadata_pickle
from mapspec.io.torch_dist.frame import object_item, tensor_frame
from mapspec.tensors import DTYPES, Box, StoredTensor, numel, whole

SHAPES = [(), (1,), (3,), (0,), (0, 3), (3, 0, 4), (4, 6), (2, 3, 4), (1, 2, 1, 2, 3), (255,), (256, 256), (70000,)]


def fill(folder: Path, layout: Layout, values: dict[str, torch.Tensor]) -> None:
    """Do what mapspec.copy does, one chunk at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in layout.file_sizes.items():
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
            for piece in layout.framing[name]:
                os.pwrite(stream.fileno(), piece.data, piece.offset)
    for tensor in layout.tensors.values():
        for chunk in tensor.chunks:
            part = values[tensor.name][tuple(slice(a, b) for a, b in chunk.box)]
            data = raw(part)
            assert len(data) == chunk.nbytes
            with (folder / chunk.file).open("r+b") as stream:
                os.pwrite(stream.fileno(), data, chunk.offset)
    for name, content in layout.small_files.items():
        (folder / name).write_bytes(content)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bytes(folder: Path, tensor: StoredTensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor as its chunks on disk give it."""
    result = torch.zeros_like(like)
    for chunk in tensor.chunks:
        data = (folder / chunk.file).read_bytes()[chunk.offset : chunk.offset + chunk.nbytes]
        shape = tuple(b - a for a, b in chunk.box)
        part = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        result[tuple(slice(a, b) for a, b in chunk.box)] = part.view(like.dtype).reshape(shape)
    return result


def some(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == "bool":
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).bool()
    bits = torch.randint(0, 64, (numel(shape) * DTYPES[dtype],), generator=generator, dtype=torch.uint8)
    return bits.view(getattr(torch, dtype)).reshape(shape)


def grid(shape: tuple[int, ...], cuts: list[list[int]]) -> tuple[Box, ...]:
    boxes: list[Box] = [()]
    for size, inner in zip(shape, cuts, strict=True):
        edges = [0, *inner, size]
        boxes = [(*box, span) for box in boxes for span in itertools.pairwise(edges)]
    return tuple(boxes)


@pytest.fixture
def no_checksums():
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frame_is_what_torch_writes(dtype, no_checksums):
    for shape in SHAPES:
        value = some(dtype, shape)
        stream = io.BytesIO()
        torch.save(value, stream)
        frame = tensor_frame(dtype, shape)
        assert frame.head + raw(value) + frame.tail == stream.getvalue(), shape
        assert frame.length == len(stream.getvalue())


class LongSink(io.IOBase):
    """Takes what torch writes, forgets tensor data: torch hands it over unread, so no memory is touched."""

    def __init__(self) -> None:
        self.length = 0
        self.small: list[bytes] = []

    def write(self, data) -> int:
        if len(data) < 1 << 16:
            self.small.append(bytes(data))
        self.length += len(data)
        return len(data)


@pytest.mark.parametrize("nbytes", [2**32 - 1000, 2**32 - 750, 2**32 - 2, 2**32 - 1, 2**32, 5 * 2**30])
def test_frame_of_a_large_tensor_is_what_torch_writes(nbytes, no_checksums):
    sink = LongSink()
    torch.save(torch.empty(nbytes, dtype=torch.uint8), sink)
    frame = tensor_frame("uint8", (nbytes,))
    assert frame.length == sink.length
    assert frame.head + frame.tail == b"".join(sink.small)


def test_objects_are_what_torch_writes(no_checksums):
    for value in ([None], {"a": 1, "b": [1.5, "x", None]}, [common_state_for_weights(7)]):
        stream = io.BytesIO()
        torch.save(value, stream)
        assert object_item(pickle.dumps(value, protocol=2)) == stream.getvalue()
    assert torch.load(io.BytesIO(extra_state_stub()), weights_only=True) == [None]
    state = common_state_for_weights(3)
    assert torch.load(io.BytesIO(common_pt(state)), weights_only=True) == state
    assert torch.load(io.BytesIO(common_state_object(state)), weights_only=True) == [state]


def test_metadata_is_what_torch_understands(tmp_path):
    tensors = [NewTensor("w", "bfloat16", (4, 6), grid((4, 6), [[2], [3]])), NewTensor("s", "int64", (), ((),))]
    layout = layout_torch_dist(tensors, objects={extra_state_key("m"): extra_state_stub()}, files=2)
    metadata = pickle.loads(layout.small_files[".metadata"])  # our own bytes
    assert type(metadata) is dcp.metadata.Metadata
    weight = metadata.state_dict_metadata["w"]
    assert weight.properties == dcp.metadata.TensorProperties(dtype=torch.bfloat16)
    assert weight.size == torch.Size([4, 6])
    assert weight.chunks[1] == dcp.metadata.ChunkStorageMetadata(torch.Size([0, 3]), torch.Size([2, 3]))
    assert type(weight.chunks[1].sizes) is torch.Size
    assert metadata.state_dict_metadata["m._extra_state/shard_0_1"] == dcp.metadata.BytesStorageMetadata()
    places = metadata.storage_data
    assert set(places) == {
        dcp.metadata.MetadataIndex("m._extra_state/shard_0_1"),
        dcp.metadata.MetadataIndex("s", ()),
        *(dcp.metadata.MetadataIndex("w", (r, c)) for r in (0, 2) for c in (0, 3)),
    }
    assert sum(place.length for place in places.values()) == sum(layout.file_sizes.values())
    assert metadata_pickle([]) == metadata_pickle([], {})


def test_every_dtype_comes_back_from_torch(tmp_path):
    values = {f"{d}.{n}": some(d, s, n) for d in DTYPES for n, s in enumerate(SHAPES) if numel(s) < 1000}
    tensors = [NewTensor(k, k.split(".")[0], tuple(v.shape), (whole(v.shape),)) for k, v in values.items()]
    layout = layout_torch_dist(tensors, files=3)
    fill(tmp_path, layout, values)
    assert {**open_torch_dist(tmp_path).tensors} == {**layout.tensors}
    target = {k: torch.zeros_like(v) for k, v in values.items()}
    dcp.load(target, storage_reader=dcp.FileSystemReader(tmp_path), no_dist=True)
    for key, value in values.items():
        assert target[key].dtype == value.dtype
        assert raw(target[key]) == raw(value), key


@st.composite
def cut_tensors(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=4)))
    cuts = [sorted(draw(st.sets(st.integers(1, n - 1), max_size=3))) if n > 1 else [] for n in shape]
    return draw(st.sampled_from(sorted(DTYPES))), shape, grid(shape, cuts)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(cut_tensors(), min_size=1, max_size=4), files=st.integers(1, 5), seed=st.integers(0, 9))
def test_any_cut_comes_back(tmp_path_factory, drawn, files, seed):
    folder = tmp_path_factory.mktemp("cut")
    values = {f"t{n}": some(dtype, shape, seed + n) for n, (dtype, shape, _) in enumerate(drawn)}
    boxes = [random.Random(seed).sample(b, len(b)) for _, _, b in drawn]
    tensors = [NewTensor(f"t{n}", d, s, tuple(boxes[n])) for n, (d, s, _) in enumerate(drawn)]
    layout = layout_torch_dist(tensors, files=files)
    fill(folder, layout, values)
    opened = open_torch_dist(folder)
    assert dict(opened.tensors) == dict(layout.tensors)
    for n, tensor in enumerate(tensors):
        assert [chunk.box for chunk in layout.tensors[tensor.name].chunks] == boxes[n]
        assert raw(stored_bytes(folder, opened.tensors[tensor.name], values[tensor.name])) == raw(values[tensor.name])
    target = {k: torch.zeros_like(v) for k, v in values.items() if v.dtype != torch.bool}
    dcp.load(target, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert all(raw(target[k]) == raw(values[k]) for k in target)


def test_a_tensor_above_4_gib_is_read_from_its_sparse_file(tmp_path):
    rows = 5 * 2**20
    layout = layout_torch_dist([NewTensor("big", "uint8", (rows, 1024), (((0, rows), (0, 1024)),))])
    fill_framing = layout.framing["__0_0.distcp"]
    with (tmp_path / "__0_0.distcp").open("wb") as stream:
        stream.truncate(layout.file_sizes["__0_0.distcp"])
        for piece in fill_framing:
            os.pwrite(stream.fileno(), piece.data, piece.offset)
        chunk = layout.tensors["big"].chunks[0]
        os.pwrite(stream.fileno(), b"end!", chunk.offset + chunk.nbytes - 4)
    (tmp_path / ".metadata").write_bytes(layout.small_files[".metadata"])
    opened = open_torch_dist(tmp_path)
    assert opened.tensors["big"].chunks == (chunk,)
    # mmap: only the touched pages are read
    loaded = torch.load(tmp_path / "__0_0.distcp", weights_only=True, mmap=True)
    assert loaded.shape == (rows, 1024)
    assert bytes(loaded[-1, -4:].tolist()) == b"end!"


def test_files_are_balanced_and_bounded():
    tensors = [NewTensor(f"t{n}", "uint8", (1 + n * 997 % 5000,), (((0, 1 + n * 997 % 5000),),)) for n in range(400)]
    sizes = layout_torch_dist(tensors, files=6).file_sizes
    assert list(sizes) == [f"__0_{n}.distcp" for n in range(6)]
    assert max(sizes.values()) - min(sizes.values()) < 7000
    bounded = layout_torch_dist(tensors, files=1, max_file_bytes=100_000).file_sizes
    assert len(bounded) > 10
    assert max(bounded.values()) < 107_000
    assert list(layout_torch_dist(tensors[:2], files=6).file_sizes) == ["__0_0.distcp", "__0_1.distcp"]
    assert layout_torch_dist([]).file_sizes == {"__0_0.distcp": 0}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([NewTensor("w", "bfloat16", (4,), (((0, 2),),))], "2 of 4 elements"),
        ([NewTensor("w", "bfloat16", (4,), (((0, 3),), ((2, 4),)))], "overlap"),
        ([NewTensor("w", "bfloat16", (0,), ())], "no boxes"),
        ([NewTensor("w", "complex64", (4,), (((0, 4),),))], "complex64"),
        ([NewTensor("w", "bfloat16", (4,), (((0, 4),),))] * 2, "twice"),
        ([NewTensor("w", "bfloat16", (4,), (((0, 0),), ((0, 4),)))], "begin at the same place"),
    ],
)
def test_a_wrong_plan_is_refused(tensors, words):
    with pytest.raises(ValueError, match=words):
        layout_torch_dist(tensors)


def test_neither_reading_nor_laying_out_imports_torch(tmp_path):
    script = f"""
import sys
from pathlib import Path
from mapspec.io.layout import NewTensor
from mapspec.io.torch_dist import *
layout = layout_torch_dist([NewTensor("w", "bfloat16", (4,), (((0, 4),),))])
folder = Path({str(tmp_path)!r})
data = bytearray(layout.file_sizes["__0_0.distcp"])
for piece in layout.framing["__0_0.distcp"]:
    data[piece.offset : piece.offset + len(piece.data)] = piece.data
(folder / "__0_0.distcp").write_bytes(data)
(folder / "common.pt").write_bytes(common_pt(common_state_for_weights(5)))
for name, content in layout.small_files.items():
    (folder / name).write_bytes(content)
opened = open_torch_dist(folder)
assert opened.read_common_state()["iteration"] == 5
assert dict(opened.tensors) == dict(layout.tensors)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
