"""`mapspec fmt`: the canonical text of a spec. Comments survive, and what the spec says is checked to stay the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.authoring.edits import diff_text
from mapspec.authoring.holes import name_holes
from mapspec.authoring.layout import lay_out
from mapspec.authoring.order import sort_keys
from mapspec.diagnostics import Diagnostic, Span
from mapspec.documents import merged_tree
from mapspec.errors import SpecError
from mapspec.names import NameSyntaxError, parse_name
from mapspec.text import Tree, parse_yaml, read_text

__all__ = ["Formatted", "format_files", "format_text"]


@dataclass(frozen=True, slots=True)
class Formatted:
    """A spec file before and after."""

    path: Path
    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Whether the file is not formatted yet."""
        return self.before != self.after

    @property
    def diff(self) -> str:
        """What formatting changes, as a unified diff."""
        return diff_text(self.before, self.after, str(self.path))

    def finding(self) -> Diagnostic:
        """What `--check` says of a file that is not formatted."""
        lines = zip(self.before.splitlines(), self.after.splitlines(), strict=False)
        first = next((i for i, (a, b) in enumerate(lines, 1) if a != b), 1)
        help_ = f"mapspec fmt {self.path}"
        return Diagnostic("MS861", "this file is not in canonical form", Span(str(self.path), first), help=help_)


def format_files(paths: Iterable[Path]) -> list[Formatted]:
    """Format specs, without writing them.

    Raises:
        SpecError: one is no YAML (MS001, MS002), or formatting would change what it says (MS860); of all files.
    """
    done: list[Formatted] = []
    found: list[Diagnostic] = []
    for path in paths:
        try:
            before = read_text(path)
            done.append(Formatted(path, before, format_text(before, path)))
        except SpecError as error:
            found += error.diagnostics
    if found:
        raise SpecError(found)
    return done


def format_text(before: str, path: Path) -> str:
    """The canonical form of a spec's text.

    Args:
        before: the text.
        path: where it stands; a parent that it extends is found from there.

    Raises:
        SpecError: it is no YAML (MS001, MS002), or formatting would change what it says (MS860).
    """
    name = str(path)
    tree = parse_yaml(before, name)
    kind = str(tree.data.get("kind"))
    merged = _merged(path, tree)
    text = name_holes(before, name, merged) if kind == "Mapping" else before
    text = lay_out(sort_keys(lay_out(text, name), name, kind), name)
    if not _says_the_same(path, tree, merged, text):
        message = "formatting would change what this spec says, so it was left alone"
        raise SpecError(Diagnostic("MS860", message, Span(name), help="please report it with the file"))
    return text


def _says_the_same(path: Path, before: Tree, merged: Tree, text: str) -> bool:
    try:
        after = parse_yaml(text, str(path))
    except SpecError:
        return False
    return before.data == after.data or _meaning(merged) == _meaning(_merged(path, after))


def _merged(path: Path, tree: Tree) -> Tree:
    """The document with what it extends, or by itself where that cannot be read: mistakes are for lint to report."""
    try:
        return merged_tree(path, tree)
    except SpecError:
        return tree


def _meaning(tree: Tree) -> str:
    """What a mapping says, however its names are written: `*` under the axis that it stands for."""
    data = json.loads(json.dumps(tree.data))
    for section in ("blocks", "mounts"):
        for name, part in (data.get(section) or {}).items():
            axes = part.pop("wildcards", None) if isinstance(part, dict) else None
            data[section][name] = _named(part, axes) if axes else part
    return json.dumps(data)


def _named(value: Any, axes: list[str]) -> Any:
    """Every text that reads as a name with `*`, by the names of its holes."""
    if isinstance(value, dict):
        return {_named(key, axes): _named(child, axes) for key, child in value.items()}
    if isinstance(value, list):
        return [_named(child, axes) for child in value]
    if not isinstance(value, str) or "*" not in value:
        return value
    try:
        return str(parse_name(value).named(axes))
    except NameSyntaxError:
        return value
