"""The pieces of the copy engine: lanes, rows that are dealt out and collected, files that are divided."""

from __future__ import annotations

import itertools
import os
import resource
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from mapspec.copy import execute, jobs_of, read_tensor
from mapspec.copying import alignment, behind, jobs, vectored
from mapspec.copying.alignment import PAGE, pages
from mapspec.copying.behind import Behind
from mapspec.copying.jobs import Job, divided
from mapspec.copying.lane import Lane, lanes_in
from mapspec.copying.program import Program
from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.copying.vectored import Column
from mapspec.copying.worker import Setting, Worker
from mapspec.fill import Fill, Part
from mapspec.io.layout import Framing, Layout
from mapspec.tensors import Chunk, StoredTensor, whole

STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 700), st.none() | st.integers(0, 9000)), max_size=40)


@given(STEPS, st.sampled_from([256, 1024]), st.integers(0, 5000), st.sampled_from([None, 256, 1024]))
@settings(deadline=None)
def test_lane_writes_every_byte_once_in_order(steps, block: int, at: int, period: int | None) -> None:
    written: list[tuple[int, bytes]] = []
    lane = Lane(pages(3 * PAGE), block, lambda view, at: written.append((at, bytes(view))))
    expected: list[tuple[int, bytes]] = []
    for number, (gap, length, source) in enumerate(steps):
        at += gap // 3 * 57  # mostly without a gap
        length = min(length, lane.most)
        view = lane.room(at, length, source, period)
        view[:] = bytes([number % 251]) * length
        expected.append((at, bytes(view)))
        at += length
    lane.flush()
    bytes_of = {start + n: byte for start, data in expected for n, byte in enumerate(data)}
    got = [(start + n, byte) for start, data in written for n, byte in enumerate(data)]
    assert got == sorted(bytes_of.items())


def test_lane_writes_blocks_of_the_file() -> None:
    written: list[tuple[int, int]] = []
    (lane,) = lanes_in(pages((1 << 20) + PAGE), 1, lambda view, at: written.append((at, len(view))))
    at = 1000
    for _ in range(40):
        lane.room(at, 100_000)
        at += 100_000
    lane.flush()
    assert written[0][0] == 1000
    assert all(start % (1 << 17) == 0 for start, _ in written[1:])
    assert sum(length for _, length in written) == 4_000_000
    assert len(written) < 8


def test_lanes_share_memory_until_there_is_too_little() -> None:
    memory = pages((4 << 20) + PAGE)
    assert [len(lanes_in(memory, count, lambda view, at: None)) for count in (1, 8, 64, 65, 512)] == [1, 8, 64, 1, 1]


def _rows(tmp_path: Path, most: int) -> tuple[SourceFiles, np.ndarray, bytes]:
    data = np.random.default_rng(most).bytes(20_000)
    (tmp_path / "a").write_bytes(data)
    return SourceFiles(tmp_path), np.zeros(30_000, np.uint8), data


@pytest.mark.parametrize("most", [1024, 7])
@pytest.mark.parametrize("short", [None, 0, 1, 699, 700, 5000])
def test_rows_are_read_to_their_places_also_after_a_short_read(tmp_path: Path, most: int, short: int | None) -> None:
    files, memory, data = _rows(tmp_path, most)
    columns = [Column(memoryview(memory), 600, 1000), Column(memoryview(memory)[650:], 100, 1000)]
    read = vectored.read_columns

    def less(fd: int, columns: list[Column], count: int, offset: int) -> int:
        got = read(fd, columns, count, offset)
        return got if short is None else min(got, short)

    with mock.patch.object(vectored, "_MOST", most), mock.patch("mapspec.copying.source.read_columns", less):
        files.read_rows(columns, 25, "a", 123)
    for n in range(25):
        row = data[123 + n * 700 : 823 + n * 700]
        assert memory[n * 1000 : n * 1000 + 600].tobytes() == row[:600]
        assert memory[n * 1000 + 650 : n * 1000 + 750].tobytes() == row[600:]
        assert not memory[n * 1000 + 750 : n * 1000 + 1000].any()


def test_rows_beyond_the_end_are_a_finding(tmp_path: Path) -> None:
    files, memory, _ = _rows(tmp_path, 1)
    with pytest.raises(ReadProblem, match="ends at byte 20000"):
        files.read_rows([Column(memoryview(memory), 1000, 1000)], 25, "a", 0)
    with pytest.raises(ReadProblem, match="could not be opened"):
        files.read_rows([Column(memoryview(memory), 1000, 1000)], 2, "b", 0)


def test_rows_that_would_leave_the_memory_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        vectored.read_columns(0, [Column(memoryview(bytearray(999)), 500, 500)], 2, 0)


@pytest.mark.parametrize("parts", [8, 5])
@pytest.mark.parametrize("before", [0, 24, 1000])
def test_weights_cut_by_columns_are_read_once_and_few_rows_slowly(tmp_path: Path, parts: int, before: int) -> None:
    """There and back, by `preadv` with many places; most rows are not at a distance that the kernel copies slowly."""
    shape = (500, 1000 * parts)
    array = np.random.default_rng(parts).integers(0, 1 << 16, shape, np.uint16)
    (tmp_path / "a").write_bytes(bytes(before) + array.tobytes())
    source = StoredTensor("s", "bfloat16", shape, (Chunk(whole(shape), "a", before, array.nbytes),))
    slabs = tuple(
        Chunk(((0, 500), (n * 1000, n * 1000 + 1000)), "x", 8 + n * 1_000_100, 1_000_000) for n in range(parts)
    )
    around = tuple(Framing(8 + n * 1_000_100 + 1_000_000, bytes(100)) for n in range(parts))
    cut = StoredTensor("t", "bfloat16", shape, slabs)
    layout = Layout({"t": cut}, {"x": 8 + parts * 1_000_100}, {"x": (Framing(0, bytes(8)), *around)}, {})
    fills = [Fill(cut, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in slabs]
    rows = slow = nbytes = 0
    read = vectored._preadv

    def watched(fd: int, places: np.ndarray, offset: int) -> int:
        nonlocal rows, slow, nbytes
        at = offset
        for address, length in places.tolist():
            slow += alignment.slow(at, address)
            at += length
        rows, nbytes = rows + len(places), nbytes + at - offset
        return read(fd, places, offset)

    (tmp_path / "out").mkdir()
    (tmp_path / "back").mkdir()
    with mock.patch.object(vectored, "_preadv", watched):
        execute(fills, layout, source_root=tmp_path, target_root=tmp_path / "out", fsync=False)
        assert (rows, nbytes) == (500 * parts, array.nbytes)
        np.testing.assert_array_equal(read_tensor(cut, tmp_path / "out"), array)
        again = StoredTensor("u", "bfloat16", shape, (Chunk(whole(shape), "b", 0, array.nbytes),))
        execute(
            [Fill(again, again.chunks[0], (Part(whole(shape), cut, whole(shape)),))],
            Layout({"u": again}, {"b": array.nbytes}, {}, {}),
            source_root=tmp_path / "out", target_root=tmp_path / "back", fsync=False,
        )  # fmt: skip
    assert (tmp_path / "back" / "b").read_bytes() == array.tobytes()
    assert slow / rows < 0.05


@pytest.mark.parametrize(("widths", "count"), [((700, 2_500_000), 3), ((30_000,) * 64, 3), ((300, 30_000, 700), 2000)])
def test_rows_of_any_width(tmp_path: Path, widths: tuple[int, ...], count: int) -> None:
    """Slabs of unequal width, and rows that no lane has room for, there and back."""
    shape, edges = (count, sum(widths)), [sum(widths[:n]) for n in range(len(widths) + 1)]
    array = np.random.default_rng(count).integers(0, 1 << 16, shape, np.uint16)
    (tmp_path / "a").write_bytes(array.tobytes())
    source = StoredTensor("s", "bfloat16", shape, (Chunk(whole(shape), "a", 0, array.nbytes),))
    boxes = [((0, count), span) for span in itertools.pairwise(edges)]
    chunks = tuple(Chunk(box, "x", 2 * count * box[1][0], 2 * count * (box[1][1] - box[1][0])) for box in boxes)
    cut = StoredTensor("t", "bfloat16", shape, chunks)
    again = StoredTensor("u", "bfloat16", shape, (Chunk(whole(shape), "b", 0, array.nbytes),))
    for name in ("out", "back"):
        (tmp_path / name).mkdir()
    fills = [Fill(cut, chunk, (Part(chunk.box, source, chunk.box),)) for chunk in chunks]
    there, back = Layout({"t": cut}, {"x": array.nbytes}, {}, {}), Layout({"u": again}, {"b": array.nbytes}, {}, {})
    execute(fills, there, source_root=tmp_path, target_root=tmp_path / "out", fsync=False)
    np.testing.assert_array_equal(read_tensor(cut, tmp_path / "out"), array)
    fills = [Fill(again, again.chunks[0], (Part(whole(shape), cut, whole(shape)),))]
    execute(fills, back, source_root=tmp_path / "out", target_root=tmp_path / "back", fsync=False)
    assert (tmp_path / "back" / "b").read_bytes() == array.tobytes()


def _files(sizes: list[int], item: int = 10) -> tuple[Layout, list[Fill]]:
    """Files of one-row chunks, two side by side in each row, with a byte of framing in front of each."""
    tensors, framing, fills = {}, {}, []
    for n, size in enumerate(sizes):
        rows = size // (2 * item + 2)
        chunks = tuple(
            Chunk(((row, row + 1), (half * item, half * item + item)), f"f{n}", (2 * row + half) * (item + 1) + 1, item)
            for row in range(rows)
            for half in (0, 1)
        )
        tensor = StoredTensor(f"t{n}", "uint8", (rows, 2 * item), chunks)
        held = StoredTensor(
            f"s{n}", "uint8", (rows, 2 * item), (Chunk(whole(tensor.shape), f"s{n}", 0, rows * 2 * item),)
        )
        tensors[tensor.name] = tensor
        framing[f"f{n}"] = tuple(Framing(chunk.offset - 1, b"|") for chunk in chunks)
        fills += [Fill(tensor, chunk, (Part(chunk.box, held, chunk.box),)) for chunk in chunks]
    sizes_of = {f"f{n}": size // (2 * item + 2) * (2 * item + 2) for n, size in enumerate(sizes)}
    return Layout(tensors, sizes_of, framing, {}), fills


@pytest.mark.parametrize(
    ("sizes", "workers", "expected"),
    [
        ([2200] * 4, 2, [1, 1, 1, 1]),
        ([2200] * 5, 2, [1, 1, 1, 1, 2]),
        ([8800], 4, [4]),
        ([8800, 110], 4, [4, 1]),
        ([2200] * 5, 1, [1] * 5),
        ([110] * 3, 8, [1] * 3),
    ],
)
def test_files_are_divided_where_workers_would_be_idle(sizes: list[int], workers: int, expected: list[int]) -> None:
    layout, fills = _files(sizes)
    files = jobs_of(fills, layout)
    with mock.patch.object(jobs, "_LEAST", 100):
        found = divided(files, workers)
    by_file: dict[str, list[Job]] = {}
    for job in found:
        by_file.setdefault(job.file, []).append(job)
    assert [len(parts) for parts in by_file.values()] == expected
    for job in files:
        parts = by_file[job.file]
        assert [fill for part in parts for fill in part.fills] == list(job.fills)
        assert [one for part in parts for one in part.framing] == list(job.framing)
        assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
        assert parts[-1].end == job.size
        for part in parts:  # chunks of the same row are not torn apart
            assert len(part.fills) % 2 == 0
            if len(parts) > 1:
                assert abs(part.end - part.start - job.size / len(parts)) < 50


def test_a_divided_file_is_that_of_one_worker(tmp_path: Path) -> None:
    layout, fills = _files([22_000, 4400])
    for n, tensor in enumerate(layout.tensors.values()):
        (tmp_path / f"s{n}").write_bytes(np.random.default_rng(n).bytes(tensor.nbytes))
    done = []
    for name, workers in (("one", 1), ("four", 4)):
        (tmp_path / name).mkdir()
        told: list[str] = []
        with mock.patch.object(jobs, "_LEAST", 1000):
            report = execute(
                fills, layout, source_root=tmp_path, target_root=tmp_path / name, threads=workers, fsync=False,
                done=lambda file, told=told: told.append(file.file),
            )  # fmt: skip
        assert sorted(told) == ["f0", "f1"]
        assert (report.files, report.threads) == (2, workers)
        done.append(report.done)
    assert done[0] == done[1]
    for file in ("f0", "f1"):
        data = (tmp_path / "four" / file).read_bytes()
        assert data == (tmp_path / "one" / file).read_bytes()
        assert data[::11] == b"|" * (len(data) // 11)
    assert done[0][0].rest == xxh3_128_hexdigest(b"|" * len(layout.framing["f0"]))


def test_a_worker_that_fails_leaves_a_divided_file_undone(tmp_path: Path) -> None:
    layout, fills = _files([22_000])
    (tmp_path / "s0").write_bytes(bytes(9000))  # too short for the last parts
    (tmp_path / "out").mkdir()
    told: list[str] = []
    with mock.patch.object(jobs, "_LEAST", 1000), pytest.raises(Exception, match="MS703"):
        execute(
            fills, layout, source_root=tmp_path, target_root=tmp_path / "out", threads=4, fsync=False,
            done=lambda file: told.append(file.file),
        )  # fmt: skip
    assert told == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["f0"]


MIB = 1 << 20
WRITTEN = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 8)), max_size=60)


@given(WRITTEN, st.booleans())
def test_the_disk_is_told_of_all_that_was_written_but_the_last_run(places: list[tuple[int, int]], drop: bool) -> None:
    told: list[tuple[int, int]] = []
    dropped: list[tuple[int, int]] = []
    written, waits = set[int](), 0

    def start(fd: int, offset: int, nbytes: int, flags: int) -> int:
        if flags == 2:
            told.append((offset, offset + nbytes))
        else:
            assert drop
            assert (offset, offset + nbytes) in told
        return 0

    def advised(fd: int, offset: int, nbytes: int, what: str) -> None:
        dropped.append((offset, offset + nbytes))

    with mock.patch.object(behind, "_starter", return_value=start), mock.patch.object(behind, "advise", advised):
        follower = Behind(-1, drop)
        for block, count in places:
            before = len(told)
            follower.wrote(block * MIB, count * MIB)
            written |= set(range(block, block + count))
            waits += count
            assert (len(told) > before) == (waits >= 16)
            if len(told) > before:
                assert written <= {b for low, high in told for b in range(low // MIB, high // MIB)}
                waits = 0
    assert dropped == (told[:-1] if drop else [])


def test_the_disk_is_told_only_of_what_shall_be_on_it(tmp_path: Path) -> None:
    array = np.zeros((40, MIB), np.uint8)
    (tmp_path / "a").write_bytes(array.tobytes())
    source = StoredTensor("s", "uint8", array.shape, (Chunk(whole(array.shape), "a", 0, array.nbytes),))
    target = StoredTensor("t", "uint8", array.shape, (Chunk(whole(array.shape), "x", 0, array.nbytes),))
    layout = Layout({"t": target}, {"x": array.nbytes}, {}, {})
    fills = [Fill(target, target.chunks[0], (Part(whole(array.shape), source, whole(array.shape)),))]
    for fsync, expected in ((True, [(0, 16 * MIB), (16 * MIB, 16 * MIB)]), (False, [])):
        told: list[tuple[int, int]] = []
        (tmp_path / f"out-{fsync}").mkdir()
        with mock.patch.object(behind, "_starter", lambda told=told: lambda fd, at, n, how: told.append((at, n))):
            execute(fills, layout, source_root=tmp_path, target_root=tmp_path / f"out-{fsync}", fsync=fsync, threads=1)
        assert told == expected


def test_a_file_to_be_written_comes_before_sources_that_may_be_needed_again(tmp_path: Path) -> None:
    """All descriptors are taken, some of them by sources that are kept open."""
    for at in range(4):
        (tmp_path / f"source {at}").write_bytes(b"%d" % at * 8)
    steps = tuple((8 * at, f"source {at}", 0, 8) for at in range(4))
    worker = Worker(Setting(tmp_path, tmp_path, sharers=1, fsync=False), lambda file, nbytes: None)
    worker.write(Program("first", 32, True, steps, ()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1, hard)
        )
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        worker.write(Program("second", 32, True, steps, ()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
        worker.close()
    assert (tmp_path / "second").read_bytes() == b"".join(b"%d" % at * 8 for at in range(4))
