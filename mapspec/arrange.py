"""Fused dimensions: in which order the segments of a dimension lie.

`num_query_groups * (q k v)` says: that many times q, k and v. The n-th occurrence of a segment in one arrangement
is its n-th occurrence in every other; that is the whole semantics, and what makes pairing two sides a join.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ArrangementError", "Node", "parse_arrangement", "unroll"]

_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z][A-Za-z0-9_]*|[0-9]+)|(?P<mark>[*()])|(?P<bad>\S))")

_MAX_DEPTH = 20


class ArrangementError(ValueError):
    """An arrangement cannot be read; `column` counts from 0 within its text."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True, slots=True)
class Node:
    """A segment (`count` empty), or a group of nodes repeated `count` times (a name or a number)."""

    segment: str = ""
    count: str = ""
    body: tuple[Node, ...] = ()

    def counts(self) -> frozenset[str]:
        """Names that say how often something is repeated."""
        own = {self.count} if self.count and not self.count.isdigit() else set()
        return frozenset(own.union(*(node.counts() for node in self.body)))

    def segments(self) -> frozenset[str]:
        """Names of the segments in it."""
        return frozenset({self.segment} if self.segment else set()).union(*(n.segments() for n in self.body))


def parse_arrangement(text: str) -> tuple[Node, ...]:
    """Read `n * (q k v) w` into nodes.

    Raises:
        ArrangementError: a stray sign, an unclosed bracket, or nothing inside one.
    """
    tokens: list[tuple[str, int]] = []
    for found in _TOKEN.finditer(text):
        if found["bad"]:
            raise ArrangementError(f"`{found['bad']}` does not belong in an arrangement", found.start("bad"))
        kind = "word" if found["word"] else "mark"
        tokens.append((found[kind], found.start(kind)))
    nodes, rest = _sequence(tokens, 0, len(text))
    assert rest == len(tokens), "the top sequence takes everything"
    return nodes


def _sequence(tokens: list[tuple[str, int]], at: int, end: int, depth: int = 0) -> tuple[tuple[Node, ...], int]:
    nodes: list[Node] = []
    while at < len(tokens) and tokens[at][0] != ")":
        word, column = tokens[at]
        if word in "*(":
            raise ArrangementError("write `count * (segments)` or a segment's name here", column)
        if at + 1 < len(tokens) and tokens[at + 1][0] == "*":
            if at + 2 >= len(tokens) or tokens[at + 2][0] != "(":
                raise ArrangementError("what is repeated stands in brackets: `count * (segments)`", column)
            if depth == _MAX_DEPTH:
                raise ArrangementError("brackets are nested too deeply", column)
            body, at = _sequence(tokens, at + 3, end, depth + 1)
            nodes.append(Node(count=word, body=body))
        else:
            nodes.append(Node(segment=word))
            at += 1
    if not depth and at < len(tokens):
        raise ArrangementError("this bracket closes nothing", tokens[at][1])
    if depth:
        if at >= len(tokens):
            raise ArrangementError("a bracket is not closed", end)
        at += 1
    if not nodes:
        raise ArrangementError("there is nothing here", tokens[at - 1][1] if tokens else 0)
    return tuple(nodes), at


def unroll(nodes: tuple[Node, ...], count: Callable[[str], int]) -> tuple[str, ...]:
    """The segments one after another, every repetition written out."""
    out: list[str] = []
    for node in nodes:
        if node.segment:
            out.append(node.segment)
        else:
            times = int(node.count) if node.count.isdigit() else count(node.count)
            out.extend(unroll(node.body, count) * times)
    return tuple(out)
