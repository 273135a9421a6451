"""Accepted changes, and versions: on a mapping as small as it gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import CLASSES, Edit, toy_side

from mapspec.diff.accepted import ACCEPTED, accept, read_accepted
from mapspec.diff.compare import compare
from mapspec.diff.model import Report
from mapspec.diff.sides import folder_side
from mapspec.errors import DiffError
from mapspec.render.diff_formats import FORMATS

SWAP, ORDER = CLASSES["DC101"][0], CLASSES["DC102"][0]
FILE = "mappings/toy.yaml"


def report_of(base: Path, head: Path, accepted: Path | None = None) -> Report:
    sides = folder_side(base), folder_side(head)
    return compare(*sides, None if accepted is None else read_accepted(accepted))


def test_what_was_accepted_stays_accepted_until_it_is_another_change(tmp_path: Path) -> None:
    base, head = toy_side(tmp_path / "base"), toy_side(tmp_path / "head", SWAP)
    report = report_of(base, head)
    path = tmp_path / ACCEPTED
    wanted = [change.fingerprint for change in report.changes]
    accept(path, report.changes, wanted[:1], "the published weights were the other way round")
    accept(path, report.changes, wanted[1:], "no release has been made with the old one")
    again = report_of(base, head, path)
    assert not again.open
    assert not again.fails("any")
    assert "accepted  the published weights" in FORMATS["text"](again)
    # Lines move, and fewer models are looked at: the change is the same.
    moved = Edit("moved", (("values:\n", "# one\n# two\nvalues:\n"),), FILE)
    fewer = Edit("fewer", (("[toy, toy-tied]", "[toy-tied]"),), FILE)
    shifted = report_of(toy_side(tmp_path / "other", fewer), toy_side(tmp_path / "shifted", fewer, SWAP, moved), path)
    assert not shifted.open
    # Another change of the same rule is not.
    changed = report_of(base, toy_side(tmp_path / "changed", ORDER), path)
    assert {change.code for change in changed.open} == {"DC102"}
    assert changed.stale == tuple(wanted[:1])
    assert wanted[0] in FORMATS["text"](changed)


def test_accepting_takes_a_reason_and_a_fingerprint(tmp_path: Path) -> None:
    report = report_of(toy_side(tmp_path / "base"), toy_side(tmp_path / "head", SWAP))
    path = tmp_path / ACCEPTED
    with pytest.raises(DiffError, match="MS857"):
        accept(path, report.changes, [report.changes[0].fingerprint], "")
    with pytest.raises(DiffError, match="MS858"):
        accept(path, report.changes, ["0123456789ab"], "a good reason")
    assert not path.exists()
    path.write_text("accepted:\n  0123456789ab: {class: DC101}\n")
    with pytest.raises(DiffError, match="MS857"):
        read_accepted(path)


def test_a_file_of_accepted_changes_keeps_its_comments(tmp_path: Path) -> None:
    report = report_of(toy_side(tmp_path / "base"), toy_side(tmp_path / "head", SWAP))
    path = tmp_path / ACCEPTED
    path.write_text("accepted:\n  0123456789ab:   # seen on Tuesday\n    reason: an older one\n")
    accept(path, report.changes, [report.changes[0].fingerprint], "a good reason")
    assert "# seen on Tuesday" in path.read_text()
    assert len(read_accepted(path).reasons) == 2


def test_versions_that_are_asked_for(tmp_path: Path) -> None:
    base = toy_side(tmp_path / "base")
    wanted = {
        "DC102": "2.0.0",
        "DC106": "2.0.0",
        "DC202": "2.0.0",
        "DC301": "1.1.0",
        "DC404": "1.1.0",
        "DC501": "1.0.0",
    }
    for code, version in wanted.items():
        report = report_of(base, toy_side(tmp_path / code, CLASSES[code][0]))
        spec = next(spec for spec in report.specs if spec.kind == "mapping")
        assert spec.suggested == version, code
        assert spec.bumped == (version == "1.0.0")
    bump = Edit("bump", (("  version: 1.0.0\n", "  version: 2.1.0\n"),), FILE)
    report = report_of(base, toy_side(tmp_path / "bumped", ORDER, bump))
    assert next(spec for spec in report.specs if spec.kind == "mapping").bumped
    assert "DC901" not in {change.code for change in report.changes}


def test_thresholds(tmp_path: Path) -> None:
    base = toy_side(tmp_path / "base")
    bump = Edit("bump", (("  version: 1.0.0\n", "  version: 1.1.0\n"),), FILE)
    expected = {"DC202": (True, True, True), "DC301": (False, True, True), "DC404": (False, False, True)}
    for code, fails in expected.items():
        report = report_of(base, toy_side(tmp_path / code, CLASSES[code][0], *([] if fails[0] else [bump])))
        assert tuple(report.fails(on) for on in ("breaking", "risky", "any")) == fails, code
        assert not report.fails(None)
    refactor = report_of(base, toy_side(tmp_path / "refactor", CLASSES["DC501"][0]))
    assert not refactor.fails("any")
