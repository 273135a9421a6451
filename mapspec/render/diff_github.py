"""`mapspec diff` as annotations of a GitHub workflow run, with the full report in the run's summary.

A step shows ten annotations, so no more are written, the worst first. The summary may be 1024 KiB long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.model import Change, Level, Place, Report
from mapspec.render.diff_md import render_diff_md
from mapspec.render.diff_text import EARLIER, verdict

__all__ = ["commands", "render_diff_github"]

_MOST = 10
_SUMMARY_BYTES = 1_000_000
_KINDS = {Level.SILENT: "error", Level.BREAKING: "error", Level.RISKY: "warning", Level.ADDITIVE: "notice"}


def render_diff_github(report: Report) -> str:
    """Workflow commands, one per line. Appends the Markdown report to the file that GITHUB_STEP_SUMMARY names."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(_cut(render_diff_md(report)) + "\n")
    return "\n".join([*commands(report), f"{report.base} -> {report.head}: {verdict(report)}"])


def commands(report: Report) -> Iterator[str]:
    """At most ten workflow commands; changes that are accepted or neutral have none."""
    told = [change for change in report.open if change.level in _KINDS]
    shown = told if len(told) <= _MOST else told[: _MOST - 1]
    for change in shown:
        place = _anchor(change)
        at = f"file={_property(place.path)},line={place.line}," if place else ""
        title = _property(f"{change.code} {DIFF_CODES[change.code].name} ({change.level.value})")
        yield f"::{_KINDS[change.level]} {at}title={title}::{_data(_text(change))}"
    if len(told) > len(shown):
        yield f"::notice title=mapspec diff::{len(told) - len(shown)} more changes are in the summary of this run"


def _anchor(change: Change) -> Place | None:
    """A line of the new side: a pull request shows no others. Of what was removed, the nearest that is left."""
    places = [place for place in (*(c.new for c in change.causes), *(p.new for p in change.parts)) if place]
    return places[0] if places else change.near


def _text(change: Change) -> str:
    lines = [change.message]
    lines += [f"{c.key}: {c.before or '(absent)'} -> {c.after or '(absent)'}" for c in change.causes[:3]]
    lines += [f"reaches {t.spec} through {t.how} at {t.place}" for t in change.through]
    if change.earlier_why:
        lines.append(f"checkpoints converted before: {EARLIER[change.earlier]}; {change.earlier_why}")
    lines += change.details[:3]
    lines.append(f"fingerprint {change.fingerprint}")
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cut(text: str) -> str:
    """As much of the report as a summary holds, whole lines."""
    if len(text.encode()) <= _SUMMARY_BYTES:
        return text
    kept = text.encode()[:_SUMMARY_BYTES].decode(errors="ignore").rpartition("\n")[0]
    return f"{kept}\n\n... cut off here; the JSON report has everything"
