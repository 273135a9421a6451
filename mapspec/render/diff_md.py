"""`mapspec diff` as Markdown, for a pull request or the summary of a workflow run."""

from __future__ import annotations

from collections.abc import Iterator

from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.model import Change, Earlier, Level, Report
from mapspec.render.diff_text import MODEL_COLUMNS, example, is_short, model_rows, places, verdict, version_lines

__all__ = ["render_diff_md"]

_NUMBERS = 2  # columns of the table of models that are words
_MODELS = 20  # rows of a change's table of models
_EARLIER = {
    Earlier.GOOD: "still good",
    Earlier.REFUSED: "refused",
    Earlier.CORRUPT: "**corrupt in silence**",
}
_LEVELS = {
    Level.SILENT: "breaking in silence",
    Level.BREAKING: "breaking",
    Level.RISKY: "risky",
    Level.ADDITIVE: "additive",
    Level.NEUTRAL: "neutral",
}


def render_diff_md(report: Report) -> str:
    """The whole report; details that take room are folded."""
    out = [f"### mapspec diff {_code(report.base)} → {_code(report.head)}: **{verdict(report)}**"]
    versions = [line.removeprefix("version").strip() for line in version_lines(report)]
    if versions:
        out += ["", *(f"* version: {line}" for line in versions)]
    rows = list(model_rows(report))
    if rows:
        out += ["", _row(MODEL_COLUMNS), _row(["---"] * _NUMBERS + ["--:"] * (len(MODEL_COLUMNS) - _NUMBERS))]
        out += [_row([_code(c) if i < _NUMBERS and c else c for i, c in enumerate(row)]) for row in rows]
    for change in report.changes:
        out += ["", *_change(change)]
    if report.stale:
        out += ["", f"Accepted, but no change has that fingerprint any more: {', '.join(map(_code, report.stale))}"]
    return "\n".join(out)


def _change(change: Change) -> Iterator[str]:
    name = DIFF_CODES[change.code].name
    if is_short(change):
        yield f"* {change.code} {name} · {_LEVELS[change.level]} · `{change.fingerprint}`: {_escape(change.message)}"
        return
    accepted = " · accepted" if change.accepted is not None else ""
    yield f"#### {change.code} {name} · {_LEVELS[change.level]}{accepted} · `{change.fingerprint}`"
    yield ""
    yield _escape(change.message)
    yield ""
    for cause in change.causes[:6]:
        yield f"* edit {_code(places(cause.old, cause.new))}: {_code(cause.key)}"
        yield f"  {_code(cause.before or '(absent)')} → {_code(cause.after or '(absent)')}"
    if len(change.causes) > 6:
        yield f"* ... {len(change.causes) - 6} more edits"
    for through in change.through:
        yield f"* reaches {_code(through.spec)} through {through.how} at {_code(str(through.place))}"
    if change.earlier_why:
        yield f"* checkpoints converted before: {_EARLIER[change.earlier]}; {change.earlier_why}"
    if change.accepted is not None:
        yield f"* accepted: {_escape(change.accepted)}"
    yield from (f"* {_escape(line)}" for line in change.details[:8])
    if change.parts and any(part.before or part.after for part in change.parts):
        yield ""
        yield _row(("rule", "line", "before", "after", "for example"))
        yield _row(["---"] * 5)
        for part in change.parts[:8]:
            shown = example(part)
            names = "<br>".join(map(_code, shown.megatron[:2])) if shown else ""
            label = f"{shown.model}: {names}" if shown and names else ""
            yield _row(
                (_code(part.subject), _code(places(part.old, part.new)), _code(part.before), _code(part.after), label)
            )
        if len(change.parts) > 8:
            yield _row((f"{len(change.parts) - 8} more", "", "", "", ""))
    if len(change.models) > 1:
        yield ""
        yield f"<details><summary>{len(change.models)} models</summary>"
        yield ""
        yield _row(("mapping", "model", "tensors", "under"))
        yield _row(("---", "---", "--:", "---"))
        for spec, model in change.models[:_MODELS]:
            found = [a for p in change.parts for a in p.affected if (a.spec, a.model) == (spec, model)]
            under = dict.fromkeys(f for a in found for f in a.flavours)
            yield _row((_code(spec), _code(model), f"{sum(a.tensors for a in found):,}", ", ".join(under)))
        yield ""
        yield "</details>"


def _row(cells: object) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"  # type: ignore[attr-defined]


def _code(text: str) -> str:
    """A code span; backticks within would end it."""
    return f"`{text.replace('`', chr(39))}`" if text else ""


def _escape(text: str) -> str:
    """Names such as `__x__` and `<y>` as they are; those in backticks are safe already."""
    parts = text.split("`")
    return "`".join(p if i % 2 else p.replace("<", "&lt;").replace("*", "\\*") for i, p in enumerate(parts))
