"""Write the generated parts of the documentation: the key reference of the spec language, and the table of codes.

    python docs/generate.py            write
    python docs/generate.py --check    exit 1 if something is out of date

The parts stand between `<!-- generated: NAME -->` and `<!-- end of NAME -->`; the rest of a page is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mapspec.codes import CODES
from mapspec.diff.codes import DIFF_CODES
from mapspec.schema import v1

DOCS = Path(__file__).resolve().parent

# In reading order: the document, then its sections from top to bottom.
_MODELS: dict[str, type[BaseModel]] = {
    "The document": v1.Mapping,
    "`metadata`": v1.Metadata,
    "`include`: entries": v1.Include,
    "`flavours`: entries": v1.Flavour,
    "`axes`: entries": v1.Axis,
    "`dims`: entries": v1.Dim,
    "`roles`: entries": v1.Role,
    "`kinds`: entries": v1.Kind,
    "`blocks`: entries": v1.Block,
    "`blocks.*.tensors`: entries": v1.Rule,
    "`blocks.*.tensors.*.flavours`: entries": v1.Spelling,
    "`blocks.*.objects`: items": v1.Objects,
    "`mounts`: entries": v1.Mount,
    "`mounts.*.flavours` and `include.*.remount`: entries": v1.MountSpelling,
    "`tied`: entries": v1.Tie,
}

# Forms of text, known by the pattern that the schema gives them.
_FORMS = {
    r"^[A-Za-z][A-Za-z0-9_]*$": "identifier",
    r"^[^\s\[\]]*$": "name",
    r"^\d+\.\d+\.\d+$": "version",
    r"^[A-Za-z0-9_./-]+@\d+$": "NAME@MAJOR",
}


def spec_reference() -> str:
    """One table per part of a mapping."""
    return "\n\n".join(_section(title, model) for title, model in _MODELS.items())


def _section(title: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    lines = [f"### {title}", "", _doc(model), "", "| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        form = _form(schema["properties"][name], schema.get("$defs", {}))
        lines.append(f"| `{name}` | {form} | {_default(field)} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def _doc(model: type[BaseModel]) -> str:
    return re.sub(r"\s+", " ", (model.__doc__ or "").strip())


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    return f"`{json.dumps(value)}`" if value not in ("", (), {}) else "empty"


def _form(node: dict[str, Any], defs: dict[str, Any]) -> str:
    """What may stand as the value, in a few words."""
    if "$ref" in node:
        return "mapping"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    for key in ("anyOf", "oneOf"):
        if key in node:
            return _alternatives(node[key], defs)
    kind = node.get("type")
    if kind == "array":
        if "prefixItems" in node:
            return "list of " + ", ".join(_form(item, defs) for item in node["prefixItems"])
        return f"list of {_form(node['items'], defs)}"
    if kind == "object":
        return f"{_key_form(node)} -> {_form(node['additionalProperties'], defs)}" if _is_open(node) else _pairs(node)
    if kind == "string":
        return _FORMS.get(node.get("pattern", ""), "reason" if node.get("minLength", 0) > 1 else "text")
    return {"integer": "integer", "number": "number", "boolean": "boolean"}.get(str(kind), "value")


def _alternatives(nodes: list[dict[str, Any]], defs: dict[str, Any]) -> str:
    kinds = {str(node.get("type")) for node in nodes}
    if {"string", "integer", "number", "boolean"} <= kinds:
        return "expression"
    if {"string", "integer"} == kinds - {"null"} and not any("enum" in node for node in nodes):
        return "dim or number"
    given = [node for node in nodes if node.get("type") != "null"]
    return " or ".join(dict.fromkeys(_form(node, defs) for node in given))


def _is_open(node: dict[str, Any]) -> bool:
    return isinstance(node.get("additionalProperties"), dict)


def _pairs(node: dict[str, Any]) -> str:
    """A mapping whose keys have a form."""
    patterns = node.get("patternProperties", {})
    if not patterns:
        return "mapping"
    pattern, value = next(iter(patterns.items()))
    return f"{_FORMS.get(pattern, 'text')} -> {_form(value, {})}"


def _key_form(node: dict[str, Any]) -> str:
    return _FORMS.get(node.get("propertyNames", {}).get("pattern", ""), "text")


# Hundreds of codes, as `mapspec.codes` orders them.
_RANGES = {
    "MS0": "Text of a spec", "MS1": "Grammar", "MS2": "Names and expressions", "MS3": "Linking",
    "MS4": "Config and provider", "MS5": "Coverage and proof", "MS6": "Files of checkpoints",
    "MS7": "Conversion and live models", "MS8": "Verification and authoring", "DC": "Changes that `mapspec diff` finds",
}  # fmt: skip


def codes() -> str:
    """One table per range of codes."""
    all_codes = {**CODES, **DIFF_CODES}
    sections = []
    for prefix, title in _RANGES.items():
        rows = [(code, entry) for code, entry in sorted(all_codes.items()) if code.startswith(prefix)]
        lines = [f"### {title}", "", "| code | name | what it means | what to do |", "|---|---|---|---|"]
        lines += [f"| `{code}` | {e.name} | {_cell(e.what)} | {_cell(e.fix)} |" for code, e in rows]
        sections.append("\n".join(lines))
    left = [code for code in all_codes if not code.startswith(tuple(_RANGES))]
    assert not left, f"codes outside all ranges: {left}"
    return "\n\n".join(sections)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, tuple[Path, Callable[[], str]]] = {
    "spec-reference": (DOCS / "spec_reference.md", spec_reference),
    "codes": (DOCS / "codes.md", codes),
}


def updated() -> Iterator[tuple[Path, str, str]]:
    """(page, its text, the text that it should have) of every page with a generated part."""
    for name, (path, make) in PARTS.items():
        text = path.read_text(encoding="utf-8")
        start, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        assert found, f"{path} has no part `{name}`"
        yield path, text, f"{before}{start}\n\n{make()}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write, or check."""
    stale = [(path, new) for path, old, new in updated() if old != new]
    for path, new in stale:
        if "--check" in arguments:
            print(f"{path.name} is out of date; run: python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(new, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
