"""Thousands of tensor names as a few patterns: `layers.{0...27}.mixer.experts.{0...127}.up_proj.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["braced", "collapse", "products", "ranges"]

_NUMBER = re.compile(r"((?<![A-Za-z])\d+|(?<=weight)\d+|(?<=bias)\d+)")
_SEPARATOR = re.compile(r"(?<!\.)\.(?!\.)")


def ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers as runs: `0...3,7,9...11`."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}...{b}" for a, b in runs)


def collapse(names: Iterable[str]) -> list[tuple[str, int]]:
    """Group names that differ in numbers only: (pattern, how many), in order of first appearance.

    Index sets are merged only where they form a full product, so a pattern never names a tensor that is not there.
    """
    groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        parts = _NUMBER.split(name)  # texts and numbers by turns
        groups.setdefault(tuple(parts[::2]), []).append(tuple(map(int, parts[1::2])))
    out = []
    for texts, indices in groups.items():
        for block in products(indices):
            count = 1
            pattern = texts[0]
            for values, text in zip(block, texts[1:], strict=True):
                count *= len(values)
                pattern += (str(values[0]) if len(values) == 1 else "{" + ranges(values) + "}") + text
            out.append((pattern, count))
    return out


def braced(patterns: Iterable[str]) -> list[str]:
    """Neighbours that differ in one part between dots, as one: `mixer.{q_proj,k_proj,v_proj}.weight`."""
    out: list[str] = []
    group: list[list[str]] = []
    at: int | None = None

    def close() -> None:
        if group:
            parts = list(group[0])
            if at is not None:
                parts[at] = "{" + ",".join(member[at] for member in group) + "}"
            out.append(".".join(parts))

    for pattern in patterns:
        # Dots of a run such as `{0...51}` separate nothing.
        parts = _SEPARATOR.split(pattern)
        where = _one_difference(group[0], parts) if group else None
        if where is None or (at is not None and where != at) or "{" in group[0][where] + parts[where]:
            close()
            group, at = [parts], None
        else:
            group.append(parts)
            at = where
    close()
    return out


def _one_difference(left: Sequence[str], right: Sequence[str]) -> int | None:
    """The only position at which two sequences of equal length differ."""
    if len(left) != len(right):
        return None
    found = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
    return found[0] if len(found) == 1 else None


def products(indices: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Cut a set of index tuples into products of index sets: for each first index the rest, equal rests merged.

    Args:
        indices: distinct tuples of one length, at least one.

    Returns:
        Per product, one sorted set of indices per place; together they hold every tuple exactly once.
    """
    if not indices[0]:
        return [()]
    rests: dict[int, list[tuple[int, ...]]] = {}
    for head, *tail in indices:
        rests.setdefault(head, []).append(tuple(tail))
    merged: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for head, tails in rests.items():
        merged.setdefault(frozenset(tails), []).append(head)
    out = []
    for heads in merged.values():
        out += [(tuple(sorted(heads)), *block) for block in products(rests[heads[0]])]
    return out
