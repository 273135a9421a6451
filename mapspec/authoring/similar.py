"""How alike two names are: by their words, and by their letters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

__all__ = ["alike", "words"]

_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])")


def words(name: str) -> tuple[str, ...]:
    """Words of a name, in small letters."""
    return tuple(part.lower() for part in _SPLIT.split(name) if part)


def alike(a: str, b: str) -> float:
    """0 for names that have nothing in common, 1 for equal ones. The end of a name counts more than its beginning."""
    if a == b:
        return 1.0
    letters = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    ours, theirs = words(a), words(b)
    return 0.5 * letters + 0.3 * _shared(ours, theirs) + 0.2 * _shared(ours[-2:], theirs[-2:])


def _shared(a: Collection[str], b: Collection[str]) -> float:
    every = {*a, *b}
    return len(set(a) & set(b)) / len(every) if every else 0.0
