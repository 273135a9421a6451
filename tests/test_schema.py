"""The JSON Schema that editors use: committed as exported, accepts what is right, refuses what the grammar refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_lint_fixtures import BROKEN, FOLDER

import mapspec
from mapspec.errors import SpecError
from mapspec.schema import KINDS, schema_text
from mapspec.text import read_yaml

ROOT = Path(__file__).parents[1]
COMMITTED = Path(mapspec.__file__).parent / "schema" / "mapspec-v1.schema.json"
CODES_OF_SCHEMA = re.compile(r"MS(101|102|103|305)")
# Mistakes that a JSON Schema cannot see: it has no grammar of names, and checks files one by one.
BEYOND = {"MS103_shape"}


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_the_exported_one() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == schema_text(), "write it with: mapspec schema -o " + COMMITTED.name


def _good() -> list[Path]:
    fixtures = [*FOLDER.glob("good_*.yaml"), FOLDER / "base.yaml", *(FOLDER / "parts").glob("*.yaml")]
    return sorted([*fixtures, *(ROOT / "mappings").rglob("*.yaml"), *(ROOT / "providers").rglob("*.yaml")])


@pytest.mark.parametrize("path", _good(), ids=lambda path: path.stem)
def test_accepts_what_is_right(path: Path, validator: jsonschema.protocols.Validator) -> None:
    assert [error.message for error in validator.iter_errors(read_yaml(path).data)] == []


def _expected(path: Path) -> str:
    return re.search(r"^# expect: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]  # type: ignore[index]


@pytest.mark.parametrize(
    "path",
    [p for p in BROKEN if CODES_OF_SCHEMA.match(_expected(p)) and p.stem not in BEYOND],
    ids=lambda path: path.stem,
)
def test_refuses_what_the_grammar_refuses(path: Path, validator: jsonschema.protocols.Validator) -> None:
    try:
        data = read_yaml(path).data
    except SpecError:
        pytest.fail("a fixture of the schema stage is YAML")
    assert not validator.is_valid(data)


@pytest.mark.parametrize(
    "path", [p for p in BROKEN if re.match(r"MS(20[2-9]|21|30[1-4]|4|5)", _expected(p))], ids=lambda path: path.stem
)
def test_accepts_what_later_stages_refuse(path: Path, validator: jsonschema.protocols.Validator) -> None:
    assert validator.is_valid(read_yaml(path).data)


def test_refuses_null_where_nothing_is_inherited(validator: jsonschema.protocols.Validator) -> None:
    document = read_yaml(FOLDER / "base.yaml").data
    assert not validator.is_valid({**document, "dims": {"hidden": None}})
    assert validator.is_valid({**document, "dims": {"hidden": None}, "extends": "other@1"})


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from _objects(value)


def test_every_part_is_closed_and_described() -> None:
    schema = json.loads(schema_text())
    for node in _objects(schema):
        if "$ref" in node:
            assert node["$ref"].rsplit("/", 1)[-1] in schema["$defs"]
    for name, node in schema["$defs"].items():
        if "properties" in node:
            assert node.get("additionalProperties") is False, name
            assert node.get("description"), name
    assert set(KINDS) == {"Mapping", "Provider"}
