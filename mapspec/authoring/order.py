"""The order of keys: that of the grammar. Names that the author chose (rules, dims, mounts, ...) keep their order."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mapspec.authoring.edits import Edit, apply_edits
from mapspec.schema import KINDS, provider_v1
from mapspec.text import Node, Path_, parse_nodes

__all__ = ["key_order", "sort_keys"]

# Where classes share fields, or take keys over from Python's words, the order in them is not that of a reader.
_TOP: dict[type[BaseModel], tuple[str, ...]] = {
    provider_v1.Provider: (
        "apiVersion", "kind", "metadata", "extends", "applies", "builds", "include", "dialects", "maps", "values",
        "fields", "constants", "defaults", "derived", "checks", "when", "configs", "freeze", "waived", "export",
        "bridge",
    ),
    provider_v1.Group: ("if", "about", "fields", "constants", "defaults", "derived", "checks", "waived"),
    provider_v1.Check: ("that", "at", "message", "help"),
    provider_v1.SubConfig: ("from", "about"),
}  # fmt: skip


def sort_keys(text: str, path: str, kind: str) -> str:
    """The text with the keys of every part in the order of the grammar; comments above a key move with it.

    Args:
        text: in canonical layout.
        path: for messages of the parser.
        kind: `kind` of the document; of one that the grammar does not know, nothing moves.
    """
    if kind not in KINDS:
        return text
    while edits := list(_unsorted(text, parse_nodes(text, path), kind, ())):
        text = apply_edits(text, edits)
    return text


@cache
def key_order(kind: str, path: Path_) -> tuple[str, ...]:
    """Keys of the grammar at a place of a document, in order; empty where the author chooses the keys."""
    here: Any = KINDS[kind]
    for part in path:
        here = _child(here, part)
    return _keys(here) if _is_model(here) else ()


def _keys(model: type[BaseModel]) -> tuple[str, ...]:
    first = _TOP.get(model, ())
    return (*first, *(k for name, field in model.model_fields.items() if (k := field.alias or name) not in first))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _child(annotation: Any, part: str | int) -> Any:
    """The type below a key or an index; `None` where there is none that has keys."""
    if _is_model(annotation):
        fields = annotation.model_fields
        found = next((f for name, f in fields.items() if (f.alias or name) == part), None)
        return None if found is None else _bare(found.annotation)
    return _bare(get_args(annotation)[-1 if isinstance(part, str) else 0]) if get_args(annotation) else None


def _bare(annotation: Any) -> Any:
    """The type itself, without `Annotated` and without the alternatives that have no keys."""
    while get_origin(annotation) is typing.Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (typing.Union, types.UnionType):
        options = [_bare(option) for option in get_args(annotation)]
        return next((o for o in options if _is_model(o) or get_origin(o) in (dict, tuple)), None)
    return annotation


def _unsorted(text: str, node: Node, kind: str, path: Path_) -> Iterator[Edit]:
    """Edits that sort every part out of order that holds no other such part. Brackets keep the order they have."""
    below = [((*path, key.value), value) for key, value in node.items]
    below += [((*path, i), entry) for i, entry in enumerate(node.entries)]
    inner = [edit for place, child in below for edit in _unsorted(text, child, kind, place)]
    if inner:
        yield from inner
        return
    order = key_order(kind, path) if node.kind == "map" and not node.flow else ()
    names = [key.value for key, _ in node.items]
    wanted = sorted(names, key=lambda name: order.index(name) if name in order else len(order))
    if order and wanted != names:
        edit = _sorted_block(text, node, wanted)
        if edit is not None:
            yield edit


def _sorted_block(text: str, node: Node, wanted: list[str]) -> Edit | None:
    """The lines of the map in another order; each part takes along the comments above it and behind it."""
    first = text.rfind("\n", 0, node.start) + 1
    lead = text[first : node.start]
    parts: dict[str, str] = {}
    start = node.start
    for key, value in node.items:
        end = text.find("\n", value.end)
        end = len(text) if end < 0 else end
        parts[key.value] = text[start:end]
        start = end + 1
    blank = " " * len(lead)
    bodies = []
    for i, name in enumerate(wanted):
        body = parts[name].lstrip("\n")
        plain = body.removeprefix(blank) if body.startswith(blank) else body
        if i == 0 and lead.strip() and plain.startswith("#"):
            return None  # a comment cannot move between a dash and its key
        bodies.append(plain if i == 0 else ("\n" if parts[name].startswith("\n") else "") + blank + plain)
    return Edit(node.start, start - 1, "\n".join(bodies))
