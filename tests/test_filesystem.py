"""How to read follows from where files lie: fake mount tables, and what the choice does."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from test_convert import small, write_hf

from mapspec.convert import Output, convert
from mapspec.copying.ahead import expecting
from mapspec.copying.source import SourceFiles
from mapspec.errors import ConvertError
from mapspec.io.filesystem import KINDS, PLACES, access_to, kind_of, with_changes
from mapspec.prepare import Request, prepare
from mapspec.render.plan import render_plan
from mapspec.verify import verify

MOUNTS = """\
22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a:/b
23 22 0:21 / /proc rw - proc proc rw
30 22 259:1 / /data rw,noatime shared:5 master:1 - xfs /dev/nvme0n1 rw
31 30 0:40 / /data/team rw - nfs4 filer:/export rw,rsize=1048576
32 22 0:41 / /lustre rw - lustre mgs@tcp:/fs rw
33 22 0:42 / /mnt/with\\040space rw - tmpfs tmpfs rw
34 22 0:43 / /gcs rw - fuse.gcsfuse bucket rw
35 22 0:44 / /win rw - cifs //server/share rw
36 22 0:45 / /twice rw - ext4 /dev/sda1 rw
37 36 0:46 / /twice rw - nfs filer:/other rw
38 22 0:47 / /weird rw - somethingfs none rw
short line
"""


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/model", "overlay (local), 2 threads, 1 MiB reads"),
        ("/data/model", "xfs (local), 2 threads, 1 MiB reads"),
        ("/data/team/model/iter_0000001", "nfs4 (network), 8 threads, 4 MiB reads, 4 ahead"),
        ("/data/teammate", "xfs (local), 2 threads, 1 MiB reads"),
        ("/lustre/x", "lustre (parallel), 16 threads, 4 MiB reads, 4 ahead"),
        ("/mnt/with space/x", "tmpfs (memory), 2 threads, 1 MiB reads"),
        ("/gcs/x", "fuse.gcsfuse (user space), 8 threads, 4 MiB reads, 4 ahead"),
        ("/win/x", "cifs (network), 8 threads, 4 MiB reads, 4 ahead"),
        ("/twice/x", "nfs (network), 8 threads, 4 MiB reads, 4 ahead"),
        ("/weird/x", "somethingfs (local), 2 threads, 1 MiB reads"),
    ],
)
def test_the_mount_decides(path: str, shown: str) -> None:
    assert str(access_to(Path(path), cores=2, mounts=MOUNTS)) == shown


def test_links_lead_to_another_mount(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/data/team")
    assert kind_of(tmp_path / "link" / "model", MOUNTS) == "nfs4"


def test_this_machine_has_a_kind(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "not" / "there") != "unknown"
    with mock.patch("mapspec.io.filesystem._MOUNTS", tmp_path / "gone"):
        assert str(access_to(tmp_path, cores=1)) == "unknown (local), 1 thread, 1 MiB reads"
    assert set(KINDS.values()) < set(PLACES)


def test_what_a_user_changes() -> None:
    base = access_to(Path("/data"), cores=2, mounts=MOUNTS)
    assert with_changes(base, "") == base
    assert (
        str(with_changes(base, "threads=3, read=512KiB ,ahead=2")) == "xfs (local), 3 threads, 0.5 MiB reads, 2 ahead"
    )
    assert str(with_changes(base, "network,ahead=0")) == "xfs (local), 8 threads, 4 MiB reads"
    assert with_changes(base, "object-store").read == PLACES["object store"][1]
    for wrong in ("fast", "threads=0", "read=big", "threads", "depth=3", "ahead=-1"):
        with pytest.raises(ConvertError, match="MS793"):
            with_changes(base, wrong)


def test_the_kernel_is_told_what_will_be_read(tmp_path: Path) -> None:
    """On a network file system the reads of the next 16 MiB are announced, in their order, each once."""
    source = write_hf(tmp_path / "hf", small(), shards=2)
    told: list[tuple[str, int, int]] = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            told.append((str(Path(f"/proc/self/fd/{fd}").readlink()), offset, length))

    with mock.patch("os.posix_fadvise", advise):
        convert(Request(source), Output(tmp_path / "quiet"))
        assert told == []
        prepared = prepare(Request(source, io="network,threads=1"))
        convert(prepared.request, Output(tmp_path / "megatron"))
    assert {Path(name).name for name, _, _ in told} == {p.name for p in source.glob("*.safetensors")}
    assert len(told) == len(set(told))
    read = sum(length for _, _, length in told)
    assert read > 0.5 * prepared.plan.nbytes  # what is gathered from rows is read as it comes
    assert not verify(source, tmp_path / "megatron").findings
    assert "reading   " in render_plan(prepared)
    assert "(local), 1 thread, 4 MiB reads, 4 ahead" in render_plan(prepared)


def test_reads_are_announced_within_the_window() -> None:
    told: list[int] = []

    class Files:
        window = 100

        def expect(self, file: str, offset: int, length: int) -> None:
            told.append(offset)

    steps = [(0, "a", at, 40) for at in range(10)]
    steps.insert(3, (0, None, 99, 40))
    seen = []
    for step in expecting(steps, Files()):
        seen.append(step)
        assert len(told) <= len([s for s in seen if s[1]]) + 3
    assert seen == steps
    assert told == list(range(10))
    assert SourceFiles(Path("/proc")).window == 0
