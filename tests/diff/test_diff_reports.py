"""What reviewers read: planted mistakes first and plainly, refactors in one line; every form has a snapshot."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from planted import FEW, PLANTED, REFACTORS, Edit, write_side

from mapspec.diff.compare import compare
from mapspec.diff.model import FORMAT_VERSION, Level, Report, State
from mapspec.diff.sides import folder_side
from mapspec.render.diff_formats import FORMATS
from mapspec.render.diff_github import commands

pytestmark = pytest.mark.xdist_group("diff")
SWAP, CONSTANT, NORM = PLANTED[1][1], PLANTED[6][1], PLANTED[9][1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_side(tmp_path_factory.mktemp("diff") / "base", models=FEW)


def report_of(base: Path, head: Path) -> Report:
    return compare(folder_side(base), folder_side(head))


def shown(report: Report, base: Path, head: Path, form: str = "text") -> str:
    text = FORMATS[form](report) + "\n"
    return text.replace(str(base), "base").replace(str(head), "head")


@pytest.mark.parametrize(("code", "edit"), PLANTED, ids=lambda value: value.name if isinstance(value, Edit) else "")
def test_a_planted_mistake_comes_first(
    code: str, edit: Edit, base: Path, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    head = write_side(tmp_path / "head", edit, models=FEW)
    report = report_of(base, head)
    first = report.changes[0]
    assert first.code == code
    assert first.level in (Level.SILENT, Level.BREAKING)
    assert report.fails("breaking")
    old, new = first.place
    line = edit.apply((base / edit.file).read_text()).splitlines()
    assert (old or new) is not None
    assert new is None or (head / new.path).is_file()
    assert new is None or new.line <= len(line)
    golden(f"diff/{edit.name.replace(' ', '_')}.txt", shown(report, base, head))


@pytest.mark.parametrize("edit", REFACTORS, ids=lambda edit: edit.name)
def test_a_refactor_is_said_in_one_line(edit: Edit, base: Path, tmp_path: Path) -> None:
    head = write_side(tmp_path / "head", edit, models=FEW)
    report = report_of(base, head)
    assert report.refactor
    assert not report.fails("any")
    assert {model.state for model in report.models} == {State.IDENTICAL}
    text = FORMATS["text"](report)
    assert re.fullmatch(r"\S+ -> \S+: refactor, nothing changes; \d+ models, [\d,]+ tensors compared", text), text


def test_a_dropped_norm_within_a_refactor_is_not_lost(base: Path, tmp_path: Path) -> None:
    """The mistake that was made elsewhere: two lines among many that change nothing."""
    head = write_side(tmp_path / "head", *REFACTORS[:2], NORM, models=FEW)
    report = report_of(base, head)
    assert [c.code for c in report.changes if c.level in (Level.SILENT, Level.BREAKING)] == ["DC201"]
    assert report.changes[0].parts[0].subject == "mixer.norm.weight"


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Two mistakes at once: an exchange, and a provider's constant."""
    head = write_side(tmp_path_factory.mktemp("two") / "head", SWAP, CONSTANT, models=FEW)
    return head, report_of(base, head)


@pytest.mark.parametrize("form", ["md", "github", "json"])
def test_forms(
    form: str,
    base: Path,
    two: tuple[Path, Report],
    tmp_path: Path,
    golden: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, report = two
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    text = shown(report, base, head, form)
    golden(f"diff/form_{form}.txt", text)
    if form == "json":
        data = json.loads(text)
        assert data["format_version"] == FORMAT_VERSION
        assert [change["code"] for change in data["changes"]] == [change.code for change in report.changes]
    if form == "github":
        assert (tmp_path / "summary.md").read_text() == FORMATS["md"](report) + "\n"


def test_no_more_than_ten_annotations(base: Path, tmp_path: Path) -> None:
    text = (base / "providers" / "nemotron_h.yaml").read_text()
    flags = re.findall(r"^  (\w+): \{value: (true|false)", text, re.MULTILINE)[:14]
    edits = tuple((f"  {n}: {{value: {v}", f"  {n}: {{value: {'false' if v == 'true' else 'true'}") for n, v in flags)
    head = write_side(tmp_path / "head", Edit("many", edits, "providers/nemotron_h.yaml"), models=FEW)
    report = report_of(base, head)
    lines = list(commands(report))
    assert len(report.open) > 10
    assert len(lines) == 10
    ranks = [("error", "warning", "notice").index(line[2:].partition(" ")[0]) for line in lines]
    assert ranks == sorted(ranks)
    for line in lines[:-1]:
        path, number = re.match(r"::\w+ file=([^,]+),line=(\d+),title=", line).groups()  # type: ignore[union-attr]
        assert int(number) <= len((head / path).read_text().splitlines())


def test_a_removal_is_annotated_at_a_line_that_is_left(base: Path, tmp_path: Path) -> None:
    head = write_side(tmp_path / "head", NORM, models=FEW)
    line = next(commands(report_of(base, head)))
    number = int(re.search(r"line=(\d+)", line).group(1))  # type: ignore[union-attr]
    assert "file=mappings/nemotron_h.yaml" in line
    assert 0 < number <= len((head / "mappings" / "nemotron_h.yaml").read_text().splitlines())
