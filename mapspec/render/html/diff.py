"""`diff` as a page: changes worst first, before and after side by side, what they do to every reference model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.model import Change, Level, Place, Report, as_data
from mapspec.render.diff_text import EARLIER, verdict
from mapspec.render.html.assemble import assemble

__all__ = ["diff_page"]


def diff_page(
    report: Report, *, project: Path | None = None, output: Path | None = None, url: str | None = None
) -> str:
    """A comparison as one page; `diff --format html`.

    Args:
        report: what was found.
        project: root that the paths of the head are relative to.
        output: file that the page is written to; plain links are relative to it.
        url: template of links to lines of the head, with `{path}` and `{line}`.
    """
    places = _Places(project or Path.cwd(), Path.cwd() if output is None else output.resolve().parent, url)
    data = {
        "format_version": "1.0",
        "kind": "diff",
        "title": f"{report.base} → {report.head}",
        "base": report.base,
        "head": report.head,
        "verdict": verdict(report),
        "refactor": report.refactor,
        "counts": [[level.value, report.counts[level]] for level in Level],
        "accepted": len(report.changes) - len(report.open),
        "changes": [_change(change, places) for change in report.changes],
        "models": as_data(report.models),
        "specs": [{**as_data(replace(spec, place=None)), "place": places.at(spec.place)} for spec in report.specs],
        "stale": list(report.stale),
        "sources": places.sources,
    }
    return assemble(data, ("diff.js",), ("diff.css",))


def _change(change: Change, places: _Places) -> dict[str, Any]:
    return {
        "code": change.code,
        "name": DIFF_CODES[change.code].name,
        "what": DIFF_CODES[change.code].what,
        "level": change.level.value,
        "fingerprint": change.fingerprint,
        "spec": change.spec,
        "kind": change.kind,
        "message": change.message,
        "tensors": change.tensors,
        "causes": [
            {"key": c.key, "before": c.before, "after": c.after, "old": _text(c.old), "new": places.at(c.new)}
            for c in change.causes
        ],
        "parts": [
            {**as_data(replace(part, old=None, new=None)), "old": _text(part.old), "new": places.at(part.new)}
            for part in change.parts
        ],
        "earlier": EARLIER[change.earlier] if change.earlier_why else "",
        "earlier_why": change.earlier_why,
        "through": [f"{t.spec}, through {t.how} at {t.place}" for t in change.through],
        "details": list(change.details),
        "near": places.at(change.near),
        "accepted": change.accepted,
    }


def _text(place: Place | None) -> str:
    """A line of the base: there is no file to link to."""
    return str(place) if place is not None else ""


class _Places:
    """Lines of the head as `[file, line]`; the page does not carry the files."""

    def __init__(self, project: Path, base: Path, url: str | None) -> None:
        self._project, self._base, self._url = project, base, url
        self._numbers: dict[str, int] = {}
        self.sources: list[dict[str, str]] = []

    def at(self, place: Place | None) -> list[int] | None:
        if place is None:
            return None
        if place.path not in self._numbers:
            self._numbers[place.path] = len(self.sources)
            self.sources.append({"path": place.path, "href": self._href(place.path), "text": ""})
        return [self._numbers[place.path], place.line]

    def _href(self, path: str) -> str:
        if self._url is not None:
            return self._url.replace("{path}", path)
        try:
            return (self._project / path).resolve().relative_to(self._base, walk_up=True).as_posix()
        except ValueError:  # another drive
            return path
