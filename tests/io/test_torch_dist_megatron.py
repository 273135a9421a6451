"""Against megatron-core itself: what it saves is read, what is laid out it loads."""

from __future__ import annotations

import io
import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

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
from mapspec.tensors import StoredTensor

pytestmark = pytest.mark.megatron

COLUMN = torch.arange(8 * 6, dtype=torch.float32).reshape(8, 6).bfloat16()
ROW = torch.arange(4 * 10, dtype=torch.float32).reshape(4, 10)
EXPERTS = torch.arange(4 * 4 * 3, dtype=torch.float32).reshape(4, 4, 3).half()
SCALAR = torch.tensor(2.5, dtype=torch.float64)
STATE = {"iteration": 3, "checkpoint_version": 3.0}
CONTENT = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
BOXES = {
    "column": (((0, 4), (0, 6)), ((4, 8), (0, 6))),
    "row": (((0, 4), (0, 5)), ((0, 4), (5, 10))),
    "experts": tuple(((e, e + 1), (2 * h, 2 * h + 2), (0, 3)) for e in range(4) for h in range(2)),
    "scalar": ((),),
}
VALUES = {"column": COLUMN, "row": ROW, "experts": EXPERTS, "scalar": SCALAR}


@contextmanager
def group(rank: int, size: int, store: Path):
    """A gloo group; megatron-core's writer asks for the CUDA device twice, and gets an answer that fits gloo."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        with (
            mock.patch("torch.cuda.synchronize"),
            mock.patch("torch.cuda.current_device", return_value=torch.device("cpu")),
        ):
            yield
    finally:
        torch.distributed.destroy_process_group()


def sharded(rank: int, size: int, *, empty: bool = False) -> dict[str, object]:
    """This rank's part: `column` and `row` cut along their axes, experts cut twice, the rest replicated."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    def blank(part: torch.Tensor) -> torch.Tensor:
        return torch.full_like(part, -1) if empty else part.clone()

    part: dict[str, object] = {
        "c": ShardedTensor.from_rank_offsets("column", blank(COLUMN.chunk(size)[rank]), (0, rank, size)),
        "r": ShardedTensor.from_rank_offsets("row", blank(ROW.chunk(size, 1)[rank]), (1, rank, size)),
        "s": ShardedTensor.from_rank_offsets("scalar", blank(SCALAR), replica_id=rank),
        "x": ShardedObject("m._extra_state", None if empty else io.BytesIO(b"fp8"), (1,), (0,), replica_id=rank),
    }
    for expert, rows in ((e, h) for e in range(4) for h in range(2)):
        if expert * size // 4 == rank:
            value = blank(EXPERTS[expert, 2 * rows : 2 * rows + 2])
            offsets = ((0, expert, 4), (1, rows, 2))
            part[f"e{expert}.{rows}"] = ShardedTensor.from_rank_offsets("experts", value, *offsets, prepend_axis_num=1)
    return part


def save(rank: int, size: int, folder: Path, store: Path) -> None:
    from megatron.core.dist_checkpointing import save as save_checkpoint

    with group(rank, size, store):
        save_checkpoint({**sharded(rank, size), **STATE}, str(folder), content_metadata=dict(CONTENT))


def load(rank: int, size: int, folder: Path, store: Path) -> None:
    """Load with every strictness that names differences, and compare."""
    from megatron.core.dist_checkpointing import load as load_checkpoint
    from megatron.core.dist_checkpointing.validation import StrictHandling

    with group(rank, size, store):
        expected = sharded(rank, size)
        for strict in (StrictHandling.ASSUME_OK_UNEXPECTED, StrictHandling.RAISE_ALL):
            loaded = load_checkpoint(sharded(rank, size, empty=True), str(folder), strict=strict)
            for key, shard in expected.items():
                if hasattr(shard, "data") and isinstance(shard.data, torch.Tensor):
                    assert torch.equal(loaded[key], shard.data), key
            assert loaded["x"] is None
            assert loaded["iteration"] == 3
            assert loaded["content_metadata"] == CONTENT


def in_processes(what, size: int, *args: object) -> None:
    # The server imports megatron-core once, its children start with it. They begin clean like spawned ones.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.checkpoint", "megatron.core.dist_checkpointing"])
    workers = [context.Process(target=what, args=(rank, size, *args)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * size


def save_then_load(rank: int, size: int, saved: Path, written: Path, store: Path) -> None:
    save(rank, size, saved, store.with_suffix(".save"))
    load(rank, size, written, store.with_suffix(".load"))


def write(folder: Path, *, common_file: bool) -> Layout:
    """A checkpoint of our own, cut otherwise than any rank will ask for."""
    boxes = {
        "column": (((0, 3), (0, 6)), ((3, 8), (0, 4)), ((3, 8), (4, 6))),
        "row": (((0, 4), (0, 10)),),
        "experts": (((0, 3), (0, 4), (0, 3)), ((3, 4), (0, 4), (0, 3))),
        "scalar": ((),),
    }
    tensors = [
        NewTensor(name, str(value.dtype).removeprefix("torch."), tuple(value.shape), boxes[name])
        for name, value in VALUES.items()
    ]
    state = common_state_for_weights(3)
    objects = {extra_state_key("m"): extra_state_stub()}
    if not common_file:
        objects["common_state/shard_0_1"] = common_state_object(state)
    layout = layout_torch_dist(tensors, objects=objects, files=3)
    folder.mkdir()
    small = dict(layout.small_files)
    if common_file:
        small["common.pt"] = common_pt(state)
    for name, content in small.items():
        (folder / name).write_bytes(content)
    for name, size in layout.file_sizes.items():
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
            for piece in layout.framing[name]:
                os.pwrite(stream.fileno(), piece.data, piece.offset)
            for tensor in layout.tensors.values():
                for chunk in tensor.chunks:
                    if chunk.file == name:
                        part = VALUES[tensor.name][tuple(slice(a, b) for a, b in chunk.box)]
                        os.pwrite(stream.fileno(), raw(part), chunk.offset)
    return layout


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def check_chunks(folder: Path, tensor: StoredTensor) -> None:
    for chunk in tensor.chunks:
        data = (folder / chunk.file).read_bytes()[chunk.offset : chunk.offset + chunk.nbytes]
        assert data == raw(VALUES[tensor.name][tuple(slice(a, b) for a, b in chunk.box)]), (tensor.name, chunk)


def check_saved(folder: Path, boxes: dict[str, object]) -> None:
    opened = open_torch_dist(folder)
    assert set(opened.tensors) == set(VALUES)
    for name, tensor in opened.tensors.items():
        assert tensor.shape == tuple(VALUES[name].shape)
        assert f"torch.{tensor.dtype}" == str(VALUES[name].dtype)
        assert tuple(sorted(chunk.box for chunk in tensor.chunks)) == boxes[name]
        check_chunks(folder, tensor)
    assert set(opened.objects) == {"m._extra_state/shard_0_1", "common_state/shard_0_1"}
    stored = torch.load(io.BytesIO(opened.read_object("m._extra_state/shard_0_1")), weights_only=False)
    assert stored[0].getvalue() == b"fp8"
    assert opened.read_common_state() == {**STATE, "content_metadata": CONTENT}


def test_one_process(tmp_path):
    saved, written = tmp_path / "iter_0000003", tmp_path / "written"
    saved.mkdir()
    write(written, common_file=True)
    in_processes(save_then_load, 1, saved, written, tmp_path / "store")
    boxes = {**BOXES, "column": (((0, 8), (0, 6)),), "row": (((0, 4), (0, 10)),)}
    check_saved(saved, boxes)
    assert open_torch_dist(tmp_path).iteration == 3


def test_two_processes(tmp_path):
    saved, written = tmp_path / "saved", tmp_path / "written"
    saved.mkdir()
    write(written, common_file=False)
    in_processes(save_then_load, 2, saved, written, tmp_path / "store")
    assert len(list(saved.glob("*.distcp"))) == 2
    check_saved(saved, BOXES)
