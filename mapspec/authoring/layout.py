"""The canonical layout of a spec's text: indentation, spacing, quotes. What stands on which line stays.

* Maps and lists in block style are indented by two blanks. Those in brackets that fit one line are written
  `{a: 1, b: [x, y]}`; those over several lines keep their lines.
* Quotes are double, or single around text with double quotes or backslashes; a single word that needs none has none.
* A comment begins with `# `, two blanks or more behind what is on its line, in the column that it had where there is
  room. No trailing blanks, at most one empty line in a row, none at the end.
"""

from __future__ import annotations

import re

from mapspec.text import Node, parse_nodes

__all__ = ["lay_out"]

_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*$")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./@()+<>=-]*")
# What YAML calls blank; to Python, a no-break space is blank too.
_BLANKS = " \t\r\n"
_NO_TEXT = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"))


def lay_out(text: str, path: str) -> str:
    """The text in canonical layout; its data is the same."""
    root = parse_nodes(text, path)
    if root.flow:
        return text.strip(_BLANKS) + "\n"
    writer = _Writer(text)
    writer.head(root.start)
    writer.block(root, 0)
    writer.tail()
    return "\n".join(writer.lines).rstrip(_BLANKS) + "\n"


class _Writer:
    """Writes the parts of a text in their order, and between them the comments and empty lines that stand there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: list[str] = [""]
        self.done = 0  # everything before is written
        self.ended: list[tuple[int, int]] = []  # block collections that ended here: their column before, and now

    def head(self, start: int) -> None:
        """What stands above the first key."""
        self.lines = []
        for line in self.text[:start].split("\n")[:-1]:
            self._own_line(_comment(line) if line.lstrip(_BLANKS).startswith("#") else line.strip(_BLANKS), 0)
        self.lines.append("")
        self.done = start

    def tail(self) -> None:
        """What stands behind the last value."""
        self._gap(len(self.text), 0)

    def block(self, node: Node, column: int) -> None:
        """A collection in block style, the first part of which begins where the writer stands."""
        parts = node.items if node.kind == "map" else tuple((entry, entry) for entry in node.entries)
        for i, (first, value) in enumerate(parts):
            if i:
                # The dash of a list stands before the entry, in the gap.
                self._gap(first.start, column)
                self._new_line(column)
            if node.kind == "map":
                self.lines[-1] += self._scalar(first) + ":"
                self.done = first.end
                self.value(value, column + 2)
            else:
                self.lines[-1] += "-"
                self.done = max(self.done, first.start if i else node.start)
                self.value(value, column + 2, dash=True)
        self.ended.append((self._column(node.start), column))

    def value(self, node: Node, column: int, *, dash: bool = False) -> None:
        """A value behind its key, or an entry behind its dash."""
        if node.kind == "scalar" and node.start == node.end:
            self.lines[-1] += " null"
            return
        gap = self.text[self.done : node.start]
        is_block = node.kind != "scalar" and not node.flow
        if _has_comment(gap) or (is_block and not dash):
            self._gap(node.start, column)
            self._new_line(column)
        else:
            self.lines[-1] += " "
        if is_block:
            self.block(node, column)
            return
        self.done = node.end
        if "\n" in self.text[node.start : node.end]:
            self._raw(node, column)
        else:
            self.lines[-1] += self._in_line(node)

    def _in_line(self, node: Node) -> str:
        if node.kind == "map":
            pairs = (f"{self._in_line(k)}: {self._in_line(v) or 'null'}" for k, v in node.items)
            return "{" + ", ".join(pairs) + "}"
        if node.kind == "list":
            return "[" + ", ".join(self._in_line(entry) for entry in node.entries) + "]"
        return self._scalar(node)

    def _scalar(self, node: Node) -> str:
        raw = self.text[node.start : node.end]
        if node.style not in ("'", '"') or "\n" in raw:
            return raw
        if _WORD.fullmatch(node.value) and node.value.lower() not in _NO_TEXT:
            return node.value
        if node.style == "'" and not re.search(r'["\\]', node.value) and node.value.isprintable():
            return f'"{node.value}"'
        return raw

    def _raw(self, node: Node, column: int) -> None:
        """A value over several lines: its lines, moved as one."""
        first, *more = self.text[node.start : node.end].split("\n")
        self.lines[-1] += first
        filled = [line for line in more if line.strip(_BLANKS)]
        least = min((_indent(line) for line in filled), default=0)
        closing = bool(filled) and filled[-1].strip(_BLANKS) in ("}", "]") and least == _indent(filled[-1])
        shift = (column - 2 if closing else column) - least
        keep = "" if node.style in ("|", ">") else _BLANKS  # blanks at the end are part of a literal text
        for line in more:
            moved = " " * shift + line if shift >= 0 else line[-shift:]
            self.lines.append(moved.rstrip(keep) if line.strip(_BLANKS) else "")

    # --- between the parts -----------------------------------------------------------------------------------------

    def _gap(self, end: int, column: int) -> None:
        """Comments and empty lines up to `end`, where something follows in `column`."""
        first, *more = self.text[self.done : end].split("\n")
        comment = _COMMENT.search(first)
        if comment:
            moved = self._moved()
            self.lines[-1] = self.lines[-1].rstrip(_BLANKS)
            room = self._column(self.done) + comment.start() + moved - len(self.lines[-1])
            self.lines[-1] += " " * max(2, room) + _comment(comment[0])
        following = self._column(end) if end < len(self.text) else -1
        for i, line in enumerate(more):
            comment = _COMMENT.search(line)
            if comment:
                # Deeper than what follows, it belongs to what has ended.
                own = [now for was, now in self.ended if was <= comment.start() and comment.start() > following]
                self._own_line(_comment(comment[0]), max(own, default=column))
            elif not line.strip(_BLANKS) and i < len(more) - 1:
                self._own_line("", 0)
        self.ended.clear()
        self.done = end

    def _new_line(self, column: int) -> None:
        self.lines.append(" " * column)

    def _own_line(self, text: str, column: int) -> None:
        if text or (self.lines and self.lines[-1].strip(_BLANKS)):
            self.lines.append(" " * column + text if text else "")

    def _moved(self) -> int:
        """How far the line that is being written has moved sideways as a whole."""
        start = self.text.rfind("\n", 0, self.done) + 1
        line = self.text[start : self.done]
        return _indent(self.lines[-1]) - _indent(line)

    def _column(self, offset: int) -> int:
        return offset - (self.text.rfind("\n", 0, offset) + 1)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(_BLANKS))


def _comment(text: str) -> str:
    """The comment with a blank behind its `#`."""
    text = text.strip(_BLANKS)
    return f"# {text[1:]}" if len(text) > 1 and text[1] not in "# !" else text


def _has_comment(gap: str) -> bool:
    return any(_COMMENT.search(line) for line in gap.split("\n"))
