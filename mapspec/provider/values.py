"""One value of an HF config <-> one value of a provider field: value maps and the spellings of layer patterns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mapspec.schema import provider_v1 as v1

__all__ = ["NoCounterpartError", "from_hf", "same", "to_hf"]

type Maps = Mapping[str, Mapping[str, tuple[str, ...]]]


class NoCounterpartError(ValueError):
    """A value has no counterpart on the other side. `known` are the values that have one."""

    def __init__(self, message: str, value: Any, known: Collection[str] = ()) -> None:
        super().__init__(message)
        self.value = value
        self.known = tuple(known)


def from_hf(field: v1.ProviderField, key: str, value: Any, maps: Maps) -> Any:
    """The provider's value for what an HF config says under `key`.

    Raises:
        NoCounterpartError: the value is of another kind than the key holds, or is in no map.
    """
    spelling = field.hf[key]
    if spelling.symbols is not None:
        symbols = maps[spelling.symbols]
        if not isinstance(value, str) or not value:
            raise NoCounterpartError(f"`{key}` is {value!r}, not a pattern of layer symbols", value)
        for i, symbol in enumerate(value):
            if symbol not in symbols:
                raise NoCounterpartError(f"`{key}` has the unknown symbol `{symbol}` at position {i}", symbol, symbols)
        return value
    if spelling.names is not None:
        if not isinstance(value, list | tuple) or not value:
            raise NoCounterpartError(f"`{key}` is {value!r}, not a list of layer names", value)
        table = _inverse(maps[spelling.names])
        for i, name in enumerate(value):
            if name not in table:
                raise NoCounterpartError(f"`{key}` has the unknown name `{name}` at position {i}", name, table)
        return "".join(table[name] for name in value)
    if field.map is not None:
        table = _inverse(maps[field.map])
        if not isinstance(value, str) or value not in table:
            raise NoCounterpartError(f"`{key}` has the unknown value `{value}`", value, table)
        return table[value]
    return value


def to_hf(field: v1.ProviderField, key: str, value: Any, maps: Maps, prefer: Collection[str] = ()) -> Any:
    """What an HF config says under `key` for that provider value.

    Args:
        prefer: HF names to choose where several mean the same.

    Raises:
        NoCounterpartError: no HF value means this.
    """
    spelling = field.hf[key]
    if value is None:
        return None
    if spelling.symbols is not None:
        for symbol in value:
            if symbol not in maps[spelling.symbols]:
                raise NoCounterpartError(f"no layer name means the symbol `{symbol}`", symbol, maps[spelling.symbols])
        return value
    if spelling.names is not None:
        return [_choose(maps[spelling.names], symbol, prefer) for symbol in value]
    return _choose(maps[field.map], value, prefer) if field.map is not None else value


def _choose(table: Mapping[str, tuple[str, ...]], value: Any, prefer: Collection[str]) -> str:
    if value not in table:
        raise NoCounterpartError(f"Hugging Face has no name for `{value}`", value, table)
    return next((name for name in table[value] if name in prefer), table[value][0])


def _inverse(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: value for value, names in table.items() for name in names}


def same(a: Any, b: Any) -> bool:
    """Whether two config values mean the same: numbers by value, `true` is no number, lists item by item."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)
