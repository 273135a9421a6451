"""Accounting for every key of an HF config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.provider.declared import ProviderSpec
from mapspec.provider.paths import leaves

__all__ = ["short", "unknown_keys"]


def unknown_keys(spec: ProviderSpec, config: Mapping[str, Any], where: str) -> Iterator[Diagnostic]:
    """MS420 for every key that the spec does not account for: which key, in which file, and which line to edit."""
    known = spec.known_keys()
    for path, _ in leaves(config, spec.parts):
        if path in known or any(path.startswith(f"{key}.") for key in spec.waived):
            continue
        owner, key = _owner(spec, path)
        fields, waived = owner.span("fields", of_key=True), owner.span("waived", of_key=True)
        place = _line_of(where, path)
        help_ = (
            f"add `{key}` under `waived` ({_place(waived)}) with the reason why it does not matter, "
            f"or give it a field under `fields` ({_place(fields)})"
        )
        message = f"`{where}` has the key `{path}`, which `{spec.name}` does not account for"
        notes = (Note("the key", place),) if place else ()
        yield Diagnostic("MS420", message, waived, hint=nearest(path, known), help=help_, notes=notes)


def _owner(spec: ProviderSpec, path: str) -> tuple[ProviderSpec, str]:
    """The spec that a key belongs into, and how it is spelled there."""
    for part, include in spec.model.include.items():
        for place in include.config:
            if path.startswith(f"{place}."):
                return _owner(spec.included[part], path.removeprefix(f"{place}."))
    return spec, path


def _place(span: Span) -> str:
    return f"{Path(span.path).name}:{span.line}"


def short(value: Any) -> str:
    """A config value as JSON, cut to one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line_of(path: str, key: str) -> Span | None:
    """Where the config file has the key, as far as the file can be read again; `a.b` is looked for after `a`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    at = end = 0
    for part in key.split("."):
        match = re.compile(rf'"{re.escape(part)}"\s*:').search(text, end)
        if match is None:
            return None
        at, end = match.span()
    start = at - (text.rfind("\n", 0, at) + 1) + 1
    return Span(path, text.count("\n", 0, at) + 1, start, start + len(key.rpartition(".")[2]) + 2)
