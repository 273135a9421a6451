"""Grammar of specs: which Pydantic model reads which document, and its mistakes in mapspec's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mapspec._version import __version__
from mapspec.diagnostics import Diagnostic, Span, nearest
from mapspec.errors import SpecError
from mapspec.schema import provider_v1, v1
from mapspec.schema.export import export
from mapspec.text import Path_, Tree

__all__ = ["API_VERSIONS", "KINDS", "GrammarError", "check_version", "json_schema", "schema_text", "validate"]

API_VERSIONS = ("mapspec/v1",)
KINDS: dict[str, type[BaseModel]] = {"Mapping": v1.Mapping, "Provider": provider_v1.Provider}


@cache
def json_schema(kind: str = "Mapping") -> dict[str, Any]:
    """JSON Schema of documents of that kind, for editors."""
    schema = KINDS[kind].model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def validate[M: BaseModel](tree: Tree, model: type[M]) -> M:
    """Read the document as `model`.

    Raises:
        SpecError: every mistake of the document, each with its place (MS003, MS101 to MS105).
    """
    check_version(tree)
    kind = next((k for k, m in KINDS.items() if m is model), None)
    if kind and tree.data.get("kind") not in (kind, None):
        given = str(tree.data["kind"])
        hint = None if given in KINDS else nearest(given, KINDS)
        raise SpecError(Diagnostic("MS105", f"this is a `{given}`, not a `{kind}`", tree.span(("kind",)), hint=hint))
    try:
        return model.model_validate(tree.data)
    except ValidationError as error:
        schema = json_schema(kind) if kind else model.model_json_schema()
        found = _diagnostics(error.errors(), tree, schema)
        raise GrammarError(found, [_path_in_text(e["loc"], tree.data) for e in error.errors()]) from None


def check_version(tree: Tree) -> None:
    """Refuse a document of a grammar that this release does not read.

    Raises:
        SpecError: MS003, with the release that reads it where that is known.
    """
    version = tree.data.get("apiVersion")
    if version is None or version in API_VERSIONS:
        return
    message = f"`{version}` is no grammar that this mapspec reads"
    reads = f"this is mapspec {__version__}, which reads {', '.join(API_VERSIONS)}"
    numbered = re.fullmatch(r"mapspec/v(\d+)", str(version))
    hint = None if numbered else nearest(str(version), API_VERSIONS)
    # A grammar comes with the release of its number.
    help_ = f"mapspec {numbered[1]}.0 or later reads it; {reads}" if numbered else reads
    raise SpecError(Diagnostic("MS003", message, tree.span(("apiVersion",)), hint=hint, help=help_))


class GrammarError(SpecError):
    """A document does not follow the grammar. `places` are the paths of its mistakes, for whoever reads on."""

    def __init__(self, found: list[Diagnostic], places: list[Path_]) -> None:
        super().__init__(found)
        self.places = places


def _diagnostics(errors: list[ErrorDetails], tree: Tree, schema: dict[str, Any]) -> list[Diagnostic]:
    found = [(error["loc"], _diagnostic(error, tree, schema)) for error in errors]
    # A misspelt key is unknown, and the right one is missing: one mistake, one finding.
    misspelt = {(*loc[:-1], d.hint) for loc, d in found if d.code == "MS101"}
    kept = {d for loc, d in found if d.code != "MS103" or loc not in misspelt}
    return sorted(kept, key=Diagnostic.sort_key)


def _diagnostic(error: ErrorDetails, tree: Tree, schema: dict[str, Any]) -> Diagnostic:
    path = _path_in_text(error["loc"], tree.data)
    about_key = "[key]" in error["loc"]
    name = str(error["loc"][-1])
    kind = error["type"]
    where = ".".join(str(p) for p in path[:-1]) or "the document"
    help_: str | None
    if kind == "extra_forbidden":
        known = sorted(_properties(schema, path[:-1]))
        message = f"unknown key `{path[-1]}` in {_quote(where)}"
        help_ = f"known: {', '.join(known)}"
        if ")" in name:
            help_ = "a comma ends a value in flow style: quote the expression, or write it in block style"
        return Diagnostic("MS101", message, tree.span(path, of_key=True), hint=nearest(name, known), help=help_)
    if kind == "missing":
        parent = ".".join(str(p) for p in path) or "the document"
        return Diagnostic("MS103", f"`{name}` is missing in {_quote(parent)}", _anchor(tree, path))
    span = tree.span(path, of_key=about_key)
    value = error["input"]
    if kind == "literal_error":
        allowed = _allowed(error)
        hint = nearest(str(value), allowed)
        return Diagnostic("MS102", f"`{value}` is not one of {_listed(allowed)}", span, hint=hint)
    if kind == "string_pattern_mismatch":
        pattern = str(error.get("ctx", {}).get("pattern", ""))
        form, help_ = _FORMS.get(pattern, (f"of the form `{pattern}`", None))
        if form == _PINNED:
            return Diagnostic("MS305", f"`{value}` does not pin a version", span, help=help_)
        return Diagnostic("MS104", f"{'key' if about_key else 'value'} `{value}` is not {form}", span, help=help_)
    if kind in ("string_too_short", "too_short"):
        least = error.get("ctx", {}).get("min_length", 1)
        what = "characters" if kind == "string_too_short" else "entries"
        key = next((part for part in reversed(path) if isinstance(part, str)), "")
        if path and about_key:
            return Diagnostic("MS104", "an empty key", span)
        return Diagnostic("MS104", f"`{key}` says too little: at least {least} {what} are expected", span)
    expected = _EXPECTED.get(kind)
    if expected is None:
        return Diagnostic("MS102", f"{_plain(error['msg'])}, not {_kind_of(value)}", span)
    help_ = "write it in quotes" if kind == "string_type" and isinstance(value, int | float) else None
    return Diagnostic("MS102", f"{expected} is expected here, not {_kind_of(value)}", span, help=help_)


# Pydantic's kinds of mistakes -> what should stand there.
_EXPECTED = {
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "position": "`first`, `last` or a number",
}
_PINNED = "pinned"
# Patterns of `v1` -> what they ask for, and an example.
_FORMS: dict[str, tuple[str, str | None]] = {
    v1.IDENTIFIER: ("a plain name", "letters, digits and `_`, beginning with a letter"),
    v1.NAME_PATTERN: ("a tensor name", "names have no spaces and no square brackets"),
    v1.SHAPE_ENTRY: ("a dimension", "name an entry of `dims`, or write a number; arithmetic goes into `dims`"),
    v1.VERSION: ("a version", "three numbers, for example 1.0.0"),
    v1.REFERENCE: (_PINNED, "write the major version too, for example `name@1`"),
}


def _allowed(error: ErrorDetails) -> list[str]:
    expected = str(error.get("ctx", {}).get("expected", ""))
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _quote(where: str) -> str:
    return where if where == "the document" else f"`{where}`"


def _plain(message: str) -> str:
    """Pydantic's sentence without its capital and its words for computers."""
    message = message.replace("Input should be", "this should be").replace("a valid ", "a ")
    return message[:1].lower() + message[1:]


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "nothing")


def _anchor(tree: Tree, path: Path_) -> Span:
    """The key whose value lacks something; the top of the file for the document itself."""
    return tree.span(path, of_key=True) if path in tree.keys else tree.span(path)


def _path_in_text(loc: tuple[str | int, ...], data: Any) -> Path_:
    """The part of a Pydantic location that exists in the text (union tags and `[key]` do not)."""
    path: list[str | int] = []
    here = data
    for part in loc:
        in_dict = isinstance(here, dict) and part in here
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_dict or in_list:
            path.append(part)
            here = here[part]
    return tuple(path)


def _properties(schema: dict[str, Any], path: Path_) -> set[str]:
    """Names that the schema allows at `path`."""
    here = [schema]
    for part in path:
        here = [child for node in here for child in _children(schema, node, part)]
    return {name for node in here for variant in _variants(schema, node) for name in variant.get("properties", {})}


def _children(root: dict[str, Any], node: dict[str, Any], part: str | int) -> Iterator[dict[str, Any]]:
    for variant in _variants(root, node):
        if isinstance(part, int):
            if isinstance(variant.get("items"), dict):
                yield variant["items"]
        elif part in variant.get("properties", {}):
            yield variant["properties"][part]
        elif isinstance(variant.get("additionalProperties"), dict):
            yield variant["additionalProperties"]
        else:
            yield from variant.get("patternProperties", {}).values()


def _variants(root: dict[str, Any], node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _variants(root, root["$defs"][node["$ref"].rsplit("/", 1)[-1]])
        return
    yield node
    for key in ("anyOf", "oneOf", "allOf"):
        for child in node.get(key, ()):
            yield from _variants(root, child)


def schema_text() -> str:
    """The JSON Schema of all kinds of documents, as it is committed beside this module."""
    return export(KINDS)
