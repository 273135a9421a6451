"""Where things are declared: the spec files of a report, embedded once, and places in them as short pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Span
from mapspec.render.findings import shorten

__all__ = ["Spots"]


class Spots:
    """Collects the files that a report points at.

    Args:
        base: folder that plain links are relative to: the one that the page is written to.
        url: template of links with `{path}` and `{line}`, for example to a forge; `None` for plain relative paths.
    """

    def __init__(self, base: Path, url: str | None = None) -> None:
        self._base, self._url = base, url
        self._numbers: dict[str, int] = {}
        self._files: list[dict[str, Any]] = []

    def at(self, span: Span | None) -> list[int] | None:
        """`[file, line]`."""
        return None if span is None else [self.file(span.path), span.line]

    def file(self, path: str, *, name: str | None = None, text: str | None = None) -> int:
        """Number of a file.

        Args:
            path: where it lies.
            name: how it is called on the page; default: `path`, as short as it goes.
            text: its contents where they are not those on disk (an earlier revision).
        """
        key = f"{name}\0{path}"
        if key not in self._numbers:
            self._numbers[key] = len(self._files)
            shown = name or Path(shorten(path)).as_posix()
            self._files.append({"path": shown, "href": self._href(path, shown), "text": _text(path, text)})
        return self._numbers[key]

    def _href(self, path: str, shown: str) -> str:
        if self._url is not None:
            return self._url.replace("{path}", shown)  # `{line}` is filled in by the page
        try:
            return Path(os.path.relpath(path, self._base)).as_posix()
        except ValueError:  # another drive
            return Path(path).as_posix()

    @property
    def files(self) -> list[dict[str, Any]]:
        """`path`, `href` and `text` of each file, in order of their numbers."""
        return self._files


def _text(path: str, text: str | None) -> str:
    if text is not None:
        return text
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
