"""Files and file systems that behave badly: the result is exact, or there is a finding and no result."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import listing, small, write_hf

from mapspec.convert import Output, convert
from mapspec.copy import CopyReport, execute
from mapspec.copying.jobs import Job
from mapspec.copying.program import compiled
from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.copying.worker import Setting, Worker
from mapspec.errors import CheckpointError, ConvertError
from mapspec.fill import Fill, Part
from mapspec.io.hf_folder import open_hf
from mapspec.io.layout import NewTensor
from mapspec.io.opened import changed, opened
from mapspec.io.safetensors_header import Header, read_header
from mapspec.io.torch_dist import layout_torch_dist, open_torch_dist
from mapspec.prepare import Request
from mapspec.tensors import Chunk, StoredTensor, whole
from mapspec.verify import verify


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", small(), shards=3)


def there_and_back(source: Path, at: Path, spec: str | None = None) -> Path:
    """Converted to Megatron-Core and back, equal at both stations; the Megatron folder."""
    convert(Request(source, spec=spec), Output(at / "megatron"))
    convert(Request(at / "megatron", spec=spec), Output(at / "back"))
    assert not verify(source, at / "back").findings
    assert not verify(source, at / "megatron", Request(source, spec=spec)).findings
    return at / "megatron"


# --- reads that give less, later, or something else ----------------------------------------------------------------


def test_reads_that_give_a_few_bytes_at_a_time(source: Path, tmp_path: Path) -> None:
    """Signals, network file systems and quotas cut reads short; the kernel promises one byte, no more."""
    pread, preadv = os.pread, os.preadv
    calls = 0

    def few(fd: int, count: int, at: int) -> bytes:
        nonlocal calls
        calls += 1
        return pread(fd, max(1, count // 3), at)

    def few_into(fd: int, views: list[memoryview], at: int) -> int:
        nonlocal calls
        calls += 1
        return preadv(fd, [views[0][: max(1, len(views[0]) // 3)]], at)

    with mock.patch("os.pread", few), mock.patch("os.preadv", few_into):
        convert(Request(source), Output(tmp_path / "megatron"))
        convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert calls > 1000
    assert not verify(source, tmp_path / "back").findings


def test_signals_every_millisecond(source: Path, tmp_path: Path) -> None:
    """Python starts an interrupted call again; a handler that returns changes nothing."""
    caught = 0

    def handler(*_: object) -> None:
        nonlocal caught
        caught += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        there_and_back(source, tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught > 10


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _replace(path: Path) -> None:
    """By a file with the same size and times, as a download tool that keeps times would."""
    stat = path.stat()
    shutil.copyfile(path, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_suffix(".new").rename(path)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def _flip_in_secret(path: Path) -> None:
    stat = path.stat()
    _flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "time-put-back": (_flip_in_secret, "and its time of change put back"),
    "appended-to": (_append, "bytes, has "),
    "written-to": (_flip, "was written to"),
    "replaced": (_replace, "was replaced by another file"),
    "removed": (Path.unlink, "No such file"),
}


@pytest.mark.parametrize("kind", ["hf", "megatron"])
@pytest.mark.parametrize("case", CHANGES)
def test_a_source_that_changes_meanwhile(source: Path, tmp_path: Path, case: str, kind: str) -> None:
    """Whatever was copied may be a mixture, so nothing is published."""
    change, says = CHANGES[case]
    if kind == "megatron":
        convert(Request(source), Output(tmp_path / "megatron"))
        source = tmp_path / "megatron"
    victim = next(p for p in sorted(source.rglob("*")) if p.suffix in (".safetensors", ".distcp"))

    def run(*args: object, **named: object) -> CopyReport:
        done = execute(*args, **named)  # type: ignore[arg-type]
        change(victim)
        return done

    before = listing(tmp_path)
    with mock.patch("mapspec.convert.execute", run), pytest.raises(ConvertError, match="MS707") as caught:
        convert(Request(source), Output(tmp_path / "out"))
    (finding,) = caught.value.diagnostics
    assert victim.name in finding.notes[0].message
    assert says in finding.notes[0].message
    assert listing(tmp_path) == before


def test_what_leaves_the_bytes_alone_is_no_change(source: Path, tmp_path: Path) -> None:
    """A backup that links, a chmod; and file systems in user space, which number their files anew at times."""
    stamps = open_hf(source).stamps
    one, other, _ = (source / file for file in sorted(stamps))
    os.link(one, tmp_path / "backup")
    other.chmod(0o444)
    assert changed(source, stamps) is None
    _replace(one)
    with mock.patch("mapspec.io.filesystem.kind_of", return_value="fuse.sshfs"):
        assert changed(source, stamps) is None
        _append(other)
        assert changed(source, stamps) is not None


def test_many_changes_are_one_finding(source: Path) -> None:
    stamps = open_hf(source).stamps
    assert len(stamps) == 3
    assert changed(source, stamps) is None
    for file in stamps:
        _append(source / file)
    found = changed(source, {**stamps, **{f"{n}": next(iter(stamps.values())) for n in range(4)}})
    assert found is not None
    assert found.message.startswith("7 files of the source changed")
    assert [note.message for note in found.notes][-1] == "and 2 more"


def test_verify_says_when_a_side_changes(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    real = SourceFiles.read_into
    once = iter([True])

    def read_into(files: SourceFiles, view: memoryview, file: str, offset: int) -> None:
        real(files, view, file, offset)
        if next(once, False):
            os.utime(tmp_path / "copy/model-00001-of-00003.safetensors")

    with mock.patch.object(SourceFiles, "read_into", read_into):
        (finding,) = verify(source, tmp_path / "copy").findings
    assert finding.code == "MS707"


# --- where files lie -----------------------------------------------------------------------------------------------


def test_links_as_in_the_hub_cache(source: Path, tmp_path: Path) -> None:
    """snapshots/REVISION/NAME are links to blobs/HASH; refs name the revision."""
    blobs, snapshot = tmp_path / "cache/blobs", tmp_path / "cache/snapshots/0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for at, file in enumerate(sorted(source.iterdir())):
        file.rename(blobs / f"{at:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{at:064x}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/" + "f" * 64)
    (blobs / ("f" * 64)).write_text("{}")
    there_and_back(snapshot, tmp_path)
    back = tmp_path / "back"
    assert not any(path.is_symlink() for path in back.iterdir())
    assert (back / "tokenizer.json").read_text() == "{}"
    assert (snapshot / "model-00001-of-00003.safetensors").is_symlink()


def test_hard_links_to_the_source_are_not_written_through(source: Path, tmp_path: Path) -> None:
    """The destination to be replaced shares its files with the source, as `cp -l` leaves it."""
    convert(Request(source), Output(tmp_path / "megatron"))
    shutil.copytree(source, tmp_path / "back", copy_function=os.link)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back", overwrite=True))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert (source / "config.json").stat().st_ino != (tmp_path / "back/config.json").stat().st_ino


def test_a_sparse_source(source: Path, tmp_path: Path) -> None:
    """Holes read as zeros; the result holds the same values, with or without holes."""
    for path in source.glob("*.safetensors"):
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        size = path.stat().st_size
        os.truncate(path, header)
        os.truncate(path, size)
    there_and_back(source, tmp_path)


def test_a_destination_that_is_read_only(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError) as caught:  # not even root may make folders there
        convert(Request(source), Output(Path("/sys/mapspec-test")))
    assert caught.value.diagnostics[0].code == "MS712"
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS))
    real = os.open

    def read_only(path: str, flags: int, mode: int = 0o777, **named: int) -> int:
        if flags & os.O_CREAT:
            raise refused
        return real(path, flags, mode, **named)

    with mock.patch("os.open", read_only), pytest.raises(ConvertError, match=r"MS704 .*Read-only file system"):
        convert(Request(source), Output(tmp_path / "out"))
    assert listing(tmp_path) == ["hf"]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_reserves_no_room(source: Path, tmp_path: Path, code: int) -> None:
    with mock.patch("os.posix_fallocate", side_effect=OSError(code, os.strerror(code))):
        there_and_back(source, tmp_path)


@pytest.mark.skipif(subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0, reason="no namespaces")
def test_a_tiny_dev_shm(source: Path, tmp_path: Path) -> None:
    """Containers have 64 MB there by default, and some nothing that can be used."""
    run = f"{sys.executable} -m mapspec convert {source} {tmp_path / 'megatron'} --threads 2"
    script = f"mount -t tmpfs -o size=4k,nr_inodes=1 none /dev/shm && {run}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_thousands_of_shards_and_few_descriptors(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "one", small(), shards=1)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    tensors = {f"x.{at}": torch.full((3,), at) for at in range(2000)} | tensors
    files = {name: f"part {at}.safetensors" for at, name in enumerate(tensors)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, source / files[name])
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    spec = tmp_path / "spec.yaml"
    spec.write_text(VARIANT.replace("odd_things", "x"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, hard))
    try:
        convert(Request(source, spec=str(spec)), Output(tmp_path / "megatron", fsync=False))
        convert(Request(tmp_path / "megatron", spec=str(spec)), Output(tmp_path / "back", fsync=False))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list((tmp_path / "back").glob("*.safetensors"))) == len(tensors) > 2000
    assert load_file(tmp_path / "back" / files["x.1999"])["x.1999"].tolist() == [1999] * 3


def test_an_index_that_names_a_shard_that_is_gone(source: Path, tmp_path: Path) -> None:
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        convert(Request(source), Output(tmp_path / "out"))
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS622"
    assert "model-00002-of-00003.safetensors" in finding.message


# --- what stands in files ------------------------------------------------------------------------------------------

VARIANT = """
apiVersion: mapspec/v1
kind: Mapping
metadata:
  name: variant
  version: 1.0.0
extends: nemotron_h@1
roles:
  anything:
    dtype: "'float32'"
    accepts: [float32, float16, bfloat16, int64, bool, uint8]
    keep: of any kind
blocks:
  odd:
    tensors:
      odd_things.**:
        hf: odd_things.**
        role: anything
mounts:
  odd:
    blocks: [odd]
"""

ODD: dict[str, torch.Tensor] = {
    "odd_things.no elements": torch.zeros(0),
    "odd_things.rows_of_nothing": torch.zeros(4, 0, 3, dtype=torch.bfloat16),
    "odd_things.no_rows": torch.zeros(0, 7, dtype=torch.int64),
    "odd_things.scalar": torch.tensor(-2.5),
    "odd_things.one_byte": torch.tensor([True]),
    "odd_things.with spaces and\ttabs": torch.arange(3),
    "odd_things.a/b/../c": torch.arange(5),
    "odd_things.größe.重み.\U0001f40d": torch.arange(2.0),
    'odd_things."quoted\\"': torch.arange(3.0),
    "odd_things.trailing.": torch.arange(4.0),
    "odd_things...dots": torch.arange(6.0),
    "odd_things.{braces}": torch.arange(7.0),
    "odd_things.new\nline\r\n": torch.arange(8.0),
    "odd_things.100%s %(name)s": torch.arange(9.0),
    f"odd_things.{'long' * 2000}": torch.arange(10.0),
    "odd_things.-rf ~/* $(HOME) `x` ' ; |": torch.arange(11.0),
}


def test_odd_tensors_and_names_both_ways(tmp_path: Path) -> None:
    """No elements, no dimensions, and any text as a name; torch and safetensors read what comes out."""
    source = write_hf(tmp_path / "größe und/hf 重み", small())
    save_file(load_file(source / "model.safetensors") | ODD, source / "model.safetensors", metadata={"format": "pt"})
    spec = tmp_path / "spec.yaml"
    spec.write_text(VARIANT)
    megatron = there_and_back(source, tmp_path, str(spec))
    back = load_file(tmp_path / "back/model.safetensors")
    for name, tensor in ODD.items():
        assert back[name].shape == tensor.shape, name
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name
    from torch.distributed.checkpoint import FileSystemReader, load

    keys = open_torch_dist(megatron).tensors
    wanted = {n: torch.full(keys[n].shape, 99).to(ODD[n].dtype) for n in keys if n.startswith("odd_things")}
    assert set(wanted) == set(ODD)
    load(wanted, storage_reader=FileSystemReader(megatron / "iter_0000000"), no_dist=True)
    for name, tensor in wanted.items():
        assert torch.equal(tensor, ODD[name]), name


@pytest.mark.parametrize("extra", [1, 3, 7])
def test_headers_that_are_not_aligned(source: Path, tmp_path: Path, extra: int) -> None:
    """Old writers leave the header's length as it falls, so that values begin at any byte."""
    for path in source.glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].rstrip()
        header += b" " * ((extra - len(header)) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        assert (8 + len(header)) % 8 == extra
    there_and_back(source, tmp_path)


def test_a_shard_above_4_gib(tmp_path: Path) -> None:
    """Offsets beyond 2**32, in the header and in the copy; the file is sparse."""
    rows, columns, last = 2**18 + 3, 2**13, b"\x80\x3f\x00\x40"
    name = "model.safetensors"
    entries = {
        "big": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, rows * columns * 2]},
        "last": {"dtype": "BF16", "shape": [2], "data_offsets": [rows * columns * 2, rows * columns * 2 + 4]},
    }
    header = json.dumps(entries).encode()
    with (tmp_path / name).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(8 + len(header) + rows * columns * 2 - 4)
        file.write(b"tail" + last)
    found = read_header(tmp_path / name, name)
    assert isinstance(found, Header)
    big, small_one = found.tensors
    assert small_one.chunks[0].offset > 2**32
    # the last three rows of the large tensor, and the small one
    part = ((rows - 3, rows), (0, columns))
    new = [
        NewTensor("a", "bfloat16", (3, columns), (whole((3, columns)),)),
        NewTensor("b", "bfloat16", (2,), (((0, 2),),)),
    ]
    layout = layout_torch_dist(new, objects={}, files=1)
    fills = [
        Fill(layout.tensors["a"], layout.tensors["a"].chunks[0], (Part(whole((3, columns)), big, part),)),
        Fill(layout.tensors["b"], layout.tensors["b"].chunks[0], (Part(((0, 2),), small_one, ((0, 2),)),)),
    ]
    (tmp_path / "out").mkdir()
    execute(fills, layout, source_root=tmp_path, target_root=tmp_path / "out")
    done = open_torch_dist(tmp_path / "out")
    ends = {n: t.chunks[0].offset + t.chunks[0].nbytes for n, t in done.tensors.items()}
    data = {n: (tmp_path / "out" / t.chunks[0].file).read_bytes() for n, t in done.tensors.items()}
    assert data["a"][ends["a"] - 4 : ends["a"]] == b"tail"
    assert data["b"][ends["b"] - 4 : ends["b"]] == last


def test_writing_beyond_4_gib(tmp_path: Path) -> None:
    """Offsets above 2**32 in source and destination; both files are sparse."""
    far = 2**32 + 5
    with (tmp_path / "a").open("wb") as file:
        file.seek(far)
        file.write(b"12345678")
    source = StoredTensor("s", "uint8", (8,), (Chunk(((0, 8),), "a", far, 8),))
    target = StoredTensor("t", "uint8", (8,), (Chunk(((0, 8),), "x", far, 8),))
    (tmp_path / "out").mkdir()
    writer = Worker(Setting(tmp_path, tmp_path / "out", sharers=1, fsync=False), lambda file, nbytes: None)
    job = Job("x", far + 8, (), (Fill(target, target.chunks[0], (Part(((0, 8),), source, ((0, 8),)),)),))
    with mock.patch("os.posix_fallocate", side_effect=OSError(errno.EOPNOTSUPP, "no")):
        writer.write(compiled(job, {}))
    writer.close()
    with opened(tmp_path / "out/x") as stream:
        assert stream.stamp.nbytes == far + 8
        assert stream.read(far, 8) == b"12345678"


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with opened(tmp_path / "a") as stream:
        assert stream.read(4, 100) == b"456789"
        assert stream.read(10, 1) == b""
    files = SourceFiles(tmp_path)
    with pytest.raises(ReadProblem, match="ends at byte 10, but byte 10 is needed"):
        files.read_into(memoryview(bytearray(8)), "a", 4)
    files.close()
