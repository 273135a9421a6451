"""Every mistake that a spec can have: one file each in tests/lint, with what has to be said about it, and its repair.

The first lines of a fixture are comments:

    # expect: MS202 at 11:24            a finding at that line and column; all findings of the file are listed
    # expect: MS204 at 73:9 in base.yaml   the same in another file
    # expect: nothing                   the file is right
    # fix: hiden => hidden              replaced by that, the file has no findings (\n stands for a line's end)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mapspec.codes import CODES
from mapspec.diagnostics import Diagnostic
from mapspec.lint import lint
from mapspec.provider.lint import lint_provider
from mapspec.render.findings import render_findings

FOLDER = Path(__file__).parent / "lint"
FIXTURES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "base.yaml")
BROKEN = [path for path in FIXTURES if not path.name.startswith("good_")]


def _lint(paths: list[Path]) -> list[Diagnostic]:
    return lint(paths, others={"Provider": lint_provider})


def _comments(path: Path, key: str) -> list[str]:
    return re.findall(rf"^# {key}: ?(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def _where(finding: Diagnostic, path: Path) -> str:
    assert finding.span is not None
    at = f"{finding.code} at {finding.span.line}:{finding.span.col}"
    other = Path(finding.span.path)
    return at if other == path else f"{at} in {other.relative_to(FOLDER).as_posix()}"


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_says_what_is_wrong_once_and_nothing_else(path: Path) -> None:
    found = _lint([path])
    expected = [line for line in _comments(path, "expect") if line != "nothing"]
    assert [_where(d, path) for d in found] == expected, "\n" + render_findings(found)


def _repaired(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith(("# expect:", "# fix:")))
    for fix in _comments(path, "fix"):
        wrong, right = (part.replace("\\n", "\n").replace("\\t", "\t") for part in fix.split(" =>", 1))
        assert body.count(wrong) >= 1, f"{path.name}: `{wrong}` does not occur"
        body = body.replace(wrong, right.removeprefix(" "), 1)
    return body


@pytest.mark.parametrize("path", [p for p in BROKEN if _comments(p, "fix")], ids=lambda path: path.stem)
def test_the_near_twin_without_the_mistake_has_no_findings(path: Path, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "parts", tmp_path / "parts")
    shutil.copytree(FOLDER / "configs", tmp_path / "configs")
    shutil.copy(FOLDER / "base.yaml", tmp_path / "base.yaml")
    twin = tmp_path / path.name
    twin.write_text(_repaired(path), encoding="utf-8")
    found = _lint([twin, tmp_path / "base.yaml"])
    assert not found, "\n" + render_findings(found)


def test_every_code_of_lint_has_a_fixture() -> None:
    stages = re.compile(r"MS(0|1|2|3|40[1-5]|412|50[1-5])")
    fired = {code for path in BROKEN for code in re.findall(r"MS\d{3}", " ".join(_comments(path, "expect")))}
    assert {code for code in CODES if stages.match(code)} <= fired


def test_almost_every_fixture_has_a_near_twin() -> None:
    without = {path.stem for path in BROKEN if not _comments(path, "fix")}
    assert without == {"MS001_empty", "MS001_list"}


def test_findings_of_all_files_of_a_run_are_collected() -> None:
    found = _lint([FOLDER / "MS202_dim.yaml", FOLDER / "MS001_tab.yaml", FOLDER / "MS412_mount.yaml"])
    assert [d.code for d in found] == ["MS001", "MS202", "MS412"]


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_messages_say_what_is_wrong_in_one_plain_line(path: Path) -> None:
    for finding in _lint([path]):
        assert "\n" not in finding.message
        assert not re.search(r"\b(invalid|failed|error|sorry)\b", finding.message, re.IGNORECASE), finding.message
        assert finding.message.count("`") % 2 == 0, finding.message
        assert finding.message[:1] in "`*" or not finding.message[:1].isupper() or finding.message.startswith("YAML")
        assert len(finding.message) < 220, finding.message


# What a reader sees, for findings that differ in kind: caret, hint, second place, chain, several at once.
SHOWN = [
    "MS001_flow_hole", "MS002_rule_twice", "MS003_api_version", "MS101_rule", "MS102_dtype", "MS103_hf",
    "MS104_shape_sum", "MS201_side_by_side", "MS202_axis", "MS202_two_sections", "MS204_sign", "MS206_function",
    "MS207_shared_flavour", "MS301_include_two", "MS303_two", "MS306_major", "MS308_unused", "MS401_needed_thrice",
    "MS403_symbol", "MS412_in_default", "MS428_config_value", "MS501_in_every_layer", "MS501_one_flavour",
    "MS502_hole_missing",
]  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_rendered_findings(name: str, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    golden(f"findings/{name}.txt", render_findings(_lint([FOLDER / f"{name}.yaml"])) + "\n")


@pytest.mark.parametrize("format", ["concise", "json"])
def test_other_formats(format: str, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    names = ("MS202_two_sections", "MS308_unused", "MS501_one_flavour")
    text = render_findings(_lint([Path(f"{name}.yaml") for name in names]), format)
    golden(f"findings/{format}.txt", text.replace(str(FOLDER), ".") + "\n")


def test_no_golden_finding_is_orphaned() -> None:
    there = {path.stem for path in (FOLDER.parent / "golden" / "findings").glob("*.txt")}
    assert there == {*SHOWN, "concise", "json"}


def test_reading_on_after_a_mistake_of_grammar_adds_no_finding_of_its_own(tmp_path: Path) -> None:
    """Whatever entry is broken, what refers to it is not reported: the finding stays the only one."""
    text = (FOLDER / "base.yaml").read_text(encoding="utf-8")
    tried = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not re.match(r"  [a-z_.]+:|      [a-z_0-9.{}]+:", line) or line.startswith(
            ("  name:", "  version:", "  references:")
        ):
            continue
        indent = re.match(" *", line)[0] + "  "  # type: ignore[index]
        broken = text.splitlines()
        if line.endswith("}"):
            broken[number - 1] = line[:-1] + ", bogus: 1}"
        elif line.endswith(":"):
            broken.insert(number, f"{indent}bogus: 1")
        else:
            continue
        path = tmp_path / f"line_{number}.yaml"
        path.write_text("\n".join(broken) + "\n", encoding="utf-8")
        found = _lint([path])
        assert [d.code for d in found] == ["MS101"], f"line {number}: {line}\n{render_findings(found)}"
        tried += 1
    assert tried > 20
