"""Axes: what names count. Their sizes, the kinds of their positions, and axes made of two others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import nearest

if TYPE_CHECKING:
    from mapspec.bind_values import BoundScope

__all__ = ["BoundAxis", "Position", "bind_axes", "bind_axis", "ravel", "unravel"]

type Position = Mapping[str, Any]
"""Axis -> index, counted from 0; for what `**` stands for, its text."""

_MOST_POSITIONS = 1_000_000  # positions are written out one by one; a config must not be able to fill the memory


@dataclass(frozen=True, slots=True)
class BoundAxis:
    """An axis with its size. `kinds` names the kind of each position of a patterned axis."""

    name: str
    size: int
    kinds: tuple[str, ...] = ()
    ravel: tuple[str, str] | None = None
    parallel: str | None = None


def ravel(outer: int, inner: int, inner_size: int) -> int:
    """Position in the row of all positions: `outer * inner_size + inner`."""
    return outer * inner_size + inner


def unravel(flat: int, inner_size: int) -> tuple[int, int]:
    """The inverse of `ravel`: `(outer, inner)`."""
    return divmod(flat, inner_size)


def bind_axes(scope: BoundScope) -> None:
    """Fill `scope.axes` with sizes and kinds of all its axes; findings go to the scope."""
    for name in scope.spec.axes:
        bind_axis(scope, name)


def bind_axis(scope: BoundScope, name: str) -> BoundAxis:
    """An axis with its size, computed when it is first asked for: sizes may refer to other axes in any order."""
    if name not in scope.axes:
        axis = scope.spec.axes[name]
        if axis.ravel is not None:
            outer, inner = (bind_axis(scope, part) for part in axis.ravel)
            bound = BoundAxis(name, outer.size * inner.size, ravel=axis.ravel)
        elif axis.pattern is not None:
            kinds = _kinds(scope, name)
            bound = BoundAxis(name, len(kinds), kinds, parallel=axis.parallel)
        else:
            bound = BoundAxis(name, _size(scope, name, axis.size or "0"), parallel=axis.parallel)
        scope.axes[name] = bound
    return scope.axes[name]


def _size(scope: BoundScope, name: str, text: str) -> int:
    span = scope.scope.span("axes", name, "size")
    size = scope.evaluate(text, span, what="size")
    if size is None:
        return 0
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        scope.report("MS402", f"axis `{name}` has {size!r} positions; a count is a whole number", span)
        return 0
    if size > _MOST_POSITIONS:
        scope.report("MS402", f"axis `{name}` has {size:,} positions; no model has that many", span)
        return 0
    return size


def _kinds(scope: BoundScope, name: str) -> tuple[str, ...]:
    """The kind of each position, from every config value that spells it."""
    axis = scope.spec.axes[name]
    at = ("axes", name, "pattern")
    if axis.when is not None and not scope.holds(axis.when, scope.scope.span("axes", name, "when")):
        return ()
    spelled: list[tuple[str, tuple[str, ...]]] = []
    for i, text in enumerate(axis.pattern or ()):
        value = scope.evaluate(f"default({text}, none)", scope.scope.span(*at, i))
        if value is not None:
            spelled.append((text, _read_pattern(scope, name, text, value)))
    if not spelled:
        keys = ", ".join(f"`{text.removeprefix('hf.')}`" for text in axis.pattern or ())
        hint = next((h for text in axis.pattern or () if (h := nearest(text.removeprefix("hf."), scope.hf))), None)
        message = f"the config has none of {keys}, which spell the kind of each {name}"
        scope.report("MS401", message, scope.scope.span(*at), hint=hint)
        return ()
    first_text, kinds = spelled[0]
    for text, other in spelled[1:]:
        if other != kinds:
            where = next(
                (i for i, (a, b) in enumerate(zip(kinds, other, strict=False)) if a != b), min(len(kinds), len(other))
            )
            message = (
                f"the config contradicts itself: `{first_text.removeprefix('hf.')}` and `{text.removeprefix('hf.')}` "
                f"differ at {name} {where} ({len(kinds)} and {len(other)} positions)"
            )
            scope.report("MS404", message, scope.scope.span(*at), help="remove one of the two, or make them agree")
            return kinds
    if axis.length is not None:
        span = scope.scope.span("axes", name, "length")
        length = scope.evaluate(f"default({axis.length}, none)", span)
        if length is not None and length != len(kinds):
            message = (
                f"the config contradicts itself: `{first_text.removeprefix('hf.')}` spells {len(kinds)} positions, "
                f"`{axis.length.removeprefix('hf.')}` is {length}"
            )
            scope.report(
                "MS405", message, span, help="one of the two is wrong; the pattern decides what is in the files"
            )
    return kinds


def _read_pattern(scope: BoundScope, name: str, text: str, value: Any) -> tuple[str, ...]:
    symbols = {symbol: kind for kind, spec in scope.spec.kinds.items() for symbol in spec.symbols}
    span = scope.scope.span("axes", name, "pattern")
    if not isinstance(value, str | Sequence):
        scope.report("MS402", f"`{text.removeprefix('hf.')}` is {value!r}, neither text nor a list", span)
        return ()
    unknown: dict[str, list[int]] = {}
    kinds = []
    for i, symbol in enumerate(value):
        kind = symbols.get(symbol) if isinstance(symbol, str) else None
        if kind is None:
            unknown.setdefault(str(symbol), []).append(i)
        kinds.append(kind or "?")
    for symbol, places in unknown.items():
        known = ", ".join(f"`{s}`" for s in symbols)
        where = f"position {places[0]}" + (f" and {len(places) - 1} more" if places[1:] else "")
        message = f"`{text.removeprefix('hf.')}` has the unknown symbol `{symbol}` at {where}"
        hint = nearest(symbol, symbols)
        scope.report("MS403", message, span, hint=hint, help=f"known: {known}; a new kind is added under `kinds`")
    return tuple(kinds)
