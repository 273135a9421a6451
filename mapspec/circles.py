"""Values, dims and axes that need each other in a circle: found in the text, before any config is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from mapspec.arrange import ArrangementError, parse_arrangement
from mapspec.expr import ExprError, parse_expr
from mapspec.schema import v1
from mapspec.text import Path_

__all__ = ["circles"]


def circles(spec: v1.Mapping) -> Iterator[tuple[str, Path_, str]]:
    """Each circle once: the name that it is entered by, the path of that, and the names one after another."""
    places: dict[str, Path_] = {}
    needs: dict[str, list[str]] = {}
    for section in ("values", "dims", "axes"):
        for name, entry in getattr(spec, section).items():
            places.setdefault(name, (section, name))
            needs.setdefault(name, sorted(_needs(entry)))
    done: set[str] = set()
    for start in needs:
        path: list[str] = []
        stack = [(start, 0)] if start not in done else []
        while stack:
            name, i = stack.pop()
            if i == 0:
                path.append(name)
            if i == len(needs[name]):
                path.pop()
                done.add(name)
                continue
            stack.append((name, i + 1))
            other = needs[name][i]
            if other in path and other not in done:
                yield other, places[other], " -> ".join([*path[path.index(other) :], other])
                done.update(path)
            elif other in needs and other not in done:
                stack.append((other, 0))


def _needs(entry: str | v1.Dim | v1.Axis) -> set[str]:
    """Names that the size or value of an entry is computed from. What cannot be read is reported elsewhere."""
    texts: list[str | None]
    names: set[str] = set()
    if isinstance(entry, str):
        texts = [entry]
    elif isinstance(entry, v1.Dim):
        texts = [entry.size, *(entry.segments or {}).values()]
        with suppress(ArrangementError):
            names = set().union(*(node.counts() for node in parse_arrangement(entry.order or "x")))
    else:
        texts = [entry.size, entry.length, entry.when, *(entry.pattern or ())]
        names = set(entry.ravel or ())
    for text in texts:
        with suppress(ExprError):
            names |= parse_expr(text).names if text is not None else set()
    return names
