"""A variant while it is being put together: what it says differently from its parent, with the evidence for guesses."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mapspec.text import Path_

__all__ = ["Change", "Draft"]

_PLAIN = re.compile(r"(?:[A-Za-z_(]|\d+\.\d+\.)[^\n\t]*")
_WIDTH = 110
_NO_TEXT = frozenset(("true", "false", "null", "yes", "no", "on", "off", "~"))


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a variant might say.

    Attributes:
        what: what it does, for reports.
        patch: the part of the document, merged by key.
        why: the evidence, put above the key at `at`.
        at: path of the key that the evidence stands above.
        facts: what others conclude from it: provider fields, config keys.
    """

    what: str
    patch: Mapping[str, Any]
    why: str
    at: Path_
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """A document of changes.

    Attributes:
        head: what it says whatever is guessed.
        changes: the guesses.
        notes: comments at the top.
        schema: where editors find the grammar.
    """

    head: Mapping[str, Any]
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    schema: str = "mapspec-v1.schema.json"

    def but(self, *changes: Change) -> Draft:
        """The draft with more changes."""
        return replace(self, changes=(*self.changes, *changes))

    @property
    def data(self) -> dict[str, Any]:
        """The document."""
        out: dict[str, Any] = json.loads(json.dumps(self.head))
        for change in self.changes:
            _merge(out, change.patch)
        return out

    def text(self) -> str:
        """The document as YAML, each guess below the evidence for it."""
        comments: dict[Path_, list[str]] = {}
        for change in self.changes:
            comments.setdefault(change.at, []).append(f"guess: {change.why}")
        lines = [f"# yaml-language-server: $schema={self.schema}", *(["#"] if self.notes else [])]
        lines += [f"# {line}" for note in self.notes for line in textwrap.wrap(note, 116)]
        for i, (key, value) in enumerate(self.data.items()):
            lines += [""] if i and isinstance(value, dict) and key != "metadata" else []
            lines += _lines({key: value}, (), comments)
        return "\n".join(lines) + "\n"


def _merge(out: dict[str, Any], patch: Mapping[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), dict):
            _merge(out[key], value)
        else:
            out[key] = json.loads(json.dumps(value))


def _lines(data: Mapping[str, Any], path: Path_, comments: Mapping[Path_, list[str]]) -> Iterator[str]:
    indent = "  " * len(path)
    for key, value in data.items():
        here = (*path, key)
        for comment in comments.get(here, ()):
            yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, 116 - len(indent)))
        yield from _entry(f"{indent}{_scalar(key)}:", value, here, comments)


def _entry(head: str, value: Any, path: Path_, comments: Mapping[Path_, list[str]]) -> Iterator[str]:
    """A value behind its key: on the key's line where it is short, below it otherwise."""
    inline = f"{head} {_flow(value)}"
    if isinstance(value, dict) and value:
        yield head
        yield from _lines(value, path, comments)
    elif isinstance(value, list) and (len(inline) > _WIDTH or any(isinstance(item, dict) for item in value)):
        yield head
        indent = "  " * len(path)
        for i, item in enumerate(value):
            if isinstance(item, dict):
                first, *more = _lines(item, (*path, i), comments)
                yield f"{indent}- {first.lstrip()}"
                yield from more
            else:
                yield f"{indent}- {_scalar(item)}"
    else:
        yield inline


def _flow(value: Any, *, outer: bool = False) -> str:
    """A value on one line; within brackets more has to be quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(k, flow=True)}: {_flow(v, outer=True)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item, outer=True) for item in value) + "]"
    return _scalar(value, flow=outer)


def _scalar(value: Any, *, flow: bool = False) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    plain = _PLAIN.fullmatch(value) and value == value.strip() and value.lower() not in _NO_TEXT
    if not plain or re.search(r": |:$| #", value) or (flow and re.search(r"[\[\]{},]", value)):
        return json.dumps(value, ensure_ascii=False)
    return value
