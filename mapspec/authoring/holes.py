"""Named holes instead of wildcards: `layers.*.weight` becomes `layers.{layer}.weight` where `wildcards` says so.

`**`, which stands for the rest of a name, stays: there is at most one in a name, so it needs no name of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mapspec.authoring.edits import Edit, apply_edits, removal
from mapspec.text import Node, Path_, Tree, parse_nodes

__all__ = ["name_holes"]

_STARS = re.compile(r"\*+")


def name_holes(text: str, path: str, merged: Tree) -> str:
    """The text with every `*` named after its axis, and without `wildcards` that then are not needed any more.

    Args:
        text: the file.
        path: the file, as `merged` calls it.
        merged: the document with what it extends, whose `wildcards` count for the names of this file too.
    """
    root = parse_nodes(text, path)
    edits: list[Edit] = []
    for section, names_of in (("blocks", _names_of_block), ("mounts", _names_of_mount)):
        for name, part in (merged.data.get(section) or {}).items():
            at = (section, name)
            axes = part.get("wildcards") if isinstance(part, dict) else None
            if not isinstance(axes, list):
                continue
            left = made = 0
            for below, of_key, pattern in names_of(part):
                place = (*at, *below)
                named = _named(pattern, axes)
                own = merged.span(place, of_key=of_key).path == path
                node = _node(root, place, of_key) if own else None
                if of_key and named != pattern and root.at(*place[:-1], named or "") is not None:
                    node = None  # the key would stand twice
                if named is None or node is None:
                    left += "*" in pattern.replace("**", "")
                elif named != pattern:
                    edits.append(_written(text, root, place, node, axes))
                    made += 1
            here = root.at(*at)
            if made and not left and here is not None and here.at("wildcards") is not None:
                edits += removal(text, here, "wildcards")
    return apply_edits(text, edits)


def _named(pattern: str, axes: Sequence[Any]) -> str | None:
    """The name with holes; `None` where there are not enough axes for its wildcards."""
    names = iter(axes)
    try:
        return _STARS.sub(lambda m: "{" + str(next(names)) + "}" if m[0] == "*" else m[0], pattern)
    except (StopIteration, RuntimeError):
        return None


def _written(text: str, root: Node, place: Path_, node: Node, axes: Sequence[Any]) -> Edit:
    raw = _named(text[node.start : node.end], axes) or ""
    inside = any(part is not None and part.flow for part in (root.at(*place[:i]) for i in range(len(place))))
    return Edit(node.start, node.end, f'"{raw}"' if inside and not node.style else raw)


def _node(root: Node, place: Path_, of_key: bool) -> Node | None:
    if not of_key:
        return root.at(*place)
    parent = root.at(*place[:-1])
    return next((key for key, _ in parent.items if key.value == place[-1]), None) if parent else None


def _names_of_block(block: Mapping[str, Any]) -> Iterator[tuple[Path_, bool, str]]:
    """(path within the block, whether it is a key, name) of every name that `wildcards` counts for."""
    tensors = block.get("tensors")
    for key, rule in (tensors if isinstance(tensors, dict) else {}).items():
        yield ("tensors", key), True, key
        for below, name in _spellings(rule):
            yield ("tensors", key, *below), False, name


def _names_of_mount(mount: Mapping[str, Any]) -> Iterator[tuple[Path_, bool, str]]:
    for below, name in _spellings(mount):
        yield below, False, name


def _spellings(part: Any) -> Iterator[tuple[Path_, str]]:
    if not isinstance(part, dict):
        return
    for side in ("megatron", "hf", "stored"):
        value = part.get(side)
        if isinstance(value, str):
            yield (side,), value
        elif isinstance(value, dict):
            yield from (((side, segment), name) for segment, name in value.items() if isinstance(name, str))
    flavours = part.get("flavours")
    for choice, spelling in (flavours if isinstance(flavours, dict) else {}).items():
        yield from ((("flavours", choice, *below), name) for below, name in _spellings(spelling))
