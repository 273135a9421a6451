"""YAML text -> plain data, with the place of every key and value.

`composer` gives the node tree of YAML 1.2 with positions; building the plain data from it ourselves keeps a
span for every path and finds every duplicate key, not only the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode
from ruamel.yaml.reader import ReaderError

from mapspec.composer import compose
from mapspec.diagnostics import Diagnostic, Note, Span
from mapspec.errors import SpecError

__all__ = ["Node", "Path_", "Tree", "parse_nodes", "parse_yaml", "read_text", "read_yaml"]

type Path_ = tuple[str | int, ...]
"""Keys and list indices from the top of a document down to a value."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A document as plain data, and where each part of it stands.

    Attributes:
        data: dicts, lists and scalars.
        keys: span of the key (for list items: of the item) at each path.
        values: span of the value at each path.
    """

    data: dict[str, Any]
    keys: Mapping[Path_, Span]
    values: Mapping[Path_, Span]

    def span(self, path: Path_, *, of_key: bool = False) -> Span:
        """Place of the value (or key) at `path`, or of the nearest part above it that is in the text."""
        table = self.keys if of_key else self.values
        while path and path not in table:
            path = path[:-1]
        return table[path] if path in table else self.values[()]


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a YAML text, for whoever edits the text itself.

    Attributes:
        kind: `map`, `list` or `scalar`.
        start, end: offsets in the text; the end of a block collection is that of its last part.
        flow: whether it is a collection in brackets.
        style: of a scalar: its quote, `|` or `>`; empty for plain ones.
        value: of a scalar: what it says.
        items: (key, value) of a map.
        entries: parts of a list.
    """

    kind: str
    start: int
    end: int
    flow: bool = False
    style: str = ""
    value: str = ""
    items: tuple[tuple[Node, Node], ...] = ()
    entries: tuple[Node, ...] = ()

    def at(self, *path: str | int) -> Node | None:
        """The part below it at `path`, or `None`."""
        here: Node | None = self
        for part in path:
            if here is None:
                return None
            if isinstance(part, int):
                here = here.entries[part] if part < len(here.entries) else None
            else:
                here = next((value for key, value in here.items if key.value == part), None)
        return here


def read_text(path: Path) -> str:
    """The text of a spec file.

    Raises:
        SpecError: MS001 where it is missing or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(Diagnostic("MS001", "this file does not exist", Span(str(path)))) from None
    except UnicodeDecodeError as error:
        message = f"this file is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise SpecError(Diagnostic("MS001", message, Span(str(path)), help="save the file as UTF-8")) from None
    except OSError as error:
        message = f"this file cannot be read: {error.strerror}"
        raise SpecError(Diagnostic("MS001", message, Span(str(path)))) from None


def read_yaml(path: Path) -> Tree:
    """Parse the YAML file at `path`.

    Raises:
        SpecError: the file is missing or unreadable (MS001), is no YAML mapping (MS001), or repeats a key (MS002).
    """
    return parse_yaml(read_text(path), str(path))


@lru_cache(maxsize=64)
def parse_yaml(text: str, path: str) -> Tree:
    """Parse `text`; `path` is the name that spans carry.

    Remembered: one command reads the same spec several times (to find it, to link it, to include it), and nothing
    changes a tree.
    """
    builder = _Builder(path)
    data = builder.build(_compose(text, path), ())
    if builder.found:
        raise SpecError(builder.found)
    return Tree(data, builder.keys, builder.values)


def parse_nodes(text: str, path: str) -> Node:
    """The parts of `text` with their offsets; `parse_yaml` has shown that nothing is wrong with it."""
    return _node(_compose(text, path), text)


def _node(node: YamlNode, text: str) -> Node:
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, MappingNode):
        items = tuple((_node(key, text), _node(value, text)) for key, value in node.value)
        return Node("map", start, end if node.flow_style else items[-1][1].end, bool(node.flow_style), items=items)
    if isinstance(node, SequenceNode):
        entries = tuple(_node(entry, text) for entry in node.value)
        return Node("list", start, end if node.flow_style else entries[-1].end, bool(node.flow_style), entries=entries)
    assert isinstance(node, ScalarNode)
    style = node.style or ""
    if style in ("|", ">"):
        end = start + len(text[start:end].rstrip(" \t\n"))
    return Node("scalar", start, end, style=style, value=str(node.value))


def _compose(text: str, path: str) -> MappingNode:
    try:
        root = compose(text)
    except MarkedYAMLError as error:
        raise SpecError(_syntax(error, text, path)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        message = f"YAML syntax: the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise SpecError(Diagnostic("MS001", message, Span(path, line, column))) from None
    except YAMLError as error:
        first_line = str(error).splitlines()[0]
        raise SpecError(Diagnostic("MS001", f"YAML syntax: {first_line}", Span(path))) from None
    except RecursionError:
        raise SpecError(Diagnostic("MS001", "this is nested too deeply to be a spec", Span(path))) from None
    if not isinstance(root, MappingNode):
        message = "this file is empty" if root is None else "a spec is a mapping of keys to values"
        raise SpecError(Diagnostic("MS001", message, Span(path), help="it begins with `apiVersion: mapspec/v1`"))
    return root


class _Builder:
    """Turn nodes into data; remember spans and collect findings on the way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.keys: dict[Path_, Span] = {}
        self.values: dict[Path_, Span] = {}
        self.found: list[Diagnostic] = []
        self.seen: set[int] = set()

    def span(self, node: YamlNode) -> Span:
        start, end = node.start_mark, node.end_mark
        end_col = end.column + 1 if end.line == start.line else 0
        return Span(self.path, start.line + 1, start.column + 1, end_col)

    def build(self, node: YamlNode, at: Path_) -> Any:
        if id(node) in self.seen:
            # The node of an alias is the node of its anchor: it has no place of its own, and may hold itself.
            message = "anchors and aliases (`&`, `*`) are not part of the spec language"
            help_ = "say it once in `values`, `dims` or a block and use that name"
            self.found.append(Diagnostic("MS001", message, self.span(node), help=help_))
            return None
        self.seen.add(id(node))
        self.values[at] = self.span(node)
        tag = str(node.tag)
        if not tag.startswith("tag:yaml.org,2002:"):
            message = f"the tag `{tag}` is not part of the spec language"
            self.found.append(Diagnostic("MS001", message, self.span(node), help="remove it; add quotes to mean text"))
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, at)
        if isinstance(node, SequenceNode):
            items = []
            for i, child in enumerate(node.value):
                self.keys[(*at, i)] = self.span(child)
                items.append(self.build(child, (*at, i)))
            return items
        assert isinstance(node, ScalarNode)
        return self.scalar(node)

    def mapping(self, node: MappingNode, at: Path_) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.found.append(Diagnostic("MS001", "a key has to be a plain word", self.span(key_node)))
                continue
            key = str(key_node.value)
            if str(key_node.tag).endswith(":merge"):
                message = "merge keys (`<<`) are not part of the spec language"
                self.found.append(Diagnostic("MS001", message, self.span(key_node), help="use `extends`"))
                continue
            if key in data:
                first = Note("first given here", self.keys[(*at, key)])
                message = f"key `{key}` is given twice"
                self.found.append(Diagnostic("MS002", message, self.span(key_node), notes=(first,)))
                continue
            self.keys[(*at, key)] = self.span(key_node)
            data[key] = self.build(value_node, (*at, key))
        return data

    def scalar(self, node: ScalarNode) -> Any:
        kind = str(node.tag).rsplit(":", 1)[-1]
        text = node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                digits = text.replace("_", "")
                return int(digits, 0) if digits.lower().startswith(("0o", "0x")) else int(digits)
            if kind == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return text
        return str(text)


# What the parser says -> what it means to someone who writes a spec.
_PLAIN = {
    "mapping values are not allowed here": "a second `key: value` on one line, or a wrong indentation",
    "could not find expected ':'": "a key without `:`",
    "expected <block end>, but found '<block mapping start>'": "this line is indented differently from those above",
    "expected <block end>, but found '<scalar>'": "text after the end of a value; is a quote missing?",
    "expected <block end>, but found '<block sequence start>'": "a list item among keys, or a wrong indentation",
    "did not find expected key": "a key is expected here",
    "found character '\\t' that cannot start any token": "a tab; YAML is indented with spaces",
    "but found another document": "a second document (`---`); a file holds one spec",
    "found unexpected end of stream": "a quote is not closed",
}


def _syntax(error: MarkedYAMLError, text: str, path: str) -> Diagnostic:
    mark = error.problem_mark or error.context_mark
    if error.context_mark and (error.problem or "").endswith(("end of stream", "<stream end>'")):
        mark = error.context_mark  # where the quote or bracket was opened, not the end of the file
    span = Span(path, mark.line + 1, mark.column + 1) if mark else Span(path)
    problem = (error.problem or error.context or "this is not YAML").strip()
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    help_ = None
    if "\\t" in problem:
        help_ = "replace the tab by spaces"
    elif "{" in line or "*" in line:
        # The two traps of names with holes and wildcards: flow style and aliases.
        help_ = "quote names that hold `{`, `}` or begin with `*`, or write them in block style"
    if problem.startswith("found undefined alias"):
        problem, help_ = "`*` begins an alias here", "quote a value or key that begins with `*`"
    elif problem.endswith("but got '<stream end>'"):
        problem = "a bracket is not closed"
    return Diagnostic("MS001", f"YAML syntax: {_PLAIN.get(problem, problem)}", span, help=help_)
