"""Axes: what names count. Their sizes, the kinds of their positions, and axes made of two others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import nearest

if TYPE_CHECKING:
    from mapspec.bind import BoundScope

__all__ = ["BoundAxis", "Position", "bind_axes", "ravel", "unravel"]

type Position = Mapping[str, int]
"""Axis -> index, counted from 0."""


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


def bind_axes(scope: BoundScope) -> dict[str, BoundAxis]:
    """Sizes and kinds of all axes of a scope; findings go to the scope."""
    out: dict[str, BoundAxis] = {}
    scope.axes = out
    declared = scope.spec.axes
    # Sizes may refer to other axes in any order; raveled ones come last, they need both parts.
    for name, axis in declared.items():
        if axis.pattern is not None:
            kinds = _kinds(scope, name)
            out[name] = BoundAxis(name, len(kinds), kinds)
    for name, axis in declared.items():
        if axis.size is not None:
            out[name] = BoundAxis(name, _size(scope, name, axis.size), parallel=axis.parallel)
    for name, axis in declared.items():
        if axis.ravel is not None:
            outer, inner = axis.ravel
            out[name] = BoundAxis(name, out[outer].size * out[inner].size, ravel=(outer, inner))
    return out


def _size(scope: BoundScope, name: str, text: str) -> int:
    span = scope.scope.span("axes", name, "size")
    size = scope.evaluate(text, span, what="size")
    if size is None:
        return 0
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        scope.report("MS402", f"axis `{name}` has {size!r} positions; a count is a whole number", span)
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
    kinds = []
    for i, symbol in enumerate(value):
        if symbol not in symbols:
            known = ", ".join(f"`{s}`" for s in symbols)
            message = f"`{text.removeprefix('hf.')}` has the unknown symbol `{symbol}` at position {i}"
            hint = nearest(str(symbol), symbols)
            scope.report("MS403", message, span, hint=hint, help=f"known: {known}; a new kind is added under `kinds`")
        kinds.append(symbols.get(symbol, "?"))
    return tuple(kinds)
