"""`mapspec convert` by several processes: the same checkpoint, and one word of what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_server import RankServer, Said
from test_convert import there_and_back
from test_resume import Disk, tree

from mapspec import convert as convert_module
from mapspec.convert import Output, convert
from mapspec.errors import ConvertError
from mapspec.gloo_team import team_of
from mapspec.intact import check_intact
from mapspec.prepare import Request
from mapspec.publish import leftovers
from mapspec.shares import shares
from mapspec.team import Team
from mapspec.verify import verify


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


@pytest.fixture(scope="module")
def checkpoints(memory: Path) -> Path:
    return there_and_back(memory / "of_ranks", 5)


@pytest.fixture(scope="module")
def server() -> Iterator[RankServer]:
    started = RankServer()
    yield started
    started.close()


def failed(said: list[Said], code: str) -> str:
    """What rank 0 says: all ranks end with its exit code, and nobody else says anything."""
    assert {one.code for one in said} == {2}, said
    assert [one.out for one in said] == [""] * len(said)
    assert [one.err for one in said[1:]] == [""] * (len(said) - 1)
    assert said[0].err.count(f": {code} ") == 1, said[0].err
    return said[0].err


# --- what works ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "world"), [("hf", 2), ("megatron", 2), ("megatron", 4)])
def test_ranks_write_the_same_checkpoint(
    checkpoints: Path,
    tmp_path: Path,
    server: RankServer,
    way: str,
    world: int,
) -> None:
    expected = checkpoints / ("back" if way == "megatron" else "megatron")
    said = server.convert(tmp_path, world, checkpoints / way, tmp_path / "out")
    assert [one.code for one in said] == [0] * world, said
    assert said[0].out.startswith("wrote ")
    assert [(one.out, one.err) for one in said[1:]] == [("", "")] * (world - 1)
    assert tree(tmp_path / "out") == tree(expected)
    assert leftovers(tmp_path / "out") == ()
    assert f"in {4 if way == 'hf' else 5} files" in said[0].out


def test_every_rank_has_files_of_its_own(checkpoints: Path, tmp_path: Path, server: RankServer) -> None:
    said = server.convert(tmp_path, 3, checkpoints / "hf", tmp_path / "out", "--threads", "2")
    assert [one.code for one in said] == [0, 0, 0], said
    assert len(list((tmp_path / "out").rglob("*.distcp"))) == 6
    assert not check_intact(tmp_path / "out").findings
    assert not verify(checkpoints / "hf", tmp_path / "out").findings


def test_progress_is_that_of_all(checkpoints: Path, tmp_path: Path, server: RankServer) -> None:
    said = server.convert(tmp_path, 2, checkpoints / "hf", tmp_path / "out", "--progress", "json")
    total = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.distcp"))
    last = json.loads(said[0].err.splitlines()[-1])
    assert (last["event"], last["bytes"], last["total"]) == ("end", total, total)
    assert said[1].err == ""


# --- what goes wrong -------------------------------------------------------------------------------------------


def test_a_failing_rank_ends_all_and_others_resume(checkpoints: Path, tmp_path: Path, server: RankServer) -> None:
    """A full disk on rank 1, while rank 0 would be busy for a long time."""
    faults = {0: ["slow", 0.5], 1: ["full", 25]}
    said = server.convert(tmp_path, 2, checkpoints / "hf", tmp_path / "out", "--threads", "1", faults=faults)
    text = failed(said, "MS702")
    assert "seen on rank 1" in text
    assert "1 of 4 data files" in text  # rank 0 did not finish its own
    assert "--resume goes on from there" in text
    assert not (tmp_path / "out").exists()
    said = server.convert(tmp_path, 3, checkpoints / "hf", tmp_path / "out", "--resume")
    assert [one.code for one in said] == [0, 0, 0], said
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")
    assert leftovers(tmp_path / "out") == ()


def test_a_disk_too_small_for_all_is_known_before_the_work(
    checkpoints: Path, tmp_path: Path, server: RankServer
) -> None:
    with Disk(tmp_path / "disk", "size=256k") as disk:
        failed(server.convert(tmp_path, 3, checkpoints / "hf", disk.folder / "out"), "MS701")
        assert list(disk.folder.iterdir()) == []


@pytest.mark.parametrize(("rank", "what"), [(1, "kill"), (0, "kill"), (1, "stop")])
def test_a_lost_rank_ends_all(
    checkpoints: Path,
    tmp_path: Path,
    server: RankServer,
    rank: int,
    what: str,
) -> None:
    """A rank is killed, or hangs; the others end by themselves, one of them says why, and one process goes on."""
    arguments = (checkpoints / "hf", tmp_path / "out", "--threads", "1", "--progress", "none")
    said = server.convert(tmp_path, 3, *arguments, faults={rank: [what, 25]})
    assert said[rank].code == -9
    rest = [one for at, one in enumerate(said) if at != rank]
    assert {one.code for one in rest} == {2}, said
    assert rest[0].err.count(": MS755 ") == 1, said
    assert rank == 0 or f"rank {rank} has given no sign" in rest[0].err
    assert not (tmp_path / "out").exists()
    (left,) = leftovers(tmp_path / "out")
    done = convert(Request(checkpoints / "hf"), Output(tmp_path / "out", resume=True))
    assert done.kept
    assert len(list((tmp_path / "out").rglob("*.distcp"))) == 6
    assert not left.exists()
    assert not check_intact(tmp_path / "out").findings
    assert not verify(checkpoints / "hf", tmp_path / "out").findings


def test_the_time_limit(checkpoints: Path, tmp_path: Path, server: RankServer) -> None:
    """SIGTERM to all, as from a scheduler."""
    arguments = (checkpoints / "hf", tmp_path / "out", "--threads", "1", "--progress", "none")
    said = server.convert(tmp_path, 2, *arguments, faults={0: ["term", 25], 1: ["term", 25]})
    assert [one.code for one in said] == [130, 130], said
    assert said[0].err.startswith("interrupted; nothing was published\n")
    assert "data files" in said[0].err
    assert said[1].err == ""
    assert [one.code for one in server.convert(tmp_path, 2, *arguments, "--resume")] == [0, 0]
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")


def test_ranks_that_differ_are_refused(checkpoints: Path, tmp_path: Path, server: RankServer) -> None:
    more = {2: ["--iteration", "7"]}
    said = server.convert(tmp_path, 3, checkpoints / "hf", tmp_path / "out", more=more)
    text = failed(said, "MS756")
    assert "ranks 2 are about to do something else than rank 0" in text
    assert "the option iteration: 0 then, 7 now" in text
    assert leftovers(tmp_path / "out") == ()


def test_bad_input_is_said_once(checkpoints: Path, tmp_path: Path, server: RankServer) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    failed(server.convert(tmp_path, 2, checkpoints / "hf", tmp_path / "out"), "MS710")
    failed(server.convert(tmp_path, 2, checkpoints / "nothing", tmp_path / "other"), "MS601")


def test_a_folder_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "_SHOWS_UP_S", 0.0)
    with pytest.raises(ConvertError, match="MS758"):
        convert_module._see(tmp_path / "nothing", Team(1, 2))


def test_ranks_without_torch_or_without_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("mapspec.gloo_team.find_spec", lambda name: None)
        with pytest.raises(ConvertError, match="MS780"), team_of({"WORLD_SIZE": "2"}):
            pass
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConvertError, match="MS781"), team_of({"WORLD_SIZE": "2"}):
        pass
    with team_of({}) as team:
        assert (team.rank, team.world) == (0, 1)


# --- launchers and hosts ---------------------------------------------------------------------------------------


def test_torchrun(checkpoints: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mapspec", "convert"]
    done = subprocess.run([*run, checkpoints / "hf", tmp_path / "out"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")


class Hosts:
    """Network namespaces that stand for hosts, joined by a bridge."""

    def __init__(self, count: int) -> None:
        self.names = [f"ms{os.getpid() % 10000}h{n}" for n in range(count)]
        self._bridge = f"ms{os.getpid() % 10000}"

    def __enter__(self) -> Hosts:
        try:
            self._ip("link", "add", self._bridge, "type", "bridge")
            self._ip("link", "set", self._bridge, "up")
            for number, name in enumerate(self.names):
                self._ip("netns", "add", name)
                self._ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
                self._ip("link", "set", f"{name}v", "master", self._bridge, "up")
                self._ip("-n", name, "address", "add", f"10.213.7.{number + 1}/24", "dev", "eth0")
                self._ip("-n", name, "link", "set", "eth0", "up")
                self._ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            pytest.skip(f"network namespaces are not permitted here: {error}")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.mark.slow
def test_several_hosts(checkpoints: Path, tmp_path: Path) -> None:
    """Two hosts with a network of their own each and a file system that they share."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` here")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with Hosts(2) as hosts:
        run = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--master-addr", "10.213.7.1", "--master-port", str(port),
        ]  # fmt: skip
        started = []
        for number, name in enumerate(hosts.names):
            node = ["--node-rank", str(number), "-m", "mapspec", "convert"]
            command = ["ip", "netns", "exec", name, *run, *node, checkpoints / "hf", tmp_path / "out"]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))  # type: ignore[call-overload]
        try:
            said = [process.communicate(timeout=150) for process in started]
        finally:
            for process in started:
                process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    assert "".join(out for out, _ in said).count("wrote ") == 1
    assert tree(tmp_path / "out") == tree(checkpoints / "megatron")


# --- shares ----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_shares_are_even(sizes: dict[str, int], world: int) -> None:
    parts = shares(sizes, world)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    held = [sum(sizes[name] for name in part) for part in parts]
    # nobody has more than the others, but for its last file
    for part, nbytes in zip(parts, held, strict=True):
        assert not part or nbytes - sizes[part[-1]] <= min(held)
    assert shares(dict(reversed(sizes.items())), world) == parts
