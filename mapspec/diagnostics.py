"""One type for everything mapspec has to say about a mistake, whoever finds it and however it is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

__all__ = ["Code", "Diagnostic", "Note", "Severity", "Span", "nearest"]


class Severity(StrEnum):
    """How a finding counts: an error fails the command, a warning is only shown."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A place in a text file. Lines and columns count from 1; `end_col` is exclusive, on the same line."""

    path: str
    line: int = 1
    col: int = 1
    end_col: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.col}"

    def part(self, text: str, column: int, width: int = 0) -> Span:
        """The place of `width` characters (0: the rest) from `column` on in the text that stands here."""
        quotes = self.end_col - self.col - len(text)
        if quotes not in (0, 2) or not text:
            return self  # folded or escaped: the text has other columns than the file
        start = min(self.col + quotes // 2 + column, self.end_col - 1)
        return replace(self, col=start, end_col=min(start + width, self.end_col) if width else self.end_col)


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of finding.

    Attributes:
        name: readable after "allow", for example `unknown-key`.
        what: what the check looks at and why it matters.
        fix: what to do.
        wrong, right: an example of each, where the finding is about the text of a spec or config.
    """

    name: str
    what: str
    fix: str
    wrong: str = ""
    right: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A second place that belongs to a finding, for example where the other of two overlapping rules stands."""

    message: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What is wrong, where, and what would be right.

    Attributes:
        code: key of `mapspec.codes.CODES`, for example `MS101`.
        message: one line without "error" or "invalid"; names in backticks.
        span: the place in a spec; `None` for findings about checkpoints.
        where: what the finding is about when that is no spec line: a file, a tensor, an option.
        hint: the nearest valid name, shown at the caret (`did you mean ...`).
        notes: further facts, with places where they have any.
        help: what to do.
    """

    code: str
    message: str
    span: Span | None = None
    where: str | None = None
    severity: Severity = Severity.ERROR
    hint: str | None = None
    notes: tuple[Note, ...] = field(default=())
    help: str | None = None

    def one_line(self) -> str:
        """The finding as `place: CODE message`, without notes."""
        place = str(self.span) if self.span else self.where
        return f"{place}: {self.code} {self.message}" if place else f"{self.code} {self.message}"

    def sort_key(self) -> tuple[str, int, int, str, str]:
        """Order of a listing: by file and line, then by code."""
        span = self.span or Span(self.where or "", 0, 0)
        return (span.path, span.line, span.col, self.code, self.message)

    def with_note(self, message: str, span: Span | None = None) -> Diagnostic:
        """The same finding with one more note."""
        return replace(self, notes=(*self.notes, Note(message, span)))


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` was probably meant to be, or `None`."""
    found = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.6)
    return found[0] if found else None
