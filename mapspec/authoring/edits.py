"""Changes to the text of a spec: replacements by offset, so that comments and layout survive."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from mapspec.text import Node

__all__ = ["Edit", "apply_edits", "diff_text", "removal"]


class Edit(NamedTuple):
    """`text` instead of what stands from `start` to `end`."""

    start: int
    end: int
    text: str


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text with every edit made; offsets are those of the text as given, and edits do not overlap."""
    parts: list[str] = []
    done = 0
    for edit in sorted(edits):
        assert edit.start >= done, f"edits overlap at {edit.start}: {edit.text!r}"
        parts += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join([*parts, text[done:]])


def removal(text: str, parent: Node, key: str) -> list[Edit]:
    """Edits that remove `key` from a map: its lines, or its part of a flow map; the map itself if nothing is left."""
    at = next((i for i, (name, _) in enumerate(parent.items) if name.value == key), None)
    if at is None:
        return []
    name, value = parent.items[at]
    if parent.flow:
        if at + 1 < len(parent.items):
            return [Edit(name.start, parent.items[at + 1][0].start, "")]
        before = parent.items[at - 1][1].end if at else name.start
        return [Edit(before, value.end, "")]
    if len(parent.items) == 1:
        return [Edit(parent.start, parent.end, "{}")]
    start = text.rfind("\n", 0, name.start) + 1
    if text[start : name.start].strip():
        return [Edit(name.start, parent.items[at + 1][0].start, "")]  # behind the dash of a list
    end = text.find("\n", value.end)
    return [Edit(start, len(text) if end < 0 else end + 1, "")]


def diff_text(before: str, after: str, path: str) -> str:
    """The difference as a unified diff, empty where there is none."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), path, path, lineterm="")
    return "\n".join(lines)
