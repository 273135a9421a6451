"""`mapspec diff` for a terminal: the verdict, every change with both lines, the models, the versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.model import Affected, Change, Earlier, Level, ModelDiff, Part, Place, Report, State
from mapspec.render.grid import draw_grid

__all__ = [
    "EARLIER",
    "MODEL_COLUMNS",
    "example",
    "is_short",
    "model_rows",
    "places",
    "render_diff_text",
    "verdict",
    "version_lines",
]

_PARTS, _NAMES, _EDITS, _DETAILS = 4, 3, 4, 8  # how many of each are shown; JSON has all
EARLIER = {
    Earlier.GOOD: "still good",
    Earlier.REFUSED: "refused",
    Earlier.CORRUPT: "CORRUPT IN SILENCE",
}
MODEL_COLUMNS = (
    "mapping",
    "reference model",
    "tensors",
    "same",
    "added",
    "removed",
    "retargeted",
    "reordered",
    "other",
    "unmapped",
)


def render_diff_text(report: Report) -> str:
    """The whole report."""
    out = [f"{report.base} -> {report.head}: {verdict(report)}"]
    if report.refactor and all(change.code == "DC501" for change in report.changes):
        return out[0]
    for before, change in zip((None, *report.changes), report.changes, strict=False):
        out += [*([] if is_short(change) and before and is_short(before) else [""]), *_change(change)]
    rows = list(model_rows(report))
    if rows:
        out += ["", draw_grid(MODEL_COLUMNS, rows, "text")]
    lines = list(version_lines(report))
    if lines:
        out += ["", *lines]
    if report.stale:
        out += ["", f"accepted, but no change has that fingerprint any more: {', '.join(report.stale)}"]
    return "\n".join(out)


def verdict(report: Report) -> str:
    """One line: what it comes to."""
    models = [m for m in report.models if m.kind == "mapping"]
    if not report.edited:
        return "no spec changed"
    if report.refactor:
        size = f"; {len(models)} models, {sum(m.tensors[1] for m in models):,} tensors compared" if models else ""
        return f"refactor, nothing changes{size}"
    counts = [f"{n} {level.value}" for level, n in report.counts.items() if n and level is not Level.NEUTRAL]
    accepted = len(report.changes) - len(report.open)
    counts += [f"{accepted} accepted"] if accepted else []
    return ", ".join(counts) or "nothing that anyone converts changes"


def _change(change: Change) -> Iterator[str]:
    name = DIFF_CODES[change.code].name
    mark = " (accepted)" if change.accepted is not None else ""
    if is_short(change):
        yield f"{change.level.value.upper()}{mark}  {change.code} {name}  {change.fingerprint}  {change.message}"
        return
    yield f"{change.level.value.upper()}{mark}  {change.code} {name}  {change.fingerprint}"
    yield f"  {change.message}"
    for cause in change.causes[:_EDITS]:
        yield f"  edit      {places(cause.old, cause.new)}  {cause.key}"
        yield from _both(cause.before or "(absent)", cause.after or "(absent)")
    if len(change.causes) > _EDITS:
        yield f"            ... {len(change.causes) - _EDITS} more edits"
    for part in change.parts[:_PARTS]:
        yield from _part(part)
    if len(change.parts) > _PARTS:
        yield f"            ... {len(change.parts) - _PARTS} more"
    for line in change.details[:_DETAILS]:
        yield f"            {line}"
    for through in change.through:
        yield f"  reaches   {through.spec}, through {through.how} at {through.place}"
    if change.earlier_why:
        yield f"  earlier   checkpoints converted before: {EARLIER[change.earlier]}; {change.earlier_why}"
    if change.accepted is not None:
        yield f"  accepted  {change.accepted}"


def is_short(change: Change) -> bool:
    """Whether a change is said in one line."""
    return change.level is Level.NEUTRAL or change.code == "DC901"


def _part(part: Part) -> Iterator[str]:
    where = f"  ({part.where})" if part.where else ""
    if part.old or part.new:
        yield f"  rule      {places(part.old, part.new)}  {part.subject}{where}"
    elif part.subject and part.where:
        yield f"  about     {part.subject}{where}"
    shown = example(part)
    if part.before == part.after and shown is not None and shown.hf_before:
        yield from _both(*(_some(names) for names in (shown.hf_before, shown.hf_after)))
    elif part.before or part.after:
        yield from _both(part.before, part.after)
    if shown is not None and shown.megatron:
        label = f"under {shown.flavours[0]}, " if shown.flavours else ""
        yield f"            {label}{shown.model}: {_some(shown.megatron)}"


def _some(names: Sequence[str]) -> str:
    """The first few of many patterns."""
    more = f" and {len(names) - _NAMES} more patterns" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _both(before: str, after: str) -> Iterator[str]:
    yield f"            was  {before}"
    yield f"            now  {after}"


def example(part: Part) -> Affected | None:
    """The model whose names are shown: the first of those with the most patterns shown in full, i.e. the first."""
    return part.affected[0] if part.affected else None


def places(old: Place | None, new: Place | None) -> str:
    """Both lines: `file:98 -> :99`, with the path once where it is the same."""
    if old is None or new is None:
        return f"{new} (new)" if new else f"{old} (gone)" if old else ""
    if old.path == new.path:
        return f"{old} -> :{new.line}"
    return f"{old} -> {new}"


def model_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """One row per model that changed, and one for all that did not."""
    same: list[ModelDiff] = []
    for m in report.models:
        if m.kind != "mapping":
            continue
        if m.state is State.IDENTICAL:
            same.append(m)
            continue
        if m.state in (State.BROKEN, State.STILL_BROKEN, State.MENDED):
            yield (m.spec, m.model, m.state.value, *[""] * 7)
            continue
        unmapped = "" if m.unmapped is None else _pair(*m.unmapped)
        numbers = (m.same, m.added, m.removed, m.retargeted, m.reordered, m.other)
        yield (m.spec, m.model, _pair(*m.tensors), *(f"{n:,}" if n else "-" for n in numbers), unmapped)
    if same:
        yield ("", f"{len(same)} more", f"{sum(m.tensors[1] for m in same):,}", "identical", *[""] * 6)


def _pair(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def version_lines(report: Report) -> Iterator[str]:
    """The version that each edited or reached spec should have."""
    for spec in report.specs:
        was, now = spec.version
        if was is None or now is None or (spec.suggested == was and was == now):
            continue
        said = "the file says so" if spec.bumped and now == spec.suggested else f"the file says {now}"
        wanted = f"should become {spec.suggested}" if spec.suggested != was else "may stay"
        yield f"version   {spec.kind} {spec.name} {was} {wanted}; {said}"
