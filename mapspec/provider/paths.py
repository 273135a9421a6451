"""Keys of an HF config as paths: `a.b` is the key `b` of the part `a`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

__all__ = ["ABSENT", "assign", "beneath", "leaves", "look_up"]

ABSENT = object()
"""What `look_up` gives for a key that is not there."""


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """The value at `path`; `ABSENT` where a part of the path is missing or is no mapping."""
    here: Any = config
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return ABSENT
        here = here[key]
    return here


def assign(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at `path`; parts that are missing, or no mappings, are made."""
    *parts, last = path.split(".")
    here = config
    for key in parts:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[last] = value


def beneath(paths: Collection[str]) -> frozenset[str]:
    """Every part that some path leads through."""
    return frozenset(path[:i] for path in paths for i, c in enumerate(path) if c == ".")


def leaves(config: Mapping[str, Any], parts: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a config; mappings are entered only where `parts` lists them."""
    for key, value in config.items():
        path = prefix + str(key)
        if path in parts and isinstance(value, Mapping):
            yield from leaves(value, parts, f"{path}.")
        else:
            yield path, value
