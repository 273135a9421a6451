"""`config.json` as a dictionary and back, without losing what makes the file readable to its other readers.

Real configs spell infinity in three ways: bare `Infinity` (which strict JSON readers refuse), `1e308` (a number like
any other, kept as it is), and `{"__float__": "Infinity"}`. A config is written back in the spelling, indentation and
character set of the text it came from, so that a diff against the original shows the changed keys only.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic, Span
from mapspec.errors import CheckpointError

__all__ = ["parse_config", "read_config", "write_config"]

_FLOAT_KEY = "__float__"
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
# What is needed to follow keys through a text that is known to be JSON: strings, brackets, and the colon after a key.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file.

    Args:
        path: the file itself, usually `.../config.json`.

    Returns:
        The object in file order; every spelling of infinity but `1e308` has become a float.

    Raises:
        CheckpointError: the file is absent or unreadable (MS602), is not JSON or not an object (MS603), or has the same
            key twice (MS604).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise CheckpointError(
            Diagnostic(
                "MS602",
                f"`{path.name}` {why}",
                where=str(path),
                help="point at a Hugging Face folder with its `config.json`, or put that file beside the weights",
            )
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            Diagnostic(
                "MS603",
                f"`{path.name}` is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}",
                where=str(path),
                help="save the file as UTF-8, or fetch it again",
            )
        ) from error
    return parse_config(text, str(path))


def parse_config(text: str, path: str) -> dict[str, Any]:
    """The config in `text`; `path` only names it in findings. Raises as `read_config` does."""
    repeated: list[str] = []
    unknown: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> Any:
        built = dict(pairs)
        if len(built) != len(pairs):
            seen: set[str] = set()
            repeated.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        if len(pairs) == 1 and pairs[0][0] == _FLOAT_KEY:
            spelled = pairs[0][1]
            if isinstance(spelled, str) and spelled in _FLOATS:
                return _FLOATS[spelled]
            if isinstance(spelled, float) and not math.isfinite(spelled):
                return spelled
            unknown.append(json.dumps(spelled))
        return built

    try:
        config = json.loads(text, object_pairs_hook=build)
    except json.JSONDecodeError as error:
        reason = error.msg[:1].lower() + error.msg[1:]
        raise CheckpointError(
            Diagnostic(
                "MS603",
                f"not JSON: {reason}",
                span=Span(path, error.lineno, error.colno),
                help="correct the file at this place, or fetch it again",
            )
        ) from error
    except RecursionError as error:
        raise CheckpointError(Diagnostic("MS603", "nested too deeply to be a config", where=path)) from error
    found = [
        Diagnostic(
            "MS604",
            f"key `{key}` stands here a second time",
            span=span,
            help="keep one of the two; readers disagree about which one counts",
        )
        for key, span in (_second_keys(text, path) if repeated else ())
    ]
    found += [
        Diagnostic(
            "MS603",
            f'`{_FLOAT_KEY}` holds {value}; known are "Infinity", "-Infinity" and "NaN"',
            where=path,
            help="write the number itself",
        )
        for value in unknown
    ]
    if not found and not isinstance(config, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(type(config), "a number")
        found.append(
            Diagnostic("MS603", f"a config is a JSON object, this is {kind}", span=Span(path), help="fetch it again")
        )
    if found:
        raise CheckpointError(found)
    assert isinstance(config, dict)
    return config


def _second_keys(text: str, path: str) -> list[tuple[str, Span]]:
    """Every key that its object already has, and where the repetition stands. `text` must be JSON."""
    found: list[tuple[str, Span]] = []
    open_objects: list[set[str] | None] = []
    last: re.Match[str] | None = None
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == "{":
            open_objects.append(set())
        elif mark == "[":
            open_objects.append(None)
        elif mark in "}]":
            open_objects.pop()
        elif mark == ":":
            assert last is not None
            key: str = json.loads(last.group(), strict=False)
            keys = open_objects[-1]
            assert keys is not None
            if key in keys:
                line = text.count("\n", 0, last.start()) + 1
                start = last.start() - (text.rfind("\n", 0, last.start()) + 1) + 1
                found.append((key, Span(path, line, start, start + len(last.group()))))
            keys.add(key)
        else:
            last = token
    return found


@dataclass(frozen=True, slots=True)
class _Dialect:
    indent: str | None = "  "
    newline: bool = True
    ascii_only: bool = True
    infinity_as_object: bool = False
    separators: tuple[str, str] = (",", ": ")


def _dialect(text: str) -> _Dialect:
    first = re.match(r"\s*\{[ \t]*\r?\n([ \t]*)\"", text)
    return _Dialect(
        indent=first.group(1) if first else None,
        newline=text.endswith("\n"),
        ascii_only=text.isascii(),
        infinity_as_object=f'"{_FLOAT_KEY}"' in text,
        separators=("," if first or not re.search(r",\s", text) else ", ", ": " if re.search(r'":\s', text) else ":"),
    )


def write_config(config: dict[str, Any], like: str | None = None) -> bytes:
    """The config as UTF-8 text.

    Args:
        config: what to write, keys in the order in which they shall stand.
        like: the text whose dialect to follow: indentation, spelling of infinity, non-ASCII characters as they are or
            escaped, trailing newline. Without it: two spaces, bare `Infinity` (which every transformers release reads),
            ASCII, trailing newline.

    Returns:
        Bytes that `read_config` turns into an equal dictionary again.
    """
    dialect = _Dialect() if like is None else _dialect(like)
    text = json.dumps(
        _spell(config) if dialect.infinity_as_object else config,
        indent=dialect.indent,
        ensure_ascii=dialect.ascii_only,
        separators=dialect.separators,
    )
    return (text + "\n" * dialect.newline).encode()


def _spell(value: Any) -> Any:
    """`value` with every float that strict JSON cannot hold as an object."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_KEY: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _spell(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(item) for item in value]
    return value
