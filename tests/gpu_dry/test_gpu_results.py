"""The runner, the processes and the summary: one check that fails, dies or hangs hides none of the others."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from gpu_children import run_group
from gpu_results import Check, Runner, Skip, Summary, read_results, render_summary, write_result


class LoudError(Exception):
    numbers = {"rms": 0.5}  # noqa: RUF012 (a constant)


def raises(error: BaseException) -> None:
    raise error


def test_every_check_runs(tmp_path: Path) -> None:
    found: list[Check] = []
    runner = Runner("tiny", found.append)
    assert runner.check("good", lambda: {"count": 12345, "rms": 0.123456, "word": "x", "flag": True})
    assert not runner.check("bad", lambda: raises(LoudError("too far")))
    assert not runner.check("exits", lambda: raises(SystemExit(3)))
    assert not runner.check("absent", lambda: raises(Skip("one device only")))
    assert not runner.check("after", lambda: None, ["good", "bad"])
    assert runner.check("last", lambda: None, ["good"])
    assert [c.state for c in found] == ["passed", "failed", "failed", "skipped", "not run", "passed"]
    assert found[0].numbers == {"count": "12,345", "rms": "0.123", "word": "x", "flag": "True"}
    assert found[1].numbers == {"rms": "0.5"}, "what was measured is told although it failed"
    assert found[1].note.splitlines()[0].endswith("LoudError: too far")
    assert "test_gpu_results.py" in found[1].note
    assert found[4].note == "needs `bad`"
    with pytest.raises(KeyboardInterrupt):
        runner.check("stopped", lambda: raises(KeyboardInterrupt()))


def test_results_survive_a_line_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    check = Check("tiny", "load", "passed", {"tensors": "3"}, "", 0.5)
    write_result(path, check)
    with path.open("a") as file:
        file.write('{"group": "tiny", "na')
    assert read_results(path) == [check]
    assert read_results(tmp_path / "absent") == []


def checks_of(*states: str) -> tuple[Check, ...]:
    return tuple(Check("g", f"c{i}", state) for i, state in enumerate(states))


@pytest.mark.parametrize(
    ("states", "good"),
    [
        (("passed", "skipped"), True),
        (("passed", "failed"), False),
        (("passed", "not run"), False),
        (("skipped",), False),
        ((), False),
    ],
)
def test_what_counts_as_good(states: tuple[str, ...], good: bool) -> None:
    assert Summary("reference", {}, checks_of(*states), 1.0).good is good


def test_summary_in_both_formats() -> None:
    checks = (
        Check("tiny", "load", "passed", {"tensors": "103"}, "", 1.25),
        Check("tiny", "forward", "failed", {"rms": "0.5"}, "Mismatch: a | b\n  place.py:3 f", 2.0),
    )
    summary = Summary(
        "transformer_engine", {"torch": "2.13.0"}, checks, 61.2, (("compile mamba-ssm", 300.0),), ("Note.",)
    )
    markdown = render_summary(summary, "md")
    assert "| torch | 2.13.0 |" in markdown
    assert "| tiny: load | passed | 1.2 | tensors 103 |" in markdown
    assert "| tiny: forward | failed | 2.0 | rms 0.5; Mismatch: a \\| b |" in markdown
    assert "1 passed, 1 failed; 61 seconds." in markdown
    assert "* compile mamba-ssm: 300 s" in markdown
    assert markdown.endswith("### tiny: forward\n\n```text\nMismatch: a | b\n  place.py:3 f\n```\n")
    text = render_summary(summary)
    assert "failed   tiny forward" in text
    assert "  place.py:3 f" in text


WRITE = "import sys; sys.path.insert(0, {gpu!r}); from gpu_results import *; from pathlib import Path; "
REPORT = "write_result(Path(sys.argv[1]), Check('g', 'first', 'passed')); "


def command(path: Path, body: str) -> list[str]:
    gpu = str(Path(__file__).parent.parent / "gpu")
    return [sys.executable, "-c", WRITE.format(gpu=gpu) + REPORT + body, str(path)]


def run(tmp_path: Path, *bodies: str, timeout_s: float = 60.0) -> list[Check]:
    files = [tmp_path / f"{rank}.jsonl" for rank in range(len(bodies))]
    commands = [command(path, body) for path, body in zip(files, bodies, strict=True)]
    return run_group("g", commands, files, environment={}, logs=tmp_path / "logs", timeout_s=timeout_s)


def test_a_process_that_dies_is_a_finding_of_its_own(tmp_path: Path) -> None:
    checks = run(tmp_path, "import os; print('illegal memory access', flush=True); os._exit(134)")
    assert [c.state for c in checks] == ["passed", "failed"]
    assert checks[1].note == "rank 0 ended with code 134, after `first`\nillegal memory access"


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    checks = run(tmp_path, "import time; time.sleep(600)", timeout_s=3)
    assert checks[-1].note.startswith("rank 0 was still running after 3 s")
    assert time.monotonic() - began < 30


def test_a_rank_that_dies_ends_the_ranks_that_wait_for_it(tmp_path: Path) -> None:
    began = time.monotonic()
    checks = run(tmp_path, "import time; time.sleep(600)", "raise SystemExit(9)")
    assert checks[-1].note.startswith("rank 1 ended with code 9")
    assert time.monotonic() - began < 30


def test_what_another_rank_found_is_told(tmp_path: Path) -> None:
    bad = "write_result(Path(sys.argv[1]), Check('g', '{}', 'failed', {{}}, 'wrong bits'))"
    good = "write_result(Path(sys.argv[1]), Check('g', 'second', 'passed'))"
    checks = run(tmp_path, good, bad.format("second") + "; " + bad.format("third"))
    assert [(c.name, c.state, c.note) for c in checks] == [
        ("first", "passed", ""),
        ("second", "failed", "rank 1: wrong bits"),
        ("third", "failed", "rank 1: wrong bits"),
    ]
