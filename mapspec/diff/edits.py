"""Which parts of a spec read differently, and which rules they matter to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mapspec.diff.model import Cause, Place
from mapspec.diff.sides import Side
from mapspec.errors import SpecError
from mapspec.expr import ExprError, parse_expr
from mapspec.names import parse_name
from mapspec.schema import v1
from mapspec.text import Path_, Tree

__all__ = ["Edit", "edits_between", "reach", "short"]

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Edit:
    """One part of a document that differs: `path` is the place in the document, `file` its path below the root.

    `near`: the line of the head that is left where the part stood."""

    file: str
    path: Path_
    cause: Cause
    near: Place | None = None


def edits_between(old: Tree, new: Tree, base: Side, head: Side, file: str) -> list[Edit]:
    """What differs between two documents, each part once and as deep as it goes; lists are taken as a whole."""
    return [
        Edit(file, path, _cause(path, before, after, old, new, base, head), head.place(new.span(path, of_key=True)))
        for path, before, after in _walk(old.data, new.data, ())
    ]


def _walk(old: Any, new: Any, path: Path_) -> Iterator[tuple[Path_, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _walk(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
        # The order in which segments are listed is their order in the tensor.
        if path[-1:] == ("segments",) and list(old) != list(new) and set(old) == set(new):
            yield path, list(old), list(new)
    elif old != new or type(old) is not type(new):
        yield path, old, new


def _cause(path: Path_, before: Any, after: Any, old: Tree, new: Tree, base: Side, head: Side) -> Cause:
    return Cause(
        ".".join(str(part) for part in path),
        short(before),
        short(after),
        None if before is _ABSENT else base.place(old.span(path, of_key=True)),
        None if after is _ABSENT else head.place(new.span(path, of_key=True)),
    )


def short(value: Any) -> str:
    """A part of a document on one line, empty for what is absent."""
    if value is _ABSENT:
        return ""
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:97]}..."


# --- what a rule depends on ----------------------------------------------------------------------------------------


def reach(spec: v1.Mapping, block: str, key: str, mount: str) -> frozenset[Path_]:
    """The parts of a document that a rule at its mount depends on, as the beginnings of their paths."""
    found: set[Path_] = {
        ("blocks", block, "when"), ("blocks", block, "wildcards"),
        *(("blocks", block, "tensors", key, part) for part in ("hf", "shape", "role", "stored", "flavours", "when")),
    }  # fmt: skip
    rule = spec.blocks[block].tensors[key] if block in spec.blocks else None
    place = spec.mounts.get(mount)
    texts: list[str | None] = []
    names = [key]
    if rule is not None:
        texts += [rule.when, spec.blocks[block].when]
        hf = [rule.hf] if isinstance(rule.hf, str) else list(rule.hf.values())
        names += [*hf, rule.stored or ""]
        for dim in rule.shape or ():
            _dim(spec, dim, found, texts)
        found.add(("roles", rule.role))
        if rule.role in spec.roles:
            texts.append(spec.roles[rule.role].dtype)
        found |= {("flavours", f) for f, flavour in spec.flavours.items() if set(flavour.choices) & set(rule.flavours)}
    if place is not None:
        found |= {
            ("mounts", mount, part)
            for part in ("megatron", "hf", "stored", "blocks", "kinds_of", "pin", "flavours", "when")
        }
        names += [place.megatron, place.hf]
        texts.append(place.when)
        if place.kinds_of is not None:
            _axis(spec, place.kinds_of, found, texts)
            found |= {("kinds", kind) for kind, k in spec.kinds.items() if block in k.blocks}
    for name in names:
        for hole in parse_name(name).holes:
            _axis(spec, hole, found, texts)
    _names(spec, texts, found)
    return frozenset(found)


def _dim(spec: v1.Mapping, name: str, found: set[Path_], texts: list[str | None]) -> None:
    dim = spec.dims.get(name)
    if dim is not None and ("dims", name) not in found:
        found.add(("dims", name))
        texts += [dim.size, *(dim.segments or {}).values()]
        # The counts of an arrangement are names as well.
        texts += [
            word
            for word in (dim.order or "").replace("*", " ").replace("(", " ").replace(")", " ").split()
            if word in spec.values
        ]


def _axis(spec: v1.Mapping, name: str, found: set[Path_], texts: list[str | None]) -> None:
    axis = spec.axes.get(name)
    if axis is not None and ("axes", name) not in found:
        found.add(("axes", name))
        texts += [axis.size, axis.when, *(axis.pattern or ())]
        for part in axis.ravel or ():
            _axis(spec, part, found, texts)


def _names(spec: v1.Mapping, texts: list[str | None], found: set[Path_]) -> None:
    """Follow the names that expressions use."""
    seen: set[str] = set()
    while texts:
        text = texts.pop()
        if text is None or text in seen:
            continue
        seen.add(text)
        try:
            names = parse_expr(text).names
        except (ExprError, SpecError):
            continue
        for name in names:
            if name in spec.values:
                found.add(("values", name))
                texts.append(spec.values[name])
            elif name in spec.flavours:
                found.add(("flavours", name))
            else:
                _axis(spec, name, found, texts)
                _dim(spec, name, found, texts)


def touching(edits: Iterable[Edit], reached: Mapping[str, frozenset[Path_]]) -> tuple[Edit, ...]:
    """The edits that lie within what is reached (by file), or hold it."""
    out = []
    for edit in edits:
        prefixes = reached.get(edit.file, frozenset())
        if any(edit.path[: len(p)] == p or p[: len(edit.path)] == edit.path for p in prefixes):
            out.append(edit)
    return tuple(out)
