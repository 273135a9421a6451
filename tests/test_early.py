"""Reading the source before there is a plan."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from mapspec.cli.unfinished import early_reading
from mapspec.copying import early
from mapspec.copying.early import _read as read
from mapspec.copying.early import reading_early
from mapspec.io.remote import located

MIB = 1 << 20


def cached(path: Path) -> int:
    """How many pages of a file are in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = -(-len(view) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(first := ctypes.c_char.from_buffer(view))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), found) == 0
        del first
    return sum(page & 1 for page in found)


def uncached(path: Path, nbytes: int) -> Path:
    """A new file of which nothing is in the page cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(nbytes))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path):
        pytest.skip("this file system keeps its files in memory")
    return path


class Place:
    """The post of a worker that is told to end after some looks at it."""

    def __init__(self, looks: int = sys.maxsize) -> None:
        self.looks = looks

    @property
    def stopped(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def jobs(self) -> Iterator[None]:
        raise AssertionError

    def tell(self, message: object) -> None:
        raise AssertionError


def test_data_files_get_into_the_cache(tmp_path: Path) -> None:
    first = uncached(tmp_path / "model-1.safetensors", 3 * MIB + 5)
    second = uncached(tmp_path / "model-2.safetensors", 4096)
    other = uncached(tmp_path / "training.log", MIB)
    read(tmp_path, Place())
    assert cached(first) == 3 * 256 + 1
    assert cached(second) == 1
    assert cached(other) == 0


def test_it_happens_beside_everything_else(tmp_path: Path) -> None:
    data = uncached(tmp_path / "model.safetensors", 2 * MIB)
    with reading_early(tmp_path):
        deadline = time.monotonic() + 20
        while cached(data) < 512:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_only_iteration_is_read(tmp_path: Path) -> None:
    data = uncached(tmp_path / "iter_0000100" / "__0_0.distcp", MIB)
    read(tmp_path, Place())
    assert cached(data) == 256


def test_of_several_iterations_none_is_read(tmp_path: Path) -> None:
    """Which of them is meant is not known yet."""
    data = [uncached(tmp_path / f"iter_000010{n}" / "__0_0.distcp", MIB) for n in range(2)]
    read(tmp_path, Place())
    assert [cached(path) for path in data] == [0, 0]
    read(data[1].parent, Place())
    assert [cached(path) for path in data] == [0, 256]


def test_an_eighth_of_the_memory_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "available_memory", lambda: 16 * MIB)
    first = uncached(tmp_path / "model-1.safetensors", MIB)
    second = uncached(tmp_path / "model-2.safetensors", 64 * MIB)
    read(tmp_path, Place())
    assert cached(first) == 256
    assert 256 <= cached(second) < 64 * 256  # the kernel reads some more by itself


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    data = uncached(tmp_path / "model.safetensors", 64 * MIB)
    read(tmp_path, Place(looks=2))
    assert 256 <= cached(data) < 64 * 256


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty file", "a folder", "a pipe", "a link to nowhere"])
def test_whatever_is_wrong_is_said_by_others(tmp_path: Path, what: str) -> None:
    source = tmp_path / "hf"
    if what == "a file":
        source.write_bytes(b"x")
    elif what != "nothing":
        source.mkdir()
        place = source / "model.safetensors"
        if what == "a folder":
            place.mkdir()
        elif what == "a pipe":
            os.mkfifo(place)
        elif what == "an empty file":
            place.touch()
        else:
            place.symlink_to("nowhere")
    read(source, Place())


def test_without_processes_nothing_is_read(tmp_path: Path) -> None:
    with mock.patch("os.fork", side_effect=BlockingIOError(11, "no more processes")), reading_early(tmp_path):
        pass
    with mock.patch.object(early, "can_fork", return_value=False), reading_early(tmp_path):
        pass


def test_when_the_command_reads_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []
    monkeypatch.setattr(early, "reading_early", begun.append)
    early_reading(tmp_path, False, {})
    early_reading(tmp_path, False, {"WORLD_SIZE": "1"})
    assert begun == [tmp_path, tmp_path]
    early_reading(tmp_path, True, {})  # a part may be finished
    early_reading(tmp_path, False, {"WORLD_SIZE": "2"})  # each rank reads its share
    early_reading(located("memory://bucket/hf"), False, {})
    assert len(begun) == 2
