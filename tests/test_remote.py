"""Checkpoints behind URLs: the same as local ones, with few requests; against a real S3 server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from test_convert import listing, small, write_hf
from typer.testing import CliRunner

from mapspec.cli import app
from mapspec.convert import Output, convert
from mapspec.copying.ahead import Ahead
from mapspec.errors import CheckpointError, ConvertError, MapspecError
from mapspec.intact import check_intact
from mapspec.io.remote import RemotePath, is_url, located
from mapspec.prepare import Request, prepare
from mapspec.verify import verify


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in both forms: `hf` in three shards, and `megatron`."""
    home = tmp_path_factory.mktemp("local")
    source = write_hf(home / "hf", small(), shards=3)
    (source / "tokenizer.json").write_text('{"a": 1}')
    convert(Request(source), Output(home / "megatron"))
    return home


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of an S3 server in a process of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    env = {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        with mock.patch.dict(os.environ, env):
            S3FileSystem.clear_instance_cache()  # they know the server of another module
            fsspec.filesystem("s3").mkdir("bucket")
            yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def memory() -> Iterator[str]:
    MemoryFileSystem.store.clear()
    yield "memory://bucket"
    MemoryFileSystem.store.clear()


def upload(local: Path, url: str) -> str:
    fs, root = fsspec.url_to_fs(url)
    for path in sorted(local.rglob("*")):
        if path.is_file():
            fs.put_file(str(path), f"{root}/{path.relative_to(local).as_posix()}")
    return url


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the certificate, which names source and time."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "mapspec.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_the_same_result_as_from_local_files(local: Path, memory: str, tmp_path: Path, kind: str) -> None:
    url = upload(local / kind, f"{memory}/{kind}")
    convert(Request(local / kind), Output(tmp_path / "from-local"))
    request = Request(located(url))
    convert(request, Output(tmp_path / "from-url"))
    assert contents(tmp_path / "from-url") == contents(tmp_path / "from-local")
    assert not verify(url, tmp_path / "from-url").findings  # type: ignore[arg-type]
    source = json.loads(next((tmp_path / "from-url").rglob("mapspec.json")).read_text())["source"]
    assert source["path"] == url


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_an_s3_server(local: Path, s3: str, tmp_path: Path, kind: str) -> None:
    url = upload(local / kind, f"{s3}/odd folder/größe/{kind}")
    prepared = prepare(Request(url)).require()
    store = prepared.source.path.store  # type: ignore[attr-defined]
    # a listing, one request for each shard's header or each run of items, a few small files
    assert store.requests <= 14
    run = CliRunner().invoke(app, ["plan", url])
    assert run.exit_code == 0, run.output
    assert (
        f"reading   s3 (object store), 8 threads, 4 MiB reads, 4 ahead; {store.requests} requests so far" in run.output
    )
    run = CliRunner().invoke(app, ["convert", url, str(tmp_path / "out"), "--progress", "none"])
    assert run.exit_code == 0, run.output
    assert "source: s3 (object store)" in run.output
    assert not verify(local / kind, tmp_path / "out").findings
    if kind == "megatron":
        assert not check_intact(url).findings


def test_few_requests_for_many_tensors(memory: str, tmp_path: Path) -> None:
    """Neighbours are asked for together: far fewer requests than tensors."""
    source = write_hf(tmp_path / "hf", small(n_routed_experts=64))
    request = Request(located(upload(source, f"{memory}/hf")))
    prepared = prepare(request).require()
    store = request.source.store  # type: ignore[union-attr]
    assert store.requests <= 6
    convert(request, Output(tmp_path / "megatron"))
    assert len(prepared.source.tensors) > 150
    assert store.requests < 80
    back = Request(located(upload(tmp_path / "megatron", f"{memory}/megatron")))
    convert(back, Output(tmp_path / "back"))
    store = back.source.store  # type: ignore[union-attr]
    assert store.requests < 120
    assert not verify(source, tmp_path / "back").findings


def test_a_reference_behind_a_url(local: Path, memory: str, tmp_path: Path) -> None:
    shutil.copytree(local / "megatron", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/iter_0000000/hf")
    url = upload(local / "hf", f"{memory}/hf")
    convert(Request(tmp_path / "bare", reference=url), Output(tmp_path / "back"))
    back, wanted = contents(tmp_path / "back"), contents(local / "hf")
    assert (
        json.loads(back.pop("model.safetensors.index.json"))["weight_map"]
        == json.loads(wanted.pop("model.safetensors.index.json"))["weight_map"]
    )
    assert back == wanted


def test_hf_urls_are_resolved_by_the_hub_s_own_file_system(local: Path, tmp_path: Path) -> None:
    """The URL reaches the file system that is registered for `hf`; here that is a stand-in, for want of a network."""
    from fsspec.registry import get_filesystem_class, register_implementation
    from huggingface_hub import HfFileSystem

    assert get_filesystem_class("hf") is HfFileSystem
    asked: list[str] = []

    class StandIn(MemoryFileSystem):
        protocol = "hf"
        store: dict[str, Any] = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            asked.append(path)
            return "/" + path.removeprefix("hf://").strip("/")

    register_implementation("hf", StandIn, clobber=True)
    try:
        fs = fsspec.filesystem("hf")
        for path in (local / "hf").iterdir():
            fs.pipe_file(f"org/model@v1/{path.name}", path.read_bytes())
        convert(Request("hf://org/model@v1"), Output(tmp_path / "out"))
    finally:
        register_implementation("hf", HfFileSystem, clobber=True)
    assert "hf://org/model@v1" in asked
    assert not verify(local / "hf", tmp_path / "out").findings


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_urls_that_cannot_be_opened(tmp_path: Path) -> None:
    for url, code, says in (
        ("nosuch://a/b", "MS791", "Protocol not known"),
        ("gs://a/b", "MS790", "gcsfs"),
        ("memory://nothing/here", "MS601", "no such folder"),
    ):
        with pytest.raises(CheckpointError) as caught:
            prepare(Request(url))
        assert caught.value.diagnostics[0].code == code, url
        assert says in caught.value.diagnostics[0].message
        assert caught.value.diagnostics[0].where == url
    with mock.patch.dict(sys.modules, {"fsspec": None, "fsspec.core": None}), pytest.raises(CheckpointError) as caught:
        located("s3://a/b")
    assert caught.value.diagnostics[0].code == "MS790"
    assert "mapspec[remote]" in str(caught.value.diagnostics[0].help)


def test_a_server_that_does_not_answer(memory: str) -> None:
    path = located(f"{memory}/hf")
    assert isinstance(path, RemotePath)
    with (
        mock.patch.object(path.store.fs, "find", side_effect=ConnectionError("refused\nby 127.0.0.1")),
        pytest.raises(CheckpointError, match="MS792 the folder cannot be listed: refused by 127"),
    ):
        prepare(Request(path))


def broken(change: Callable[[bytes], bytes | Exception]) -> Any:
    """`cat_file`, with another answer for ranges of data (not for headers, which are asked for from 0)."""
    real = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        data: bytes = real(self, path, start, end, **more)
        if not start:
            return data
        answer = change(data)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return mock.patch.object(MemoryFileSystem, "cat_file", cat_file)


def test_short_answers_are_asked_for_again(local: Path, memory: str, tmp_path: Path) -> None:
    url = upload(local / "hf", f"{memory}/hf")
    with broken(lambda data: data[: len(data) // 2 + 1]):
        convert(Request(url), Output(tmp_path / "out"))
    assert not verify(local / "hf", tmp_path / "out").findings


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda data: b"", "ends at byte"),
        (lambda data: data + b"more", "bytes where"),
        (lambda data: PermissionError("token expired"), "token expired"),
        (lambda data: RuntimeError("500 internal error"), "500 internal error"),
        (lambda data: FileNotFoundError("gone"), "gone"),
    ],
    ids=["nothing", "too-much", "forbidden", "server-error", "gone"],
)
def test_answers_that_are_wrong(local: Path, memory: str, tmp_path: Path, answer: Any, says: str) -> None:
    url = upload(local / "hf", f"{memory}/hf")
    with broken(answer), pytest.raises(ConvertError) as caught:
        convert(Request(url), Output(tmp_path / "out"))
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS703"
    assert says in finding.message
    assert listing(tmp_path) == []


def test_an_object_that_is_replaced_meanwhile(local: Path, memory: str, tmp_path: Path) -> None:
    url = upload(local / "hf", f"{memory}/hf")
    fs = fsspec.filesystem("memory")
    name = "/bucket/hf/model-00001-of-00003.safetensors"
    once = iter([True])

    def replace(data: bytes) -> bytes:
        if next(once, False):
            fs.pipe_file(name, fs.cat_file(name))
        return data

    with broken(replace), pytest.raises(ConvertError, match="MS707") as caught:
        convert(Request(url), Output(tmp_path / "out"))
    assert "was written to" in caught.value.diagnostics[0].notes[0].message
    assert listing(tmp_path) == []


def test_a_truncated_object(local: Path, memory: str) -> None:
    url = upload(local / "hf", f"{memory}/hf")
    fs = fsspec.filesystem("memory")
    name = "/bucket/hf/model-00002-of-00003.safetensors"
    fs.pipe_file(name, fs.cat_file(name)[:-10])
    with pytest.raises(MapspecError, match="MS616"):
        prepare(Request(url))


# --- the parts -----------------------------------------------------------------------------------------------------


def test_paths_answer_as_local_ones_do(local: Path, memory: str) -> None:
    here, there = local / "megatron", located(upload(local / "megatron", f"{memory}/m"))
    assert is_url(there)
    assert not is_url("a/b://c")
    assert isinstance(located("file:///tmp/x"), Path)
    assert not isinstance(located("file:///tmp/x"), RemotePath)
    assert str(there / "a" / "b") == f"{memory}/m/a/b"
    for name in ("iter_0000000", "iter_0000000/.metadata", "nothing", ".", "latest_checkpointed_iteration.txt"):
        a, b = here / name, there / name
        assert (a.exists(), a.is_file(), a.is_dir()) == (b.exists(), b.is_file(), b.is_dir()), name
        if a.is_file():
            assert a.read_bytes() == b.read_bytes()
            assert a.stat().st_size == b.stat().st_size
    assert sorted(p.name for p in here.iterdir()) == [p.name for p in there.iterdir()]
    walked = [{(p.relative_to(root).as_posix(), *sorted(f)) for p, _, f in root.walk()} for root in (here, there)]
    assert walked[0] == walked[1]
    assert [p.name for p in there.glob("*/mapspec.json")] == ["mapspec.json"]
    with pytest.raises(FileNotFoundError):
        (there / "nothing").stat()
    with pytest.raises(TypeError, match="not a file of this machine"):
        os.fspath(there)


def test_ranges_are_asked_for_in_order_together_and_not_too_many(memory: str) -> None:
    data = bytes(range(256)) * 4096
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/f/a", data)
    path = located(f"{memory}/f") / "a"
    assert isinstance(path, RemotePath)
    asked: list[tuple[int, int]] = []
    flying = most = 0
    lock = threading.Lock()
    real = path.store.fetch

    def fetch(name: str, offset: int, count: int) -> bytes:
        nonlocal flying, most
        with lock:
            asked.append((offset, count))
            flying += 1
            most = max(most, flying)
        time.sleep(0.002)
        with lock:
            flying -= 1
        return real(name, offset, count)

    path.store.fetch = fetch  # type: ignore[method-assign]
    ahead = Ahead(read=100_000, depth=3)
    wanted = [(0, 250_000), (300_000, 10), (300_010, 20), (310_000, 5), (900_000, 5)]
    for offset, length in wanted:
        ahead.expect(path, offset, length)
    for offset, length in wanted:
        view = bytearray(length)
        got = 0
        while got < length:
            got += ahead.read_into(memoryview(view)[got:], path, offset + got)
        assert view == data[offset : offset + length]
    view = bytearray(7)
    assert ahead.read_into(memoryview(view), path, 5) == 7  # not expected, and given all the same
    assert ahead.read_into(memoryview(view), path, len(data)) == 0
    ahead.close()
    # three at once; what lies near each other is one request by the time that its turn comes
    assert sorted(asked[:3]) == [(0, 100_000), (100_000, 100_000), (200_000, 50_000)]
    assert asked[3:] == [(300_000, 10_005), (900_000, 5), (5, 7), (len(data), 7)]
    assert 1 < most <= 3
