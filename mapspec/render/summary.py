"""What `convert` prints at the end: patterns with counts and bytes, however many tensors there were."""

from __future__ import annotations

from dataclasses import dataclass

from mapspec.amounts import human_bytes
from mapspec.collapse import collapse
from mapspec.convert import Converted
from mapspec.io.filesystem import access_to
from mapspec.plan import Plan
from mapspec.render.findings import shorten
from mapspec.render.grid import SIDES, as_json, draw_grid
from mapspec.render.plan import access_json, accounted, by_reason, patterns_of, reading
from mapspec.render.show import grouped
from mapspec.tensors import StoredTensor

__all__ = ["render_converted"]


@dataclass(frozen=True, slots=True)
class _Line:
    """Tensors that one rule made: their patterns, how many, how large, and where the rule stands."""

    patterns: list[tuple[str, int]]
    tensors: int
    nbytes: int
    rule: str


def render_converted(done: Converted, format: str = "text") -> str:
    """What a conversion did; `convert`."""
    if format == "json":
        return as_json("converted", _json(done))
    plan, copied = done.prepared.plan, done.copied
    rate = copied.nbytes / copied.seconds if copied.seconds else 0.0
    counts = (
        f"{len(plan.coverage.mapped):,} tensors read, {copied.tensors:,} written in {copied.files} files, "
        f"{human_bytes(copied.nbytes)} in {copied.seconds:.2f} s ({human_bytes(rate)}/s; {done.seconds:.2f} s in all)"
    )
    rows = [
        (patterns_of(line.patterns), f"{line.tensors:,}", human_bytes(line.nbytes), line.rule) for line in _lines(plan)
    ]
    table = draw_grid(("written", "tensors", "bytes", "rule"), rows, format)
    what = f"{SIDES[plan.target_surface]}, by {plan.table.bound.linked.name}"
    target = access_to(done.destination)
    where = [f"source: {reading(done.prepared)}", f"destination: {target.kind} ({target.place})"]
    rest = accounted(done.prepared)
    if done.carried:
        rest.append(f"carried along: {', '.join(done.carried)}")
    if format == "md":
        items = "\n".join(f"* {' '.join(line.split())}" for line in rest)
        return f"Wrote `{done.destination}` ({what}): {counts}; {'; '.join(where)}.\n\n{table}\n\n{items}"
    inner = [counts, *where, "", *table.splitlines(), "", *rest]
    return "\n".join([f"wrote {done.destination}  ({what})", *(f"  {line}".rstrip() for line in inner)])


def _lines(plan: Plan) -> list[_Line]:
    """A line for each rule, in the order of the table. A tensor that several rules fill counts for the first."""
    nbytes = {t.name: StoredTensor(t.name, t.dtype, t.shape, ()).nbytes for t in plan.targets}
    out = []
    for forms, rows in grouped(plan.table).items():
        names = dict.fromkeys(name for row in rows for name in row.names(plan.target_surface) if name in nbytes)
        if names:
            at = f"{shorten(forms.rule.span.path)}:{forms.rule.span.line}"
            out.append(_Line(collapse(names), len(names), sum(nbytes.pop(name) for name in names), at))
    return out


def _json(done: Converted) -> dict[str, object]:
    plan, copied = done.prepared.plan, done.copied
    return {
        "destination": str(done.destination),
        "mapping": plan.table.bound.linked.name,
        "table_hash": plan.table.hash,
        "tensors_read": len(plan.coverage.mapped),
        "tensors_written": copied.tensors,
        "files": copied.files,
        "reading": access_json(done.prepared),
        "bytes": copied.nbytes,
        "copy_seconds": copied.seconds,
        "seconds": done.seconds,
        "written": [
            {
                "patterns": [p for p, _ in line.patterns],
                "tensors": line.tensors,
                "bytes": line.nbytes,
                "rule": line.rule,
            }
            for line in _lines(plan)
        ],
        "value_steps": [{"kind": s.kind, "detail": s.detail, "tensors": len(s.tensors)} for s in plan.steps],
        "passthrough": [{"pattern": p, "tensors": n, "why": why} for p, n, why in by_reason(plan.coverage.passthrough)],
        "ignored": [{"pattern": p, "tensors": n, "why": why} for p, n, why in by_reason(plan.coverage.ignored)],
        "carried": list(done.carried),
    }
