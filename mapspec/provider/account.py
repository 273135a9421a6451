"""Accounting for every key of an HF config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.provider.spec import ProviderSpec

__all__ = ["short", "unknown_keys"]


def unknown_keys(spec: ProviderSpec, config: Mapping[str, Any], where: str) -> Iterator[Diagnostic]:
    """MS420 for every key that the spec does not account for: which key, in which file, and which line to edit."""
    known = spec.known_keys()
    fields, waived = spec.span("fields", of_key=True), spec.span("waived", of_key=True)
    for key in config:
        if key in known:
            continue
        place = _line_of(where, key)
        help_ = (
            f"add `{key}` under `waived` ({_place(waived)}) with the reason why it does not matter, "
            f"or give it a field under `fields` ({_place(fields)})"
        )
        message = f"`{where}` has the key `{key}`, which `{spec.name}` does not account for"
        notes = (Note("the key", place),) if place else ()
        yield Diagnostic("MS420", message, waived, hint=nearest(key, known), help=help_, notes=notes)


def _place(span: Span) -> str:
    return f"{Path(span.path).name}:{span.line}"


def short(value: Any) -> str:
    """A config value as JSON, cut to one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line_of(path: str, key: str) -> Span | None:
    """Where the config file has the key, as far as the file can be read again."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(rf'"{re.escape(key)}"\s*:', text)
    if match is None:
        return None
    start = match.start() - (text.rfind("\n", 0, match.start()) + 1) + 1
    return Span(path, text.count("\n", 0, match.start()) + 1, start, start + len(key) + 2)
