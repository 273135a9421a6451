"""Object stores as destinations: complete or not to be found, with a few files on this disk at a time."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_convert import small, write_hf
from test_remote import contents, local, memory, s3, upload  # noqa: F401
from typer.testing import CliRunner

from mapspec.cli import app
from mapspec.convert import Output, convert
from mapspec.errors import CheckpointError, ConvertError
from mapspec.intact import check_intact
from mapspec.io.remote import located
from mapspec.prepare import Request
from mapspec.sources import open_source
from mapspec.team import Team
from mapspec.verify import verify


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where files are made before they are sent; empty when all is over."""
    home = tmp_path / "scratch"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    yield home
    assert list(home.iterdir()) == []


def keys(url: str) -> list[str]:
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(name[len(root) :].strip("/") for name in fs.find(root))


def download(url: str, to: Path) -> Path:
    fs, root = fsspec.url_to_fs(url)
    for name in fs.find(root):
        path = to / name[len(root) :].strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fs.cat_file(name))
    return to


class Listening:
    """The order in which files arrive, and how many were on the disk when they left."""

    def __init__(self, scratch: Path) -> None:
        self.sent: list[str] = []
        self.most = 0
        lock, real = threading.Lock(), MemoryFileSystem.put_file

        def put_file(fs: Any, here: str, there: str, **more: Any) -> None:
            with lock:
                waiting = [p for p in scratch.rglob("*") if p.suffix in (".safetensors", ".distcp")]
                self.most = max(self.most, len(waiting))
            real(fs, here, there, **more)
            with lock:
                self.sent.append(there)

        self.put = mock.patch.object(MemoryFileSystem, "put_file", put_file)


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_the_same_files_as_in_a_folder(local: Path, memory: str, tmp_path: Path, scratch: Path, kind: str) -> None:  # noqa: F811
    """Both ways; what makes a reader find the checkpoint comes last."""
    target = f"{memory}/deep/er/out"
    listening = Listening(scratch)
    with listening.put:
        done = convert(Request(local / kind), Output(located(target)))
    convert(Request(local / kind), Output(tmp_path / "folder"))
    assert contents(download(target, tmp_path / "down")) == contents(tmp_path / "folder")
    assert str(done.destination) == target
    assert not check_intact(target).findings
    assert not verify(local / kind, located(target)).findings
    last = ["config.json"] if kind == "megatron" else [".metadata", "latest_train_state.pt", TRACKER]
    assert [name.rpartition("/")[2] for name in listening.sent[-len(last) :]] == last


TRACKER = "latest_checkpointed_iteration.txt"


def test_an_s3_server_both_ways(local: Path, s3: str, tmp_path: Path) -> None:  # noqa: F811
    run = CliRunner().invoke(app, ["convert", str(local / "hf"), f"{s3}/there", "--progress", "none"])
    assert run.exit_code == 0, run.output
    assert f"wrote {s3}/there" in run.output
    assert "destination: s3 (object store)" in run.output
    run = CliRunner().invoke(app, ["convert", f"{s3}/there", f"{s3}/back", "--progress", "none"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["verify", str(local / "hf"), f"{s3}/back"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["verify", f"{s3}/there", "--progress", "none"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["convert", str(local / "hf"), f"{s3}/there", "--progress", "none"])
    assert run.exit_code == 2
    assert "MS710 the destination exists and is not empty" in run.output


def test_few_files_lie_here_at_a_time(memory: str, tmp_path: Path, scratch: Path) -> None:  # noqa: F811
    source = write_hf(tmp_path / "hf", small(), shards=30)
    convert(Request(source), Output(tmp_path / "megatron"))
    listening = Listening(scratch)
    output = Output(located(f"{memory}/out"), threads=2)
    with listening.put:
        convert(Request(tmp_path / "megatron"), output)
    assert len([name for name in keys(f"{memory}/out") if name.endswith(".safetensors")]) == 30
    assert listening.most <= 4 + 1 + 2


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_failing_upload_leaves_nothing_that_loads(local: Path, memory: str, at: int) -> None:  # noqa: F811
    real, calls = MemoryFileSystem.put_file, iter(range(1000))

    def put_file(fs: Any, here: str, there: str, **more: Any) -> None:
        if next(calls) >= at:
            raise ConnectionError("connection reset\nby peer")
        real(fs, here, there, **more)

    with (
        mock.patch.object(MemoryFileSystem, "put_file", put_file),
        pytest.raises(ConvertError, match="MS795 the file was not sent: connection reset by peer"),
    ):
        convert(Request(local / "hf"), Output(located(f"{memory}/out")))
    assert keys(f"{memory}/out") == []


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_a_process_that_is_killed_leaves_nothing_that_loads(local: Path, memory: str, kind: str) -> None:  # noqa: F811
    """Nothing is removed then. At every moment before the last file arrives, readers find no checkpoint."""
    states: list[list[str]] = []
    real = MemoryFileSystem.put_file
    lock = threading.Lock()

    def put_file(fs: Any, here: str, there: str, **more: Any) -> None:
        with lock:
            if not there.endswith(TRACKER if kind == "hf" else "/out/config.json"):
                states.append(keys(f"{memory}/out"))
            else:
                states.append([*keys(f"{memory}/out"), "all but the last"])
            real(fs, here, there, **more)

    with mock.patch.object(MemoryFileSystem, "put_file", put_file):
        convert(Request(local / kind), Output(located(f"{memory}/out")))
    everything = keys(f"{memory}/out")
    fs = fsspec.filesystem("memory")
    data = {name: fs.cat_file(f"/bucket/out/{name}") for name in everything}
    for number, state in enumerate(states):
        MemoryFileSystem.store.clear()
        for name in state:
            if name in data:
                fs.pipe_file(f"/bucket/out/{name}", data[name])
        marks = {TRACKER, "config.json"} & set(state)
        assert not marks, state
        unfindable = not any(name.endswith(".metadata") for name in state)
        if kind == "megatron" or unfindable:  # without config.json nothing reads Hugging Face folders
            with pytest.raises(CheckpointError):
                open_source(f"{memory}/out")
        else:  # found by an iteration's folder that is complete
            assert number >= len(states) - 2
            open_source(f"{memory}/out")


def test_an_answer_with_another_size(local: Path, memory: str) -> None:  # noqa: F811
    real = MemoryFileSystem.put_file

    def put_file(fs: Any, here: str, there: str, **more: Any) -> None:
        real(fs, here, there, **more)
        if there.endswith(".distcp"):
            fs.pipe_file(there, fs.cat_file(there)[:-1])

    with mock.patch.object(MemoryFileSystem, "put_file", put_file), pytest.raises(ConvertError, match="bytes arrived"):
        convert(Request(local / "hf"), Output(located(f"{memory}/out")))
    assert keys(f"{memory}/out") == []


def test_what_is_there_is_kept_unless_it_is_a_checkpoint_to_replace(local: Path, memory: str, tmp_path: Path) -> None:  # noqa: F811
    url = upload(local / "hf", f"{memory}/out")
    before = keys(url)
    with pytest.raises(ConvertError, match="MS710 the destination exists and is not empty"):
        convert(Request(local / "megatron"), Output(located(url)))
    assert keys(url) == before
    # a conversion that fails before its first file is complete has replaced nothing
    with (
        mock.patch("mapspec.copying.worker.Worker._fill", side_effect=OSError(5, "Input/output error")),
        pytest.raises(ConvertError, match="MS704"),
    ):
        convert(Request(local / "megatron"), Output(located(url), overwrite=True))
    assert keys(url) == before
    fsspec.filesystem("memory").pipe_file("/bucket/out/old.txt", b"old")
    convert(Request(local / "megatron"), Output(located(url), overwrite=True))
    assert "old.txt" not in keys(url)
    assert not check_intact(url).findings
    fsspec.filesystem("memory").pipe_file("/bucket/photos/cat.png", b"cat")
    with pytest.raises(ConvertError, match="holds 1 objects and no checkpoint"):
        convert(Request(local / "megatron"), Output(located(f"{memory}/photos"), overwrite=True))
    assert keys(f"{memory}/photos") == ["cat.png"]


def test_not_over_the_source_and_not_what_a_store_cannot_do(local: Path, memory: str) -> None:  # noqa: F811
    url = upload(local / "hf", f"{memory}/hf")
    for target in (url, f"{url}/below", memory):
        with pytest.raises(ConvertError, match="MS711"):
            convert(Request(url), Output(located(target), overwrite=True))
    with pytest.raises(ConvertError, match="MS794 a conversion to an object store cannot be resumed"):
        convert(Request(local / "hf"), Output(located(f"{memory}/out"), resume=True))

    class Two(Team):
        def exchange(self, value: object) -> list[Any]:
            return [value, value] if value is not None else [None, None]

    with pytest.raises(ConvertError, match="MS794 a conversion to an object store is not done by 2 processes"):
        convert(Request(local / "hf"), Output(located(f"{memory}/out")), team=Two(0, 2))
    assert keys(f"{memory}/out") == []
