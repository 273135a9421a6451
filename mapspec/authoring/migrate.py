"""`mapspec migrate`: spec files in an older spelling, brought to the current one as edits of their text.

There is one grammar, `mapspec/v1`, and nothing in it has been renamed yet, so `MIGRATIONS` is empty. Whoever renames a
key of the grammar adds a line here, and `migrate` finds the old spelling at that place in any document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapspec.authoring.edits import Edit, apply_edits, diff_text
from mapspec.diagnostics import Diagnostic, Span
from mapspec.errors import SpecError
from mapspec.schema import check_version
from mapspec.text import Node, Path_, parse_nodes, parse_yaml, read_text

__all__ = ["MIGRATIONS", "Migrated", "Renamed", "migrate_files"]

_ANY = "*"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A key of the grammar that has another name now.

    Attributes:
        kind: kind of the documents that have it.
        at: path to the key, `*` standing for any key or index; the last part is the former name.
        new: the name now.
        since: first release of mapspec that knows it.
    """

    kind: str
    at: Path_
    new: str
    since: str


MIGRATIONS: tuple[Renamed, ...] = ()
"""Every change of spelling, oldest first."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """A file before and after."""

    path: Path
    before: str
    after: str
    found: tuple[Diagnostic, ...]

    @property
    def diff(self) -> str:
        """What changes, as a unified diff."""
        return diff_text(self.before, self.after, str(self.path))


def migrate_files(paths: Iterable[Path], migrations: Sequence[Renamed] = MIGRATIONS) -> list[Migrated]:
    """Bring spec files up to date, without writing them.

    Args:
        paths: the files.
        migrations: what has changed.

    Raises:
        SpecError: a file is no YAML (MS001, MS002), or of a grammar that this release does not read (MS003).
    """
    done: list[Migrated] = []
    found: list[Diagnostic] = []
    for path in paths:
        try:
            done.append(_migrated(path, migrations))
        except SpecError as error:
            found += error.diagnostics
    if found:
        raise SpecError(found)
    return done


def _migrated(path: Path, migrations: Sequence[Renamed]) -> Migrated:
    before = text = read_text(path)
    found: list[Diagnostic] = []
    for step in migrations:
        tree = parse_yaml(text, str(path))
        if tree.data.get("kind") != step.kind:
            continue
        keys = list(_matching(parse_nodes(text, str(path)), step.at))
        text = apply_edits(text, (Edit(key.start, key.end, step.new) for key in keys))
        found += [_finding(path, before, key, step) for key in keys]
    check_version(parse_yaml(text, str(path)))
    return Migrated(path, before, text, tuple(found))


def _matching(node: Node, at: Path_) -> Iterator[Node]:
    """Keys at a path."""
    first, *rest = at
    for key, value in node.items:
        if first in (_ANY, key.value):
            if rest:
                yield from _matching(value, tuple(rest))
            else:
                yield key
    if first == _ANY and rest:
        for entry in node.entries:
            yield from _matching(entry, tuple(rest))


def _finding(path: Path, text: str, key: Node, step: Renamed) -> Diagnostic:
    line = text.count("\n", 0, key.start) + 1
    column = key.start - text.rfind("\n", 0, key.start)
    message = f"`{step.at[-1]}` is called `{step.new}` since mapspec {step.since}"
    span = Span(str(path), line, column, column + len(str(step.at[-1])))
    return Diagnostic("MS866", message, span, help=f"mapspec migrate {path}")
