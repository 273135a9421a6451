"""Publishing a folder: complete or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mapspec.errors import ConvertError
from mapspec.publish import leftovers, publishing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(destination: Path, **options: object) -> str:
    with pytest.raises(ConvertError) as caught, publishing(destination, **options):  # type: ignore[arg-type]
        raise AssertionError("the work must not begin")
    (finding,) = caught.value.diagnostics
    assert finding.help
    return f"{finding.code} {finding.message}"


def test_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with publishing(target) as folder:
        assert folder.parent.parent == target.parent
        assert leftovers(target) == (folder.parent,)
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "x").read_text() == "1"
    assert names(target.parent) == ["model"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert target.stat().st_mode == plain.stat().st_mode


def test_into_an_empty_folder_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with publishing(tmp_path / "link") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "real" / "x").exists()
    assert names(tmp_path) == ["link", "real"]


def test_a_link_to_itself_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert refused(tmp_path / "link").startswith("MS712 the destination is a link")
    assert names(tmp_path) == ["link"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException], existing: bool) -> None:
    if existing:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(error), publishing(tmp_path / "model", overwrite=existing) as folder:  # noqa: PT012
        (folder / "model.safetensors").write_text("half")
        raise error
    assert names(tmp_path) == (["model"] if existing else [])
    assert not existing or (tmp_path / "model" / "old").read_text() == "old"


def test_taken_unless_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    assert refused(target) == "MS710 the destination exists and is not empty"
    with publishing(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file", overwrite=True) == "MS710 the destination is a file"
    assert refused(Path("/")) == "MS710 the root folder cannot be a destination"


def test_filled_by_somebody_else_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(ConvertError, match="MS710 the destination exists"), publishing(target) as folder:  # noqa: PT012
        (folder / "mine").write_text("")
        target.mkdir()
        (target / "theirs").write_text("")
    assert names(tmp_path) == ["model"]
    assert names(target) == ["theirs"]


def test_old_one_comes_back_when_the_rename_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.name == "checkpoint":
            raise PermissionError(1, "Operation not permitted")
        return real(self, to)

    with (
        mock.patch.object(Path, "rename", rename),
        pytest.raises(ConvertError, match="MS712 the destination cannot be made: Operation not permitted"),
        publishing(target, overwrite=True) as folder,
    ):
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


@pytest.mark.parametrize("at", range(1, 4))
def test_an_interrupt_between_the_renames(tmp_path: Path, at: int) -> None:
    """Before the last rename everything is as it was; after it the interrupt comes too late to be one."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    steps, real, remove = iter(range(1, 9)), Path.rename, shutil.rmtree

    def rename(self: Path, to: Path) -> Path:
        moved = real(self, to)
        if next(steps) == at:
            raise KeyboardInterrupt
        return moved

    def rmtree(path: Path, **options: Any) -> None:
        if next(steps) == at:
            raise KeyboardInterrupt
        remove(path, **options)

    late = at > 1
    with mock.patch.object(Path, "rename", rename), mock.patch("shutil.rmtree", rmtree):
        if late:
            with publishing(target, overwrite=True) as folder:
                (folder / "new").write_text("new")
        else:
            with pytest.raises(KeyboardInterrupt), publishing(target, overwrite=True) as folder:
                (folder / "new").write_text("new")
    assert names(target) == (["new"] if late else ["old"])
    assert not list(tmp_path.glob(".*partial*"))


def test_not_over_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "link").symlink_to("source")
    for path, how in [
        (source, "is"),
        (tmp_path / "link", "is"),
        (source / "sub" / "x", "lies inside"),
        (tmp_path, "holds"),
    ]:
        said = refused(path, overwrite=True, sources=[source])
        assert said == f"MS711 the destination {how} the source `{source}`"


def test_parent_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file" / "model").startswith("MS712 the destination cannot be made: ")
    with mock.patch.object(Path, "mkdir", side_effect=OSError(30, "Read-only file system")):
        assert refused(tmp_path / "model") == "MS712 the destination cannot be made: Read-only file system"


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with mock.patch.object(Path, "is_mount", return_value=True):
        assert refused(tmp_path / "model").startswith("MS712 the destination is a mount point")
    assert names(tmp_path) == ["model"]


def test_what_is_kept_can_be_gone_on_with(tmp_path: Path) -> None:
    asked: list[BaseException] = []
    with pytest.raises(ValueError), publishing(tmp_path / "model", keep=lambda e: not asked.append(e)) as folder:  # noqa: PT012
        (folder / "a").write_text("1")
        raise ValueError
    assert [type(error) for error in asked] == [ValueError]
    (left,) = leftovers(tmp_path / "model")
    with publishing(tmp_path / "model", resume=left) as folder:
        assert names(folder) == ["a"]
        (left / "journal").mkdir()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["a"]


def test_killed_outright(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom mapspec.publish import publishing\n"
        "with publishing(sys.argv[1]) as folder:\n (folder / 'x').write_text('x')\n os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=False)
    (left,) = leftovers(tmp_path / "model")
    assert left.name.startswith(".model.mapspec-partial-")
    with publishing(tmp_path / "model") as folder:
        (folder / "x").write_text("y")
    assert leftovers(tmp_path / "model") == (left,)


def test_everything_is_on_disk_before_the_rename(tmp_path: Path) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name.split(".mapspec")[0])
        real(fd)

    with mock.patch("os.fsync", fsync), publishing(tmp_path / "model") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
    assert synced == ["x", "sub", "checkpoint", tmp_path.name]
