"""Conversions that are cut off, and go on: at any moment, for any reason, to the same bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interrupted import Interrupter
from test_convert import there_and_back

from mapspec.convert import Converted, Output, convert
from mapspec.copying import source as source_files
from mapspec.errors import ConvertError, MapspecError
from mapspec.journal import Journal, finished_in, take
from mapspec.prepare import Request
from mapspec.publish import leftovers
from mapspec.sources import open_source


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


@pytest.fixture(scope="module")
def checkpoints(memory: Path) -> Path:
    """`hf`, made of three shards, and `megatron`, converted from it."""
    return there_and_back(memory / "checkpoints", 3, tokenizer="{}")


@pytest.fixture
def source(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of `hf` that a test may change, with its times."""
    return Path(shutil.copytree(checkpoints / "hf", tmp_path / "hf"))


def tree(folder: Path, copied: bool = False) -> dict[str, bytes]:
    """Every file of a folder; `copied`: without the path of the source, which is in `mapspec.json`."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in files if copied else ():
        if name.endswith("mapspec.json"):
            certificate = json.loads(files[name])
            del certificate["seal"], certificate["source"]["path"]
            files[name] = json.dumps(certificate).encode()
    return files


def code_of(error: pytest.ExceptionInfo[MapspecError]) -> str:
    return error.value.diagnostics[0].code


class StopError(Exception):
    """What a test throws into a conversion."""


def cut_off(monkeypatch: pytest.MonkeyPatch, request: Request, output: Output, after: int = 1) -> Path:
    """A conversion that meets with an error once `after` files are finished; the folder that is left."""
    real = Journal.add

    def add(self: Journal, done: Any) -> None:
        real(self, done)
        if len(finished_in(leftovers(output.destination)[0])) == after:
            raise StopError

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", add)
        with pytest.raises(StopError):
            convert(request, output)
    (left,) = leftovers(output.destination)
    return left


def resumed(request: Request, output: Output, **more: Any) -> Converted:
    return convert(request, replace(output, resume=True, **more))


# --- at any moment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["hf", "megatron", "overwrite"])
def test_killed_at_any_moment(checkpoints: Path, tmp_path: Path, interrupter: Interrupter, way: str) -> None:
    """kill -9 between any two calls that change a file; what is there before and after."""
    source = checkpoints / ("megatron" if way == "megatron" else "hf")
    expected = tree(checkpoints / ("back" if way == "megatron" else "megatron"))
    output = Output(tmp_path / "out", threads=1, overwrite=way == "overwrite")

    def start(moment: int) -> list[str] | None:
        if way == "overwrite":
            output.destination.mkdir(exist_ok=True)
            (output.destination / "old").write_text("old")
        return interrupter.convert(moment, source, output.destination, threads=1, overwrite=output.overwrite)

    calls = start(0)
    assert calls is not None
    total = len(calls)
    assert total > 40
    assert tree(output.destination) == expected
    shutil.rmtree(output.destination)
    rng = random.Random(way)
    # the last ones are those of the publication
    moments = sorted({*rng.sample(range(1, total), 6 if way == "overwrite" else 12), *range(total - 8, total + 1, 2)})
    for moment in moments:
        assert start(moment) is None
        if output.destination.exists():
            assert tree(output.destination) in (expected, {"old": b"old"}), moment
        for left in leftovers(output.destination):
            if (left / "checkpoint").exists():
                _is_no_checkpoint(left / "checkpoint", expected)
        if not output.destination.exists() or way == "overwrite":
            resumed(Request(source), output)
        assert tree(output.destination) == expected, moment
        for left in leftovers(output.destination):
            # what an overwritten checkpoint was, the journal of one that is published, or a folder with nothing in it
            assert not tree(left / "checkpoint")
            shutil.rmtree(left)
        shutil.rmtree(output.destination)


def _is_no_checkpoint(folder: Path, expected: dict[str, bytes]) -> None:
    """Readers refuse the folder, or what they take is complete: only the tracker or the rename has not come yet."""
    found = tree(folder)
    marks = [name for name in found if name.endswith((".metadata", "iteration.txt")) or name == "config.json"]
    if marks:
        assert found == {name: data for name, data in expected.items() if name in found or "/" in name}
        return
    with pytest.raises(MapspecError):
        open_source(folder)
    if any(name.endswith("metadata.json") for name in found):  # by this Megatron-Core knows its checkpoints
        assert not [name for name in expected.keys() - found.keys() if name.endswith((".distcp", "common.pt"))]


def test_what_is_left_is_no_checkpoint_for_others(checkpoints: Path, tmp_path: Path) -> None:
    """Megatron-Core and transformers take nothing that is unfinished."""
    from megatron.core.dist_checkpointing.core import check_is_distributed_checkpoint
    from transformers import AutoConfig

    patch = pytest.MonkeyPatch()
    left = cut_off(patch, Request(checkpoints / "hf"), Output(tmp_path / "a"), after=3) / "checkpoint"
    assert list(left.rglob("*.distcp"))
    assert check_is_distributed_checkpoint(str(checkpoints / "megatron" / "iter_0000000"))
    assert not check_is_distributed_checkpoint(str(left / "iter_0000000"))
    left = cut_off(patch, Request(checkpoints / "megatron"), Output(tmp_path / "b"), after=2) / "checkpoint"
    assert list(left.glob("*.safetensors"))
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained(left)


def test_killed_while_a_damaged_file_is_written_again(
    checkpoints: Path, tmp_path: Path, interrupter: Interrupter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was called finished, and is touched again, is not called finished any more."""
    source, output = checkpoints / "hf", Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, Request(source), output, after=2)
    os.truncate(left / "checkpoint" / min(finished_in(left)), 10)
    shutil.copytree(left, tmp_path / "copy")
    calls = interrupter.convert(0, source, output.destination, threads=1, resume=True)
    assert calls is not None
    # before each file gets its bytes: by then it has its size
    writes = [at for at, name in enumerate(calls, 1) if name == "pwrite"]
    moments = [at for at in writes if at - 1 not in writes]
    assert len(moments) == 3
    for moment in moments:
        shutil.rmtree(output.destination, ignore_errors=True)
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(tmp_path / "copy", left)
        assert interrupter.convert(moment, source, output.destination, threads=1, resume=True) is None
        resumed(Request(source), output)
        assert tree(output.destination) == tree(checkpoints / "megatron"), moment


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3])
def test_an_error_keeps_what_is_finished(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output, after)
    finished = sorted(finished_in(left))
    before = {name: (left / "checkpoint" / name).stat().st_mtime_ns for name in finished}
    done = resumed(request, output)
    assert done.kept == len(finished) == after
    assert done.copied.files == 4 - after
    assert {name: (output.destination / name).stat().st_mtime_ns for name in finished} == before
    assert {file.file for file in done.copied.done} == {f"iter_0000000/__0_{n}.distcp" for n in range(4)}
    assert tree(output.destination) == tree(checkpoints / "megatron")
    assert leftovers(output.destination) == ()


def test_an_error_before_anything_is_finished_leaves_nothing(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: Journal, done: Any) -> None:
        raise StopError

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(StopError):
        convert(Request(checkpoints / "hf"), Output(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_kept_where_that_is_not_wanted(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError):
        cut_off(monkeypatch, Request(checkpoints / "hf"), Output(tmp_path / "out", keep=False), after=2)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_vanishes(
    source: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, output = Request(source), Output(tmp_path / "out", threads=1)
    shard = source / "model-00002-of-00003.safetensors"
    real = Journal.add

    def add(self: Journal, done: Any) -> None:
        real(self, done)
        if shard.exists():
            shard.rename(tmp_path / "away")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", add)
        patched.setattr(source_files, "_MOST_OPEN", 1)
        with pytest.raises(ConvertError) as caught:
            convert(request, output)
    assert code_of(caught) == "MS703"
    (note,) = caught.value.__notes__
    assert note.startswith("1 of 4 data files")
    assert "--resume" in note
    with pytest.raises(MapspecError) as caught:
        resumed(request, output)
    assert leftovers(output.destination)
    (tmp_path / "away").rename(shard)
    assert resumed(request, output).kept == 1
    assert tree(output.destination, copied=True) == tree(checkpoints / "megatron", copied=True)


class Disk:
    """A file system of its own below `folder`."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder, self._options = folder, options

    def __enter__(self) -> Disk:
        self.folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", self._options, "tmpfs", self.folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting is not permitted here")
        return self

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.folder], check=True)


@pytest.mark.parametrize("size", ["280k", "368k"])
def test_a_full_disk(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """It fills up while the conversion runs, with data or only with what stands beside them, and is given more room."""
    with Disk(tmp_path / "disk", f"size={size}") as disk:
        request, output = Request(checkpoints / "hf"), Output(disk.folder / "out", threads=1)
        with monkeypatch.context() as patched:
            usage = shutil.disk_usage("/")
            patched.setattr(shutil, "disk_usage", lambda path: usage)  # something else fills the disk in the meantime
            with pytest.raises(ConvertError) as caught:
                convert(request, output)
        assert code_of(caught) == "MS702"
        assert "data files" in caught.value.__notes__[0]
        disk.change("size=4m")
        assert resumed(request, output).kept > 0
        assert tree(output.destination) == tree(checkpoints / "megatron")


def test_a_destination_that_is_read_only(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the beginning, and from some moment on."""
    with Disk(tmp_path / "disk", "size=4m") as disk:
        request, output = Request(checkpoints / "hf"), Output(disk.folder / "out", threads=1)
        left = cut_off(monkeypatch, request, output, after=2)
        before = tree(left)
        disk.change("ro")
        for more in ({}, {"resume": True}):
            with pytest.raises(ConvertError) as caught:
                convert(request, replace(output, **more))
            assert code_of(caught) in ("MS712", "MS704")
            assert "Read-only file system" in caught.value.diagnostics[0].message
        assert tree(left) == before
        disk.change("rw")
        assert resumed(request, output).kept == 2
        assert tree(output.destination) == tree(checkpoints / "megatron")


def test_a_destination_that_is_a_disk(checkpoints: Path, tmp_path: Path) -> None:
    """No rename can replace it, which is said before the work."""
    with Disk(tmp_path / "disk", "size=4m") as disk:
        with pytest.raises(ConvertError, match="MS712 the destination is a mount point"):
            convert(Request(checkpoints / "hf"), Output(disk.folder))
        assert list(disk.folder.iterdir()) == []
    assert leftovers(disk.folder) == ()


def test_a_journal_that_cannot_be_written(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, writes = os.write, 0

    def write(fd: int, data: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(ConvertError, match="MS702"):
            convert(request, output)
    assert resumed(request, output).kept == 1
    assert tree(output.destination) == tree(checkpoints / "megatron")


# --- signals, from the outside ---------------------------------------------------------------------------------

SLOW = """\
import os, signal, sys, time
# What runs in the background, or by nohup, may have been told to ignore them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
real = os.pwrite
def pwrite(*args):
    time.sleep(0.05)
    return real(*args)
os.pwrite = pwrite
from mapspec.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(checkpoints: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = ["convert", checkpoints / "hf", tmp_path / "out", "--threads", "1", "--progress", "none"]
    child = subprocess.Popen([sys.executable, "-c", SLOW, *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(finished_in(path) for path in leftovers(tmp_path / "out")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.startswith("interrupted; nothing was published\n")
    assert "are finished and kept in" in said
    (left,) = leftovers(tmp_path / "out")
    done = resumed(Request(checkpoints / "hf"), Output(tmp_path / "out"))
    assert done.kept
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")
    assert not left.exists()


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("how", [">/dev/full", ">&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_a_result_that_cannot_be_printed_is_a_result(
    checkpoints: Path, tmp_path: Path, how: str, buffered: bool
) -> None:  # fmt: skip
    done = run_redirected(["convert", str(checkpoints / "hf"), str(tmp_path / "out")], how, buffered)
    assert done.returncode == 0, done.stderr
    assert how != ">/dev/full" or "the checkpoint is in place; its summary could not be printed" in done.stderr
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")


@pytest.mark.parametrize("buffered", [True, False])
def test_what_cannot_be_printed_is_said_where_it_is_all_there_is(checkpoints: Path, buffered: bool) -> None:
    done = run_redirected(["plan", str(checkpoints / "hf")], ">/dev/full", buffered)
    assert (done.returncode, done.stderr) == (2, "the result could not be printed: No space left on device\n")


@pytest.mark.parametrize("buffered", [True, False])
def test_findings_that_cannot_be_printed_are_findings(tmp_path: Path, buffered: bool) -> None:
    assert run_redirected(["plan", str(tmp_path / "nowhere")], "2>/dev/full", buffered).returncode == 2


def run_redirected(arguments: list[str], how: str, buffered: bool) -> subprocess.CompletedProcess[str]:
    """The command in a shell; `buffered` as Python is by default, or as PYTHONUNBUFFERED makes it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    command = f"exec {shlex.join([sys.executable, '-m', 'mapspec', *arguments])} {how}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)


# --- another conversion ----------------------------------------------------------------------------------------


def _touch(source: Path) -> None:
    os.utime(source / "model-00002-of-00003.safetensors", ns=(1, 1))


def _side_file(source: Path) -> None:
    (source / "tokenizer.json").write_text("{ }")


def _rms(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "transformers_version": "5"}))


CHANGES: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any], dict[str, Any], str]] = {
    "time": (_touch, {}, {}, "the source: `model-00002-of-00003.safetensors` changed"),
    "side-file": (_side_file, {}, {}, "what travels along: `tokenizer.json` changed"),
    "config": (_rms, {}, {}, "the source: `config.json` changed"),
    "flavour": (None, {"flavours": {"norms": "separate"}}, {}, "the mapping nemotron_h@1.0.0: its rules"),
    "iteration": (None, {}, {"iteration": 7}, "the option iteration: 0 then, 7 now"),
    "set": (None, {"sets": ("initializer_range=0.5",)}, {}, 'the option sets: [] then, ["initializer_range=0.5"] now'),
    "dtype": (None, {"dtype": "float32"}, {}, 'the option dtype: not given then, "float32" now'),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_conversion_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, request_options, output_options, says = CHANGES[case]
    request, output = Request(source), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output)
    before = tree(left)
    if change is not None:
        change(source)
    with pytest.raises(ConvertError) as caught:
        resumed(replace(request, **request_options), replace(output, **output_options))
    assert code_of(caught) == "MS770"
    assert says in [note.message for note in caught.value.diagnostics[0].notes]
    assert tree(left) == before
    if change is None:
        assert resumed(request, output).kept == 1


def test_another_mapspec_or_mapping_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "variant.yaml"
    spec.write_text(
        "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: variant\n  version: 1.0.0\nextends: nemotron_h@1\n"
    )
    request, output = Request(source, spec=str(spec)), Output(tmp_path / "out", threads=1)
    cut_off(monkeypatch, request, output)
    with monkeypatch.context() as patched:
        patched.setattr("mapspec.resume.__version__", "9.9.9")
        with pytest.raises(ConvertError, match="MS770") as caught:
            resumed(request, output)
    assert caught.value.diagnostics[0].notes[0].message == "mapspec: version 0.1.0 then, 9.9.9 now"
    text = spec.read_text()
    spec.write_text(text + "# a word\n")
    with pytest.raises(ConvertError, match="MS770") as caught:
        resumed(request, output)
    assert caught.value.diagnostics[0].notes[0].message == "the mapping variant@1.0.0: the text of its files"
    spec.write_text(text)
    assert resumed(request, output).kept == 1


def test_without_resume_a_leftover_stays(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output)
    before = tree(left)
    assert convert(request, output).kept == 0
    assert tree(left) == before
    with pytest.raises(ConvertError, match="MS710"):
        resumed(request, output)
    assert resumed(request, output, overwrite=True).kept == 1
    assert tree(output.destination) == tree(checkpoints / "megatron")


def test_resume_without_leftover_begins(checkpoints: Path, tmp_path: Path) -> None:
    assert resumed(Request(checkpoints / "hf"), Output(tmp_path / "out")).kept == 0
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")


def test_other_threads_and_memory_keep_the_layout(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of files follows the threads of the first run, not those of the run that goes on."""
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=6)
    cut_off(monkeypatch, request, output, after=2)
    assert resumed(request, replace(output, threads=1, max_memory=1 << 30)).kept >= 2
    assert len(list(output.destination.rglob("*.distcp"))) == 6


# --- finished files --------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_finished_files_are_checked_on_demand(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output, after=3)
    _flip(left / "checkpoint" / sorted(finished_in(left))[0])
    assert resumed(request, output, recheck=True).kept == 2
    assert tree(output.destination) == tree(checkpoints / "megatron")


def test_files_that_were_not_brought_to_disk_are_always_checked(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1, fsync=False)
    left = cut_off(monkeypatch, request, output, after=3)
    _flip(left / "checkpoint" / sorted(finished_in(left))[0])
    assert resumed(request, output).kept == 2
    assert tree(output.destination) == tree(checkpoints / "megatron")


def test_a_journal_that_was_cut_off(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands behind the last whole line counts for nothing; without a header, nothing does."""
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output, after=3)
    (journal,) = (left / "journal").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    shutil.copytree(left, tmp_path / "copy")
    for kept, data in [
        (2, lines[:3]),
        (1, [*lines[:2], lines[2][:-9]]),
        (1, [*lines[:2], b"\0" * 99, lines[3]]),
        (0, []),
    ]:
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(tmp_path / "copy", left)
        journal.write_bytes(b"".join(data))
        assert resumed(request, output).kept == kept
        assert tree(output.destination) == tree(checkpoints / "megatron")
        shutil.rmtree(output.destination)


# --- other processes -------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output)
    held = take(left)
    with pytest.raises(ConvertError) as caught:
        resumed(request, output)
    assert code_of(caught) == "MS771"
    assert f"process {os.getpid()} on" in caught.value.diagnostics[0].message
    held.release()
    assert resumed(request, output).kept == 1


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_file_systems_without_locks(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, output = Request(checkpoints / "hf"), Output(tmp_path / "out", threads=1)
    left = cut_off(monkeypatch, request, output)
    (journal,) = (left / "journal").iterdir()
    lines = journal.read_bytes().splitlines()
    assert json.loads(lines[-1]) == {"closed": True}
    header = json.loads(lines[0])

    def owned(**owner: Any) -> None:
        journal.write_bytes(b"\n".join([json.dumps({**header, **owner}).encode(), *lines[1:-1], b""]))

    owned()
    with pytest.raises(ConvertError, match="MS771"):
        resumed(request, output)
    owned(host="elsewhere")
    with pytest.raises(ConvertError) as caught:
        resumed(request, output)
    assert code_of(caught) == "MS772"
    shutil.copytree(left, tmp_path / "copy")
    (left / "journal" / "released").touch()
    assert resumed(request, output).kept == 1
    shutil.rmtree(output.destination)
    shutil.copytree(tmp_path / "copy", left)
    owned(began="1")  # a process of the same number that began at another time
    assert resumed(request, output).kept == 1
    assert tree(output.destination) == tree(checkpoints / "megatron")
