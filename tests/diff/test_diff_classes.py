"""Every class of changes has a change that is of it, and one nearby that is not; on a mapping as small as it gets."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from planted import CLASSES, ROOT, Edit, apply_to, toy_side

import mapspec
from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.compare import compare
from mapspec.diff.model import Level, Report
from mapspec.diff.sides import folder_side

# Classes that an edit of one file cannot make; each has a test of its own below.
ELSEWHERE = frozenset({"DC210", "DC401", "DC403", "DC503"})


def compared(base: Path, head: Path) -> Report:
    return compare(folder_side(base), folder_side(head))


def codes(base: Path, head: Path) -> set[str]:
    return {change.code for change in compared(base, head).changes}


@pytest.mark.parametrize("code", sorted(CLASSES))
def test_a_class_fires_and_does_not(code: str, tmp_path: Path) -> None:
    fires, quiet = CLASSES[code]
    base = toy_side(tmp_path / "base")
    if code == "DC402":  # what is published decides whether a tensor was missing
        names = [["layers.{L}.z_scale", [8], "BF16", 1, [0, 1]]]
        (base / "tests" / "keys").mkdir()
        (base / "tests" / "keys" / "toy.json").write_text(json.dumps({"keys": names}))
        shutil.copytree(base, tmp_path / "fires")
        shutil.copytree(base, tmp_path / "quiet")
        apply_to(tmp_path / "fires", fires)
        apply_to(tmp_path / "quiet", quiet)
    else:
        toy_side(tmp_path / "fires", fires)
        toy_side(tmp_path / "quiet", quiet)
    assert code in codes(base, tmp_path / "fires")
    assert code not in codes(base, tmp_path / "quiet")


def test_every_class_has_its_fixtures() -> None:
    assert set(CLASSES) | ELSEWHERE == set(DIFF_CODES)


def test_a_spec_that_comes_or_goes(tmp_path: Path) -> None:
    one, other = toy_side(tmp_path / "one"), toy_side(tmp_path / "other")
    (one / "mappings" / "toy.yaml").unlink()
    assert codes(one, other) == {"DC403"}
    assert codes(other, one) == {"DC210"}
    assert codes(other, other) == set()


def test_a_model_that_is_listed_or_works_again(tmp_path: Path) -> None:
    fewer = Edit("fewer", (("references: [toy, toy-tied]", "references: [toy]"),), "mappings/toy.yaml")
    one, other = toy_side(tmp_path / "one", fewer), toy_side(tmp_path / "other")
    assert codes(one, other) == {"DC401", "DC901"}
    broken = toy_side(tmp_path / "broken", CLASSES["DC208"][0])
    assert "DC401" in codes(broken, other)
    assert "DC401" not in codes(other, other)


def test_a_config_that_differs_is_the_same_for_both_sides(tmp_path: Path) -> None:
    one, other = toy_side(tmp_path / "one"), toy_side(tmp_path / "other")
    path = other / "tests" / "configs" / "toy.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    report = compared(one, other)
    assert {change.code for change in report.changes} == {"DC503"}
    assert not report.fails("any")
    assert codes(one, one) == set()


def test_codes_are_used_and_explained() -> None:
    sources = (p for p in (Path(mapspec.__file__).parent / "diff").glob("*.py") if p.name != "codes.py")
    used = {code for path in sources for code in re.findall(r'"(DC\d{3})"', path.read_text(encoding="utf-8"))}
    assert used == set(DIFF_CODES)
    levels = {"1": Level.SILENT, "2": Level.BREAKING, "3": Level.RISKY, "4": Level.ADDITIVE, "5": Level.NEUTRAL}
    for code, entry in DIFF_CODES.items():
        assert entry.level is levels.get(code[2], Level.RISKY), code
        assert re.fullmatch(r"[a-z-]+", entry.name), code
        assert entry.what.endswith("."), code
        assert entry.fix.endswith("."), code
    assert len({entry.name for entry in DIFF_CODES.values()}) == len(DIFF_CODES)
    assert ROOT.is_dir()
