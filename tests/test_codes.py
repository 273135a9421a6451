"""Every code that can be printed is explained, and nothing is explained that cannot be printed."""

from __future__ import annotations

import re
from pathlib import Path

import mapspec
from mapspec.codes import CODES

HERE = Path(mapspec.__file__).parent
TABLES = ("codes.py", "file_codes.py", "run_codes.py", "spec_codes.py")


def _used() -> set[str]:
    sources = [path for path in HERE.rglob("*.py") if path.name not in TABLES]
    return {code for path in sources for code in re.findall(r'"(MS\d{3})"', path.read_text(encoding="utf-8"))}


def test_every_code_in_use_has_an_entry() -> None:
    assert sorted(_used() - set(CODES)) == []


def test_every_entry_is_in_use() -> None:
    assert sorted(set(CODES) - _used()) == []


def test_codes_stand_in_one_table_each() -> None:
    text = "".join((HERE / name).read_text(encoding="utf-8") for name in TABLES)
    listed = re.findall(r'^    "(MS\d{3})": Code\(', text, flags=re.MULTILINE)
    assert len(listed) == len(set(listed)) == len(CODES)


def test_entries_are_sentences() -> None:
    assert len({entry.name for entry in CODES.values()}) == len(CODES)
    for code, entry in CODES.items():
        assert re.fullmatch(r"[a-z0-9-]+", entry.name), code
        assert entry.what.endswith("."), code
        assert entry.fix.endswith("."), code


# What is wrong there is an installation, a running job or a part of a model: nothing that two lines of text would show.
WITHOUT_TEXT = re.compile(r"MS(44[0-35-7]|45|46|515)")


def test_codes_about_what_people_write_have_examples() -> None:
    for code, entry in CODES.items():
        if re.match(r"MS[0-5]", code) and not WITHOUT_TEXT.match(code):
            assert entry.wrong, code
            assert entry.right, code
            assert entry.wrong != entry.right, code
