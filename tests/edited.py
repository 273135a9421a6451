"""Texts of specs with mistakes planted in them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["edited"]


def edited(text: str, edits: Iterable[tuple[str, str]], within: str, name: str) -> str:
    """Each (old, new) once, behind the text `within`; `name` is for the message where the spec has moved on."""
    start = text.index(within)
    head, body = text[:start], text[start:]
    for old, new in edits:
        assert old in body, f"{name}: the spec no longer says {old!r}"
        body = body.replace(old, new, 1)
    return head + body
