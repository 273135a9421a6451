"""Findings as text (with source line and caret), one per line, or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Severity, Span

__all__ = ["FORMAT_VERSION", "count_line", "render_findings", "shorten"]

FORMAT_VERSION = "1.0"


def render_findings(findings: Sequence[Diagnostic], format: str = "text") -> str:
    """All findings, sorted by place, in one of the formats `text`, `concise` and `json`."""
    found = sorted(findings, key=Diagnostic.sort_key)
    if format == "json":
        return json.dumps({"format_version": FORMAT_VERSION, "findings": [_json(d) for d in found]}, indent=2)
    if format == "concise":
        return "\n".join(_concise(d) for d in found)
    return "\n\n".join([*(_full(d) for d in found), count_line(found)])


def count_line(findings: Sequence[Diagnostic]) -> str:
    """The last line: how many findings there are."""
    errors = sum(d.severity is Severity.ERROR for d in findings)
    warnings = len(findings) - errors
    parts = [f"{n} {noun}{'s' if n != 1 else ''}" for n, noun in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(parts) or "no findings"


def shorten(path: str) -> str:
    """A path relative to where the user stands, if that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path
    return relative if len(relative) < len(path) else path


def _place(span: Span | None, where: str | None) -> str:
    if span is not None:
        return f"{shorten(span.path)}:{span.line}:{span.col}"
    return where or ""


def _concise(d: Diagnostic) -> str:
    place = _place(d.span, d.where)
    hint = f" (did you mean `{d.hint}`?)" if d.hint else ""
    return f"{place}: {d.code} {d.message}{hint}" if place else f"{d.code} {d.message}{hint}"


@cache
def _lines(path: str) -> tuple[str, ...]:
    try:
        return tuple(Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return ()


def _full(d: Diagnostic) -> str:
    place = _place(d.span, d.where)
    code = f"{d.code} (warning)" if d.severity is Severity.WARNING else d.code
    out = [f"{place}: {code} {d.message}" if place else f"{code} {d.message}"]
    caret = _caret(d.span, d.hint) if d.span else []
    out += caret
    gutter = " " * (len(str(d.span.line)) if d.span and caret else 2)
    if d.hint and not caret:
        out.append(f"{gutter} = did you mean `{d.hint}`?")
    for note in d.notes:
        at = f" ({_place(note.span, None)})" if note.span else ""
        out.append(f"{gutter} = {note.message}{at}")
    if d.help:
        out.append(f"{gutter} = help: {d.help}")
    out.append(f"{gutter} = more: mapspec rule {d.code}")
    return "\n".join(out)


def _caret(span: Span, hint: str | None) -> list[str]:
    lines = _lines(span.path)
    if not 0 < span.line <= len(lines):
        return []
    number = str(span.line)
    gutter = " " * len(number)
    text = lines[span.line - 1]
    width = max(1, (span.end_col or span.col + 1) - span.col)
    mark = " " * (span.col - 1) + "^" * min(width, max(1, len(text) - span.col + 1))
    ask = f" did you mean `{hint}`?" if hint else ""
    return [f"{gutter} |", f"{number} | {text}", f"{gutter} | {mark}{ask}"]


def _json(d: Diagnostic) -> dict[str, object]:
    def at(span: Span | None) -> dict[str, object] | None:
        return (
            None if span is None else {"path": span.path, "line": span.line, "col": span.col, "end_col": span.end_col}
        )

    return {
        "code": d.code,
        "severity": str(d.severity),
        "message": d.message,
        "span": at(d.span),
        "where": d.where,
        "hint": d.hint,
        "notes": [{"message": n.message, "span": at(n.span)} for n in d.notes],
        "help": d.help,
    }
