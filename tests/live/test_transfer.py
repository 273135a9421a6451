"""Bytes of files and values of tensors: blocks, strides, casts, short runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mapspec.copying.pieces import pieces_of
from mapspec.errors import CheckpointError
from mapspec.fill import Part
from mapspec.io.remote import RemotePath, located
from mapspec.live.pieces import blocks_of
from mapspec.live.transfer import Reader, Writer
from mapspec.tensors import Box, Chunk, StoredTensor, box_shape, itemsize, numel, whole


def stored(tensor: Tensor, folder: Path) -> StoredTensor:
    """The tensor in a file of its own, 24 bytes from the beginning."""
    (folder / "data").write_bytes(bytes(24) + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    return StoredTensor("t", dtype, shape, (Chunk(whole(shape), "data", 24, numel(shape) * itemsize(dtype)),))


@pytest.mark.parametrize(
    ("shape", "box", "dtype", "exact"),
    [
        pytest.param((3000, 2000), ((100, 2900), (0, 2000)), torch.bfloat16, True, id="rows-of-many-blocks"),
        pytest.param((3000, 2000), ((0, 3000), (500, 1000)), torch.bfloat16, True, id="columns"),
        pytest.param((3000, 2000), ((0, 3000), (500, 1000)), torch.float32, True, id="columns-cast"),
        pytest.param((40000, 64), ((0, 40000), (8, 40)), torch.bfloat16, False, id="thousands-of-short-runs"),
        pytest.param((3, 50, 40), ((1, 2), (0, 50), (10, 30)), torch.bfloat16, True, id="one-of-a-stack"),
        pytest.param((8,), ((2, 6),), torch.float32, True, id="vector"),
        pytest.param((), (), torch.bfloat16, True, id="scalar"),
    ],
)
def test_read_and_write(tmp_path: Path, shape: tuple[int, ...], box: Box, dtype: torch.dtype, exact: bool) -> None:
    values = torch.randn(shape, dtype=torch.bfloat16)
    source = stored(values, tmp_path)
    wanted = values[tuple(slice(a, b) for a, b in box)]
    local = box_shape(box)[1:] if len(box) == 3 else box_shape(box)
    pieces = pieces_of("t", whole(local), [Part(whole(local), source, box)], {})
    target = torch.full(local, float("nan"), dtype=dtype)
    reader = Reader(tmp_path)
    reader.fill("t", target, pieces)
    reader.close()
    assert torch.equal(target, wanted.reshape(local).to(dtype))
    needed = numel(local) * 2
    assert reader.nbytes == needed if exact else needed <= reader.nbytes <= numel(shape) * 2 * 1.01

    # The other way round: only the box changes.
    writer = Writer(tmp_path)
    writer.write(-target, pieces)
    writer.close(fsync=False)
    values[tuple(slice(a, b) for a, b in box)] *= -1
    written = (tmp_path / "data").read_bytes()
    assert written == bytes(24) + values.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    assert writer.nbytes == needed


def test_columns_of_an_object_are_few_requests(tmp_path: Path) -> None:
    """A request for each short row would take minutes; whole rows are read instead, and counted."""
    fsspec = pytest.importorskip("fsspec")
    values = torch.randn((3000, 2000), dtype=torch.bfloat16)
    source = stored(values, tmp_path)
    fsspec.filesystem("memory").put_file(str(tmp_path / "data"), "/live/data")
    root = located("memory://live")
    assert isinstance(root, RemotePath)
    box = ((0, 3000), (500, 1000))
    pieces = pieces_of("t", whole((3000, 500)), [Part(whole((3000, 500)), source, box)], {})
    target = torch.empty((3000, 500), dtype=torch.bfloat16)
    reader = Reader(root)
    reader.fill("t", target, pieces)
    reader.close()
    assert torch.equal(target, values[:, 500:1000])
    assert root.store.requests < 10
    assert values.nbytes * 0.9 < reader.nbytes < values.nbytes * 1.1


def test_file_that_ends_early(tmp_path: Path) -> None:
    source = stored(torch.ones(100, 10), tmp_path)
    with (tmp_path / "data").open("r+b") as file:
        file.truncate(500)
    box = whole((100, 10))
    pieces = pieces_of("t", box, [Part(box, source, box)], {})
    reader = Reader(tmp_path)
    with pytest.raises(CheckpointError, match="MS703") as caught:
        reader.fill("norm.weight", torch.empty(100, 10), pieces)
    assert "norm.weight" in caught.value.diagnostics[0].notes[0].message
    reader.close()


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (3, 4, 5), (2, 0, 3)])
@pytest.mark.parametrize("most", [1, 8, 50, 1000])
def test_blocks_tile_the_box(shape: tuple[int, ...], most: int) -> None:
    seen = torch.zeros(shape, dtype=torch.int)
    for block in blocks_of(whole(shape), "float32", most):
        assert numel(box_shape(block)) * 4 <= max(most, 4)
        seen[tuple(slice(a, b) for a, b in block)] += 1
    assert bool((seen == 1).all())
