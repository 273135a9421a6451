"""The copy engine against numpy: any chunks, any boxes, any order."""

from __future__ import annotations

import itertools
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128

from mapspec.copy import FileDone, execute, first_difference, jobs_of, read_tensor, work
from mapspec.copying import alignment, gather, jobs, lane, program, rows, vectored, worker
from mapspec.copying.behind import crowded
from mapspec.copying.casts import caster
from mapspec.copying.gather import UNSIGNED
from mapspec.copying.pieces import BoxIndex, intersect
from mapspec.copying.source import SourceFiles
from mapspec.crew import Processes
from mapspec.errors import CheckpointError, ConvertError
from mapspec.fill import Fill, Part
from mapspec.io.layout import Framing, Layout
from mapspec.tensors import Box, Chunk, StoredTensor, box_shape, itemsize, numel, whole

QUICK = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*interval) for interval in box)


def cut(shape: tuple[int, ...], cuts: list[list[int]]) -> list[Box]:
    """The boxes of a grid: `cuts` are the inner boundaries per axis."""
    axes = []
    for extent, inner in zip(shape, cuts, strict=True):
        edges = [0, *sorted({c for c in inner if 0 < c < extent}), extent]
        axes.append(list(itertools.pairwise(edges)))
    return [tuple(box) for box in itertools.product(*axes)]


def store(root: Path, name: str, array: np.ndarray, dtype: str, boxes: list[Box], files: list[str]) -> StoredTensor:
    """Append the boxes of an array to raw files, with some bytes of nothing between them."""
    chunks = []
    for at, box in enumerate(boxes):
        file = files[at % len(files)]
        data = np.ascontiguousarray(array[slices(box)]).tobytes()
        with (root / file).open("ab") as out:
            out.write(b"\xee" * (at % 3 + 1))
            chunks.append(Chunk(box, file, out.tell(), len(data)))
            out.write(data)
    return StoredTensor(name, dtype, array.shape, tuple(chunks))


def place(tensors: dict[str, tuple[str, tuple[int, ...], list[Box]]], files: list[str]) -> Layout:
    """A layout with a few bytes of framing before every chunk and at the end of every file."""
    ends = dict.fromkeys(files, 0)
    framing: dict[str, list[Framing]] = {file: [] for file in files}
    stored = {}
    turn = itertools.cycle(files)
    for name, (dtype, shape, boxes) in tensors.items():
        chunks = []
        for box in boxes:
            file = next(turn)
            framing[file].append(Framing(ends[file], b"<" * (len(chunks) % 4)))
            start = ends[file] + len(chunks) % 4
            chunks.append(Chunk(box, file, start, numel(box_shape(box)) * itemsize(dtype)))
            ends[file] = start + chunks[-1].nbytes
        stored[name] = StoredTensor(name, dtype, shape, tuple(chunks))
    for file in files:
        framing[file].append(Framing(ends[file], b">end"))
        ends[file] += 4
    return Layout(stored, ends, {file: tuple(f) for file, f in framing.items()}, {"small.json": b"{}"})


def random_bits(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bits = UNSIGNED[itemsize(dtype)]
    return rng.integers(0, np.iinfo(bits).max, shape, dtype=bits, endpoint=True)


def small_limits(draw_small: bool) -> ExitStack:
    """With limits of a few bytes, tiny tensors take every path that large ones take."""
    stack = ExitStack()
    if draw_small:
        stack.enter_context(
            mock.patch.multiple(gather, _BLOCK=64, _SMALLEST=16, STAGE=128, PAGE=16, _FAR=40, SHORTEST=4)
        )
        stack.enter_context(mock.patch.multiple(lane, PAGE=16, _BLOCK=32, _SMALLEST=48))
        stack.enter_context(mock.patch.multiple(rows, SHORTEST=4))
        stack.enter_context(mock.patch.multiple(vectored, _MOST=3))
        stack.enter_context(mock.patch.multiple(worker, _BLOCK=32, PAGE=16))
        stack.enter_context(mock.patch.object(program, "_SHORTEST_RUN", 12))
        stack.enter_context(mock.patch.object(jobs, "_LEAST", 16))
        near = {"_NEAR": 4, "_PLACES": (0, 8, 4, 12), "_SHORTEST_PERIOD": 8}
        stack.enter_context(mock.patch.multiple(alignment, PAGE=16, **near))
        stack.enter_context(mock.patch.object(worker, "_ZEROS", bytes(32)))
    return stack


@st.composite
def cases(draw: st.DrawFn):
    dtype = draw(st.sampled_from(["uint8", "bfloat16", "float32", "int64"]))
    rank = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    grid = lambda s: cut(s, [draw(st.lists(st.integers(1, 8), max_size=3)) for _ in s])  # noqa: E731
    tiles = grid(shape)
    sources = []
    parts = []
    for tile in tiles:
        extents = box_shape(tile)
        kind = draw(st.sampled_from(["new", "new", "again", "zeros"]))
        if kind == "zeros":
            parts.append((tile, None, ()))
            continue
        if kind == "new" or not sources:
            body = extents
            while body and body[0] == 1 and draw(st.booleans()):
                body = body[1:]
            body = (1,) * draw(st.integers(0, 1)) + body
            room = tuple(n + draw(st.integers(0, 3)) for n in body)
            sources.append((room, grid(room)))
        at = draw(st.integers(0, len(sources) - 1)) if kind == "again" else len(sources) - 1
        room = sources[at][0]
        bare = list(extents)
        want = bare[len(bare) - len(room) :] if len(room) <= len(bare) else [1] * (len(room) - len(bare)) + bare
        lost = bare[: max(0, len(bare) - len(room))]
        if math.prod(lost) != 1 or any(n > r for n, r in zip(want, room, strict=True)):
            parts.append((tile, None, ()))
            continue
        low = [draw(st.integers(0, r - n)) for n, r in zip(want, room, strict=True)]
        parts.append((tile, at, tuple((a, a + n) for a, n in zip(low, want, strict=True))))
    return dtype, shape, parts, sources, grid(shape), draw(st.integers(1, 3)), draw(st.booleans())


def check_digests(done: Iterable[FileDone], layout: Layout, root: Path) -> None:
    """Digests are those of the bytes on disk: each chunk's, and those of everything between the chunks."""
    by_file = {file.file: file for file in done}
    assert by_file.keys() == {*layout.file_sizes, *layout.small_files}
    for name, file in by_file.items():
        raw = (root / name).read_bytes()
        spans = sorted(
            (chunk.offset, chunk.nbytes)
            for tensor in layout.tensors.values()
            for chunk in tensor.chunks
            if chunk.file == name and chunk.nbytes
        )
        assert [(d.offset, d.nbytes) for d in file.digests] == spans
        rest, end = b"", 0
        for (offset, nbytes), digest in zip(spans, file.digests, strict=True):
            assert digest.hex == xxh3_128(raw[offset : offset + nbytes]).hexdigest()
            rest, end = rest + raw[end:offset], offset + nbytes
        assert file.rest == xxh3_128(rest + raw[end:]).hexdigest()
        assert file.size == len(raw)


@given(cases(), st.integers(0, 9), st.booleans())
@QUICK
def test_any_boxes_from_any_chunks(case, seed: int, apart: bool) -> None:
    dtype, shape, tiles, sources, chunks, files, small = case
    with tempfile.TemporaryDirectory() as folder, small_limits(small) as limits:
        root = Path(folder)
        (root / "in").mkdir()
        (root / "out").mkdir()
        arrays = [random_bits(seed + at, room, dtype) for at, (room, _) in enumerate(sources)]
        stored = [
            store(root / "in", f"s{at}", array, dtype, boxes, ["a", "b"])
            for at, (array, (_, boxes)) in enumerate(zip(arrays, sources, strict=True))
        ]
        expected = np.zeros(shape, UNSIGNED[itemsize(dtype)])
        for tile, at, box in tiles:
            if at is not None:
                expected[slices(tile)] = arrays[at][slices(box)].reshape(box_shape(tile))
        names = [f"f{n}" for n in range(files)]
        layout = place({"t": (dtype, shape, chunks)}, names)
        fills = []
        for chunk in layout.tensors["t"].chunks:
            mine = []
            for tile, at, box in tiles:
                common = intersect(tile, chunk.box) if shape else ()
                if common is None:
                    continue
                if at is None:
                    mine.append(Part(common, None, ()))
                    continue
                shift = len(shape) - len(box)
                moved = tuple(
                    interval
                    if axis + shift < 0
                    else (
                        interval[0] + common[axis + shift][0] - tile[axis + shift][0],
                        interval[0] + common[axis + shift][1] - tile[axis + shift][0],
                    )
                    for axis, interval in enumerate(box)
                )
                mine.append(Part(common, stored[at], moved))
            fills.append(Fill(layout.tensors["t"], chunk, tuple(mine)))
        crew = limits.enter_context(Processes(work, 2, "copy")) if apart else None
        report = execute(
            fills, layout, source_root=root / "in", target_root=root / "out", threads=2, fsync=False, crew=crew
        )
        assert report.nbytes == sum(layout.file_sizes.values())
        np.testing.assert_array_equal(read_tensor(layout.tensors["t"], root / "out"), expected)
        for file in names:
            raw = (root / "out" / file).read_bytes()
            assert len(raw) == layout.file_sizes[file]
            for framing in layout.framing[file]:
                assert raw[framing.offset : framing.offset + len(framing.data)] == framing.data
        assert (root / "out" / "small.json").read_bytes() == b"{}"
        check_digests(report.done, layout, root / "out")

        # what was written equals what it was made of, and a flipped bit is found where it was flipped
        box = whole(shape)
        all_parts = [part for fill in fills for part in fill.parts]
        roots = {"left_root": root / "in", "right_root": root / "out"}
        written = [Part(box, layout.tensors["t"], box)]
        assert first_difference(box, dtype, all_parts, written, **roots) is None
        chunk = layout.tensors["t"].chunks[-1]
        with (root / "out" / chunk.file).open("r+b") as out:
            out.seek(chunk.offset + chunk.nbytes - 1)
            last = out.read(1)[0]
            out.seek(chunk.offset + chunk.nbytes - 1)
            out.write(bytes([last ^ 1]))
        assert first_difference(box, dtype, all_parts, written, **roots) == tuple(n - 1 for n in shape)


def copy_one(root: Path, source: StoredTensor, dtype: str, boxes: list[Box], files: list[str], **more) -> StoredTensor:
    """Copy a whole tensor into other chunks."""
    (root / "out").mkdir(exist_ok=True)
    layout = place({"t": (dtype, source.shape, boxes)}, files)
    tensor = layout.tensors["t"]
    fills = [Fill(tensor, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in tensor.chunks]
    execute(fills, layout, source_root=root, target_root=root / "out", fsync=False, **more)
    return tensor


@pytest.mark.parametrize("files", [["one"], ["one", "two", "three"]])
@pytest.mark.parametrize("parts", [1, 4, 64])
def test_column_slabs_of_a_real_size(tmp_path: Path, parts: int, files: list[str]) -> None:
    array = random_bits(1, (600, 4096), "bfloat16")
    step = 4096 // parts
    slabs = [((0, 600), (at, at + step)) for at in range(0, 4096, step)]
    source = store(tmp_path, "s", array, "bfloat16", [whole(array.shape)], ["a"])
    cut_up = copy_one(tmp_path, source, "bfloat16", slabs, files)
    np.testing.assert_array_equal(read_tensor(cut_up, tmp_path / "out"), array)
    (tmp_path / "out" / "out").mkdir()
    (tmp_path / "out" / "small.json").unlink()
    back = copy_one(tmp_path / "out", cut_up, "bfloat16", [whole(array.shape)], files)
    np.testing.assert_array_equal(read_tensor(back, tmp_path / "out" / "out"), array)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_memory_has_a_place_for_any_source_and_target(source: int, target: int) -> None:
    for period in (128, 256, 512, 1024, 2048, 4096, None):
        at = alignment.place(source, target, period)
        assert not alignment.slow(source, at, period)
        assert not alignment.slow(at, target)


@pytest.mark.parametrize("columns", [4096, 512])
@pytest.mark.parametrize("before", [0, 1, 16, 63, 2048, 4065])
@pytest.mark.parametrize("ahead", [0, 8, 63, 2060])
def test_no_read_or_write_is_of_the_slow_kind(tmp_path: Path, columns: int, before: int, ahead: int) -> None:
    array = random_bits(1, (100, 4096), "bfloat16")
    (tmp_path / "a").write_bytes(bytes(before) + array.tobytes())
    source = StoredTensor("s", "bfloat16", array.shape, (Chunk(whole(array.shape), "a", before, array.nbytes),))
    chunks = tuple(
        Chunk(((0, 100), (at, at + columns)), "x", ahead + at * 200, columns * 200) for at in range(0, 4096, columns)
    )
    tensor = StoredTensor("t", "bfloat16", array.shape, chunks)
    layout = Layout({"t": tensor}, {"x": ahead + array.nbytes}, {"x": (Framing(0, bytes(ahead)),) if ahead else ()}, {})
    fills = [Fill(tensor, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in chunks]
    slow: list[tuple[str, int]] = []
    preadv, pwrite = os.preadv, os.pwrite

    def address(view: memoryview) -> int:
        return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])

    def watched_read(fd: int, views: list[memoryview], offset: int) -> int:
        slow.extend([("read", offset)] * alignment.slow(offset, address(views[0])))
        return preadv(fd, views, offset)

    def watched_write(fd: int, view: memoryview, offset: int) -> int:
        slow.extend([("write", offset)] * alignment.slow(address(view), offset))
        return pwrite(fd, view, offset)

    (tmp_path / "out").mkdir()
    with mock.patch.multiple(os, preadv=watched_read, pwrite=watched_write):
        execute(fills, layout, source_root=tmp_path, target_root=tmp_path / "out", fsync=False)
    assert slow == []
    np.testing.assert_array_equal(read_tensor(tensor, tmp_path / "out"), array)


def test_rows_too_wide_to_read_whole(tmp_path: Path) -> None:
    array = random_bits(2, (3, 40, 70_000), "uint8")
    source = store(tmp_path, "s", array, "uint8", [whole(array.shape)], ["a"])
    slabs = [((0, 3), (0, 40), (at, at + 10_000)) for at in range(0, 70_000, 10_000)]
    done = copy_one(tmp_path, source, "uint8", slabs, ["x"])
    np.testing.assert_array_equal(read_tensor(done, tmp_path / "out"), array)


def test_grid_of_512_chunks_into_another(tmp_path: Path) -> None:
    array = random_bits(3, (64, 128, 96), "bfloat16")
    grid = [
        ((e, e + 1), (r, r + 16), (0, 96)) for e in range(64) for r in range(0, 128, 16)
    ]  # fmt: skip
    source = store(tmp_path, "s", array, "bfloat16", grid, [f"a{n}" for n in range(16)])
    slabs = [((e, e + 4), (0, 128), (c, c + 24)) for e in range(0, 64, 4) for c in range(0, 96, 24)]
    done = copy_one(tmp_path, source, "bfloat16", slabs, ["x", "y"])
    np.testing.assert_array_equal(read_tensor(done, tmp_path / "out"), array)


FLOATS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(FLOATS, 2)))
def test_casts_round_as_torch_does(tmp_path: Path, before: str, after: str) -> None:
    import torch

    values = torch.randn(65, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    values[0, :6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e30, 1 + 2**-8])
    values = values.to(getattr(torch, before))
    bits = values.view(torch.uint8).numpy().view(UNSIGNED[itemsize(before)])
    slabs = [((0, 65), (0, 16)), ((0, 65), (16, 48))]
    source = store(tmp_path, "s", bits, before, slabs, ["a"])
    done = copy_one(tmp_path, source, after, [((0, 30), (0, 48)), ((30, 65), (0, 48))], ["x", "y"])
    expected = values.to(getattr(torch, after)).view(torch.uint8).numpy().view(UNSIGNED[itemsize(after)])
    np.testing.assert_array_equal(read_tensor(done, tmp_path / "out"), expected)


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(FLOATS, 2)))
def test_casts_of_every_pattern(before: str, after: str) -> None:
    """All 65,536 patterns of the small dtypes, random and halfway ones of the large, against torch."""
    import torch

    small, large = UNSIGNED[itemsize(before)], itemsize(before) > 2
    bits = random_bits(6, (1 << 16,), before) if large else np.arange(1 << 16, dtype=small)
    if large:  # just between two neighbours in a smaller dtype, and a little to either side
        wide = random_bits(7, (1 << 12,), "float16").view(np.float16).astype(f"f{itemsize(before)}")
        with np.errstate(invalid="ignore"):
            near = [wide * (1 + sign * 2.0**-n) for n in (9, 12, 24, 40) for sign in (-1, 1)]
        bits = np.concatenate([bits, *(values.astype(wide.dtype).view(small) for values in near)])
    theirs = torch.from_numpy(bits.view(np.uint8)).view(getattr(torch, before)).to(getattr(torch, after))
    ours = torch.from_numpy(caster(before, after)(bits).view(np.uint8)).view(getattr(torch, after))
    assert torch.equal(ours.isnan(), theirs.isnan())
    same = ours.view(torch.uint8).reshape(len(bits), -1) == theirs.view(torch.uint8).reshape(len(bits), -1)
    assert bool((same.all(1) | theirs.isnan()).all())


def test_scalar_is_cast_and_integers_are_not(tmp_path: Path) -> None:
    source = store(tmp_path, "s", np.array(0x3FC0, np.uint16), "bfloat16", [()], ["a"])
    done = copy_one(tmp_path, source, "float32", [()], ["x"])
    assert read_tensor(done, tmp_path / "out").view(np.float32) == 1.5
    counts = store(tmp_path, "n", np.zeros(3, np.uint32), "int32", [((0, 3),)], ["b"])
    with pytest.raises(AssertionError, match="no cast from"):
        copy_one(tmp_path, counts, "float32", [((0, 3),)], ["y"])


def test_empty_tensor(tmp_path: Path) -> None:
    source = store(tmp_path, "s", np.zeros((0, 4), np.uint16), "bfloat16", [((0, 0), (0, 4))], ["a"])
    done = copy_one(tmp_path, source, "bfloat16", [((0, 0), (0, 4))], ["x"])
    assert read_tensor(done, tmp_path / "out").shape == (0, 4)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_many_source_files_with_few_descriptors(tmp_path: Path) -> None:
    array = random_bits(5, (300, 8), "float32")
    rows = [((at, at + 1), (0, 8)) for at in range(300)]
    source = store(tmp_path, "s", array, "float32", rows, [f"a{n}" for n in range(300)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, hard))
    try:
        done = copy_one(tmp_path, source, "float32", [((0, 150), (0, 8)), ((150, 300), (0, 8))], ["x", "y"])
        # and where the bound itself was too hopeful, running out leads to fewer open files, not to the end
        with mock.patch("mapspec.copying.source._MOST_OPEN", 200):
            files = SourceFiles(tmp_path)
            files._most = 200
            out = bytearray(32)
            for chunk in source.chunks:
                files.read_into(memoryview(out), chunk.file, chunk.offset)
            assert len(files._open) < 20
            files.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(read_tensor(done, tmp_path / "out"), array)
    assert descriptors() == used


def test_source_cut_off_while_copying(tmp_path: Path) -> None:
    array = random_bits(6, (64, 64), "float32")
    source = store(tmp_path, "layer.weight", array, "float32", [whole(array.shape)], ["a.safetensors"])
    os.truncate(tmp_path / "a.safetensors", 5000)
    with pytest.raises(ConvertError) as caught:
        copy_one(tmp_path, source, "float32", [whole(array.shape)], ["x"])
    (finding,) = caught.value.diagnostics
    assert (finding.code, finding.message) == (
        "MS703",
        "`a.safetensors` ends at byte 5000, but byte 5000 is needed",
    )
    assert finding.notes[0].message == "while reading `layer.weight` for `t` in `x`"
    with pytest.raises(CheckpointError, match="ends at byte 5000"):
        read_tensor(source, tmp_path)


def test_source_gone(tmp_path: Path) -> None:
    source = store(tmp_path, "s", random_bits(7, (4,), "float32"), "float32", [((0, 4),)], ["a"])
    (tmp_path / "a").unlink()
    with pytest.raises(ConvertError, match=r"`a` could not be opened: No such file"):
        copy_one(tmp_path, source, "float32", [((0, 4),)], ["x"])


def test_source_with_a_hole(tmp_path: Path) -> None:
    array = random_bits(8, (6, 4), "float32")
    source = store(tmp_path, "s", array, "float32", [((0, 2), (0, 4)), ((3, 6), (0, 4))], ["a"])
    with pytest.raises(ConvertError, match=r"MS706 the chunks of `s` hold 20 of the 24 elements that `t` takes"):
        copy_one(tmp_path, source, "float32", [whole(array.shape)], ["x"])


def test_no_room(tmp_path: Path) -> None:
    source = store(tmp_path, "s", random_bits(9, (4,), "float32"), "float32", [((0, 4),)], ["a"])
    with (
        mock.patch("shutil.disk_usage", return_value=mock.Mock(free=10)),
        pytest.raises(ConvertError, match=r"MS701 the checkpoint needs 0\.0 GB"),
    ):
        copy_one(tmp_path, source, "float32", [((0, 4),)], ["x"])
    full = OSError(28, "No space left on device")
    with mock.patch("os.posix_fallocate", side_effect=full), pytest.raises(ConvertError) as caught:
        copy_one(tmp_path, source, "float32", [((0, 4),)], ["x"])
    assert "MS702 no room to write `x`: No space left on device" in str(caught.value)


def test_destination_file_exists(tmp_path: Path) -> None:
    source = store(tmp_path, "s", random_bits(9, (4,), "float32"), "float32", [((0, 4),)], ["a"])
    copy_one(tmp_path, source, "float32", [((0, 4),)], ["x"])
    with pytest.raises(ConvertError, match="MS704 `x` cannot be written: File exists"):
        copy_one(tmp_path, source, "float32", [((0, 4),)], ["x"])


def test_first_failure_stops_all_and_short_writes_are_continued(tmp_path: Path) -> None:
    array = random_bits(10, (64, 4096), "float32")
    source = store(tmp_path, "s", array, "float32", [whole(array.shape)], ["a"])
    rows = [((at, at + 8), (0, 4096)) for at in range(0, 64, 8)]
    real = os.pwrite
    calls = itertools.count()

    def few(fd: int, data: memoryview, at: int) -> int:
        next(calls)
        return real(fd, data[:1000], at)

    with mock.patch("os.pwrite", few):
        done = copy_one(tmp_path, source, "float32", rows, [f"x{n}" for n in range(8)], threads=3)
    np.testing.assert_array_equal(read_tensor(done, tmp_path / "out"), array)

    calls = itertools.count()

    def breaks(fd: int, data: memoryview, at: int) -> int:
        if next(calls) == 2:
            raise OSError(5, "Input/output error")
        return real(fd, data, at)

    (tmp_path / "out" / "small.json").unlink()
    with mock.patch("os.pwrite", breaks), pytest.raises(ConvertError, match="cannot be written: Input/output error"):
        copy_one(tmp_path, source, "float32", rows, [f"y{n}" for n in range(8)], threads=2)
    assert next(calls) < 8
    assert not (tmp_path / "out" / "small.json").exists()


def test_files_are_told_of_left_out_and_picked(tmp_path: Path) -> None:
    array = random_bits(12, (40, 30), "uint8")
    source = store(tmp_path, "s", array, "uint8", [whole(array.shape)], ["a"])
    layout = place({"t": ("uint8", (40, 30), [((at, at + 4), (0, 30)) for at in range(0, 40, 4)])}, ["x", "y", "z"])
    tensor = layout.tensors["t"]
    fills = [Fill(tensor, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in tensor.chunks]
    assert [job.file for job in jobs_of(fills, layout)] == sorted(layout.file_sizes, key=layout.file_sizes.__getitem__)[
        ::-1
    ]
    told: list[FileDone] = []

    def done(file: FileDone) -> None:
        assert (tmp_path / "out" / file.file).stat().st_size == file.size
        told.append(file)

    (tmp_path / "out").mkdir()
    common = {"source_root": tmp_path, "target_root": tmp_path / "out", "done": done}
    first = execute(fills, layout, only={"y"}, **common)
    assert [file.file for file in told] == ["y"]
    assert first.nbytes == layout.file_sizes["y"]
    assert first.done == tuple(told)
    second = execute(fills, layout, skip={"y"}, **common)
    assert sorted(file.file for file in told) == ["small.json", "x", "y", "z"]
    check_digests([*first.done, *second.done], layout, tmp_path / "out")
    np.testing.assert_array_equal(read_tensor(tensor, tmp_path / "out"), array)

    def fail(file: FileDone) -> None:
        raise OSError("the journal cannot be written")

    (tmp_path / "again").mkdir()
    with pytest.raises(OSError, match="journal"):
        execute(fills, layout, **{**common, "target_root": tmp_path / "again", "done": fail})


def test_a_copy_that_would_crowd_the_cache_leaves_it(tmp_path: Path) -> None:
    """Pages of source and destination are dropped behind it, and the bytes are the same."""
    array = random_bits(13, (48, 1 << 20), "uint8")
    source = store(tmp_path, "s", array, "uint8", [whole(array.shape)], ["a"])
    boxes = [((at, at + 24), (0, 1 << 20)) for at in (0, 24)]
    layout = place({"t": ("uint8", array.shape, boxes)}, ["x"])
    tensor = layout.tensors["t"]
    fills = [Fill(tensor, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in tensor.chunks]
    (tmp_path / "out").mkdir()
    dropped: list[int] = []
    advise = os.posix_fadvise

    def counting(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            dropped.append(length)
        advise(fd, offset, length, advice)

    with mock.patch("mapspec.copy.crowded", return_value=True), mock.patch("os.posix_fadvise", counting):
        report = execute(fills, layout, source_root=tmp_path, target_root=tmp_path / "out")
    np.testing.assert_array_equal(read_tensor(tensor, tmp_path / "out"), array)
    check_digests(report.done, layout, tmp_path / "out")
    assert sum(dropped) > 1.5 * array.nbytes
    assert crowded(1 << 60)
    assert not crowded(1 << 20)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    array = random_bits(11, (50, 40), "float32")
    source = store(tmp_path, "s", array, "float32", [whole(array.shape)], ["a"])
    said: list[tuple[str, int]] = []

    class Listener:
        def start(self, total_bytes: int) -> None:
            said.append(("start", total_bytes))

        def advance(self, nbytes: int, label: str) -> None:
            said.append((label, nbytes))

        def finish(self) -> None:
            said.append(("finish", 0))

    copy_one(tmp_path, source, "float32", [((0, 50), (0, 10)), ((0, 50), (10, 40))], ["x", "y"], progress=Listener())
    assert said[0][0] == "start"
    assert said[-1] == ("finish", 0)
    assert sum(n for label, n in said if label in "xy") == said[0][1] == 8000 + 9


def test_fills_that_are_not_those_of_the_layout(tmp_path: Path) -> None:
    layout = place({"t": ("uint8", (4,), [((0, 2),), ((2, 4),)])}, ["x"])
    tensor = layout.tensors["t"]
    one = Fill(tensor, tensor.chunks[0], (Part(((0, 2),), None, ()),))
    for fills in ([one], [one, one]):
        with pytest.raises(AssertionError, match="fills and layout disagree"):
            execute(fills, layout, source_root=tmp_path, target_root=tmp_path)
    other = Fill(tensor, tensor.chunks[1], (Part(((2, 3),), None, ()),))
    with pytest.raises(AssertionError, match="parts of t have 1 elements, its chunk has 2"):
        execute([one, other], layout, source_root=tmp_path, target_root=tmp_path)
    twice = Fill(tensor, tensor.chunks[1], (Part(((2, 3),), None, ()), Part(((2, 3),), None, ())))
    with pytest.raises(AssertionError, match="parts of t overlap"):
        execute([one, twice], layout, source_root=tmp_path, target_root=tmp_path)
    assert not (tmp_path / "x").exists()


def test_box_index_finds_what_a_scan_finds() -> None:
    rng = np.random.default_rng(0)
    boxes = cut((40, 30), [[*range(3, 40, 3)], [7, 20]])
    index = BoxIndex(boxes)
    for _ in range(50):
        (a, b), (c, d) = sorted(rng.integers(0, 41, 2)), sorted(rng.integers(0, 31, 2))
        asked = ((int(a), int(b)), (int(c), int(d)))
        wanted = {at: common for at, box in enumerate(boxes) if (common := intersect(box, asked))}
        assert dict(index.overlapping(asked)) == wanted


MEMORY = """
import resource, sys
from pathlib import Path
from mapspec.copy import execute
from mapspec.fill import Fill, Part
from mapspec.io.layout import Layout
from mapspec.tensors import Chunk, StoredTensor
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
root = Path(sys.argv[1])
rows, columns, slab = 9000, 16384, 2048
source = StoredTensor("s", "bfloat16", (rows, columns), (Chunk(((0, rows), (0, columns)), "a", 0, rows * columns * 2),))
chunks = tuple(
    Chunk(((0, rows), (at, at + slab)), f"x{at // slab % 2}", at // slab // 2 * rows * slab * 2, rows * slab * 2)
    for at in range(0, columns, slab)
)
tensor = StoredTensor("t", "bfloat16", (rows, columns), chunks)
layout = Layout({"t": tensor}, {"x0": rows * columns, "x1": rows * columns}, {}, {})
fills = [Fill(tensor, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in chunks]
before, peak = anonymous(), 0
class Watch:
    def start(self, total): pass
    def advance(self, n, label):
        global peak
        peak = max(peak, anonymous())
    def finish(self): pass
execute(fills, layout, source_root=root, target_root=root, progress=Watch(), fsync=False)
assert "torch" not in sys.modules
print((peak - before) // 1024)
"""


def test_memory_stays_small(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as out:
        out.truncate(9000 * 16384 * 2)
        for at in range(0, 9000 * 16384 * 2, 10_000_019):
            out.seek(at)
            out.write(b"some")
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64
    assert (tmp_path / "x1").stat().st_size == 9000 * 16384
