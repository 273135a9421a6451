"""The script itself: options, groups, and a dry run of everything on the CPU with the reference model."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import run as script
import torch
from gpu_packages import SetupError
from gpu_results import Check, Runner, Summary, read_results


def on_cpu(test: Any) -> Any:
    """Marks of the tests that share the dry run: one worker does it once."""
    for mark in (pytest.mark.slow, pytest.mark.megatron, pytest.mark.xdist_group("gpu_dry")):
        test = mark(test)
    return test


def test_options() -> None:
    options = script.parse(["--wheels", "w", "--models", "tiny", "--groups", "tiny,tp2"])
    assert (options.wheels, options.models, options.groups) == (Path("w"), ["tiny"], ["tiny", "tp2"])
    assert options.backend == "transformer_engine"
    assert options.limit < 600, "all checks end within ten minutes"
    assert script.parse([]).models == ["tiny", "medium", "omni"]


@pytest.mark.parametrize(
    "arguments", [["--models", ""], ["--wheels", "w", "--skip-setup"], ["--backend", "cuda"], ["--nonsense"]]
)
def test_options_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script.parse(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_page_lists_the_options() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    table = page.split("| option | what it does |")[1].split("\n\n")[0]
    listed = set(re.findall(r"^\| `([a-z-]+)", table, re.MULTILINE))
    options = vars(script.parse(["-w", "wheels", "-s", "summary.md"]))
    hidden = {"child", "results", "rank", "store"}
    assert listed == {name.replace("_", "-") for name in options} - hidden


def test_groups_follow_the_machine() -> None:
    one = [group.name for group in script.groups_for(["tiny", "medium"], 1)]
    assert one == ["machine", "files", "tiny", "medium", "separate", "sequential", "keys"]
    two = script.groups_for(["tiny"], 2)
    assert (two[-1].name, two[-1].tp) == ("tp2", 2)
    assert [group.name for group in two if group.cpu] == ["files"]


def test_children_are_started_with_options_they_understand(tmp_path: Path) -> None:
    options = script.parse(["--backend", "reference", "--models", "tiny", "--record", "rec"])
    group = script.groups_for(["tiny"], 2)[-1]
    command = script.child_command(options, group, tmp_path, 1)
    assert command[0] == sys.executable
    child = script.parse(command[2:])
    assert (child.child, child.rank, child.backend, child.models) == ("tp2", 1, "reference", ["tiny"])
    assert child.results == tmp_path / "results" / "tp2.1.jsonl"
    assert child.store == tmp_path / "results" / "tp2.store"
    assert child.record == Path("rec").resolve()


def test_a_setup_that_cannot_be_done_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--wheels", str(tmp_path / "absent"), "--built", str(tmp_path / "built")]
    before = list(sys.path)
    try:
        assert script.main(arguments) == 2
    finally:
        sys.path[:] = before
    assert f"setup: there is no folder {tmp_path / 'absent'}" in capsys.readouterr().err


def test_setup_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "installed_here", dict)
    with pytest.raises(SetupError, match="torch is not installed"):
        script.set_up(script.parse([]))


def test_the_summary_goes_below_its_mark(tmp_path: Path) -> None:
    summary = Summary("reference", {"torch": "2.13"}, (Check("tiny", "load", "passed"),), 3.0)
    page = tmp_path / "gpu.md"
    page.write_text(f"# GPU\n\nText.\n\n{script.MARK}\n\nold\n")
    script.write_summary(page, summary)
    script.write_summary(page, summary)
    text = page.read_text()
    assert text.startswith(f"# GPU\n\nText.\n\n{script.MARK}\n\n| | |\n")
    assert "old" not in text
    assert text.count("tiny: load") == 1
    script.write_summary(tmp_path / "new.md", summary)
    assert (tmp_path / "new.md").read_text().startswith("| | |")


def test_no_time_left_is_told(tmp_path: Path) -> None:
    options = script.parse(["--backend", "reference", "--models", "tiny", "--limit", "0"])
    checks = script.run_checks(options, {}, tmp_path)
    assert {check.state for check in checks} == {"failed"}
    assert checks[0].note == "no time left of 0 s"


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Exit code and folder of a run on the CPU."""
    root = tmp_path_factory.mktemp("dry")
    arguments = ["--backend", "reference", "--models", "tiny,omni", "--groups", "machine,files,tiny,omni,tp2"]
    return script.main([*arguments, "--work", str(root / "work"), "--summary", str(root / "summary.md")]), root


@on_cpu
def test_dry_run(dry: tuple[int, Path]) -> None:
    code, root = dry
    text = (root / "summary.md").read_text()
    assert code == 0, text
    assert "Dry run: the reference model on the CPU, no GPU." in text
    for name in (
        "files: tiny reference fp32",
        "tiny: forward",
        "tiny: export",
        "omni: load",
        "omni: forward",
        "omni: live",
        "tp2: load",
        "tp2: export",
    ):
        assert f"| {name} | passed |" in text
    assert "| machine: device | skipped |" in text
    assert str(root) not in text, "no paths of this machine"


def damaged(model: Any, how: str) -> None:
    """A mistake that a conversion could make and that keeps every shape."""
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if torch.is_tensor(t)}
    with torch.no_grad():
        if how == "k and v swapped":
            qkv = state["decoder.layers.2.self_attention.linear_qkv.weight"].view(2, 6, 32, 128)  # groups of 4 q, k, v
            qkv[:, [4, 5]] = qkv[:, [5, 4]].clone()
        elif how == "B and C swapped":
            weight = state["decoder.layers.0.mixer.in_proj.weight"]
            weight[512:640] = weight[512:640].roll(64, 0).clone()  # z 256, x 256, B 64, C 64, dt 16
        else:
            name = "decoder.layers.1.mlp.experts.linear_fc1.weight"
            state[f"{name}0"].copy_(state[f"{name}1"].clone())


@on_cpu
def test_the_checks_see_mistakes(dry: tuple[int, Path]) -> None:
    """Each damage is seen by the bits, by the export, and (independently of the mapping) by the logits."""
    from gpu_backend import Backend
    from gpu_checks import LiveModel

    work = dry[1] / "work"
    found: list[Check] = []
    live = LiveModel(Backend("reference"), "tiny", work, "damaged", {})
    live.own.mkdir()
    with live.backend.groups():
        runner = Runner("damaged", found.append)
        assert runner.check("build", live.build)
        for how in ("k and v swapped", "B and C swapped", "an expert in another's place"):
            assert runner.check("load", live.load)
            damaged(live.model, how)
            found.clear()
            for name in ("bits", "export", "forward"):
                runner.check(name, getattr(live, name))
            states = {check.name: check.state for check in found}
            assert (states["bits"], states["export"]) == ("failed", "failed"), (how, found)
            if how != "an expert in another's place":  # one expert of eight in one layer can hide in the noise
                assert states["forward"] == "failed", (how, found[-1].numbers)


@on_cpu
def test_what_ranks_report_is_kept(dry: tuple[int, Path]) -> None:
    results = dry[1] / "work" / "results"
    ranks = [read_results(results / f"tp2.{rank}.jsonl") for rank in (0, 1)]
    assert [c.name for c in ranks[0]] == [c.name for c in ranks[1]]
    assert all(check.good for check in (*ranks[0], *ranks[1]))
