"""The JSON Schema of spec files as they are written: what editors check and complete while someone types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

__all__ = ["export"]

_OWN = ("apiVersion", "kind", "metadata")  # what a variant does not inherit


def export(kinds: Mapping[str, type[BaseModel]]) -> str:
    """One schema for all kinds of documents.

    A file with `extends` holds parts of a document, and `null` removes what the parent has: every definition comes a
    second time, as `PartNAME`, with nothing required and `null` allowed.
    """
    references, schema = models_json_schema([(model, "validation") for model in kinds.values()])
    names = {kind: references[model, "validation"]["$ref"].rsplit("/", 1)[-1] for kind, model in kinds.items()}
    whole: dict[str, Any] = schema["$defs"]
    parts = {f"Part{name}": _partial(node) for name, node in whole.items()}
    for name in names.values():
        part, properties = parts[f"Part{name}"], whole[name]["properties"]
        part["properties"].update({key: properties[key] for key in _OWN})
        part["properties"]["extends"] = _without_null(properties["extends"])
        part["required"] = [*_OWN, "extends"]
    top: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mapspec/v1",
        # Editors show the mistakes of the branch that `if` chooses; `oneOf` would show those of all branches.
        "if": {"properties": {"kind": {"const": "Provider"}}, "required": ["kind"]},
        "then": _whole_or_part(names["Provider"]),
        "else": _whole_or_part(names["Mapping"]),
        "$defs": {**whole, **parts},
    }
    return json.dumps(top, indent=2, ensure_ascii=False) + "\n"


def _whole_or_part(name: str) -> dict[str, Any]:
    return {
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/$defs/Part{name}"},
        "else": {"$ref": f"#/$defs/{name}"},
    }


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    """The schema of an optional value without its `null`."""
    variants = [variant for variant in node["anyOf"] if variant.get("type") != "null"]
    return {**{key: value for key, value in node.items() if key not in ("anyOf", "default")}, **variants[0]}


def _partial(node: Any) -> Any:
    if isinstance(node, list):
        return [_partial(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "patternProperties"):
            out[key] = {name: _or_null(_partial(child)) for name, child in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            out[key] = _or_null(_partial(value))
        elif key == "$ref":
            out[key] = value.replace("/$defs/", "/$defs/Part")
        elif key != "required":
            out[key] = value if key in ("const", "enum", "default", "propertyNames") else _partial(value)
    return out


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [node, {"type": "null"}]}
