"""What `plan` and `convert` print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mapspec.boxes import show_box
from mapspec.collapse import collapse
from mapspec.convert import Converted
from mapspec.plan import Plan
from mapspec.prepare import Prepared
from mapspec.render.findings import render_findings, shorten
from mapspec.render.grid import SIDES, as_json, draw_grid, human_bytes
from mapspec.render.show import grouped, proof_line
from mapspec.tensors import StoredTensor
from mapspec.verify import Verified

__all__ = ["render_converted", "render_plan", "render_verified"]


def render_plan(prepared: Prepared, format: str = "text") -> str:
    """What a conversion would do; `plan`."""
    plan = prepared.plan
    if format == "json":
        return as_json("plan", _plan_json(prepared))
    lines = [
        f"{SIDES[plan.source_surface]} -> {SIDES[plan.target_surface]}  by {plan.table.bound.linked.name}",
        f"source    {prepared.source.path}  "
        f"({len(prepared.source.tensors):,} tensors, {human_bytes(plan.nbytes)} to move)",
        f"flavours  {', '.join(f'{k}={v}' for k, v in plan.table.bound.flavours.items())}",
        f"result    {len(plan.targets):,} tensors, {human_bytes(_target_bytes(plan))}"
        + (f", {len(plan.table.objects):,} empty extra-state objects" if prepared.to == "megatron" else ""),
        "",
        draw_grid(("source", "", "target", "tensors", "rule"), _plan_rows(plan), format),
        "",
        *_steps(plan),
        *(f"passed through  `{name}`: {why}" for name, why in plan.coverage.passthrough),
        *(f"left behind  {count} x `{pattern}`: {why}" for pattern, count, why in _ignored(plan)),
        *_notes(prepared),
        proof_line(prepared.proof),
    ]
    return "\n".join(lines)


def _target_bytes(plan: Plan) -> int:
    return sum(StoredTensor(t.name, t.dtype, t.shape, ()).nbytes for t in plan.targets)


def _plan_rows(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    out = []
    for forms, rows in grouped(plan.table).items():
        rows = [row for row in rows if row.megatron not in plan.table.tied]
        if not rows:
            continue
        names = {
            s: collapse([n for row in rows for n in row.names(s)]) for s in (plan.source_surface, plan.target_surface)
        }
        source, target = (_patterns(names[s]) for s in (plan.source_surface, plan.target_surface))
        at = f"{shorten(forms.rule.span.path)}:{forms.rule.span.line}"
        out.append((source, "->", target, str(len(rows)), at))
    return out


def _patterns(collapsed: Sequence[tuple[str, int]]) -> str:
    shown = [pattern for pattern, _ in collapsed[:6]]
    return "\n".join([*shown, *([f"... {len(collapsed) - 6} more"] if len(collapsed) > 6 else [])])


def _steps(plan: Plan) -> list[str]:
    if not plan.steps:
        return ["values    unchanged: every byte is copied as it is"]
    return [f"value step  {s.kind}: {s.detail}: {_some(s.tensors)}" for s in plan.steps]


def _some(names: Sequence[str], most: int = 4) -> str:
    """A few patterns, and how many tensors there are in all."""
    patterns = [pattern for pattern, _ in collapse(names)]
    more = f" and {len(patterns) - most} more patterns" if len(patterns) > most else ""
    return f"{', '.join(patterns[:most])}{more} ({len(names):,} tensor{'s' if len(names) != 1 else ''})"


def _ignored(plan: Plan) -> list[tuple[str, int, str]]:
    reasons: dict[str, list[str]] = {}
    for name, why in plan.coverage.ignored:
        reasons.setdefault(why, []).append(name)
    return [(pattern, count, why) for why, names in reasons.items() for pattern, count in collapse(names)]


def _notes(prepared: Prepared) -> list[str]:
    plan, run_config = prepared.plan, prepared.run_config
    out = []
    if run_config is not None and run_config.text is None:
        out.append(f"note      no run_config.yaml for Megatron-Bridge: {run_config.why_not}")
    rules = dict.fromkeys(row.rule.key for row in plan.table.rows if row.rule.note)
    notes = {row.rule.key: row.rule.note for row in plan.table.rows if row.rule.note}
    return out + [f"note      `{key}`: {notes[key]}" for key in rules]


def _plan_json(prepared: Prepared) -> dict[str, Any]:
    plan = prepared.plan
    rows = []
    for row in plan.table.rows:
        for source, source_box, target, target_box in row.pieces(plan.source_surface, plan.target_surface):
            rows.append([source, show_box(source_box), target, show_box(target_box)])
    return {
        "mapping": plan.table.bound.linked.name,
        "table_hash": plan.table.hash,
        "from": plan.source_surface,
        "to": plan.target_surface,
        "flavours": dict(plan.table.bound.flavours),
        "bytes": plan.nbytes,
        "targets": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in plan.targets],
        "pieces": rows,
        "value_steps": [{"kind": s.kind, "detail": s.detail, "tensors": list(s.tensors)} for s in plan.steps],
        "passthrough": dict(plan.coverage.passthrough),
        "ignored": dict(plan.coverage.ignored),
    }


def render_converted(done: Converted, format: str = "text") -> str:
    """What a conversion did; `convert`."""
    plan, copied = done.prepared.plan, done.copied
    rate = copied.nbytes / copied.seconds if copied.seconds else 0.0
    if format == "json":
        body = {
            "destination": str(done.destination), "mapping": plan.table.bound.linked.name,
            "table_hash": plan.table.hash, "tensors_read": len(plan.coverage.mapped), "tensors_written": copied.tensors,
            "files": copied.files, "bytes": copied.nbytes, "copy_seconds": copied.seconds, "seconds": done.seconds,
            "value_steps": len(plan.steps), "carried": list(done.carried),
        }  # fmt: skip
        return as_json("converted", body)
    lines = [
        f"wrote {done.destination}  ({SIDES[plan.target_surface]}, by {plan.table.bound.linked.name})",
        f"  {len(plan.coverage.mapped):,} tensors read, {copied.tensors:,} written in {copied.files} files, "
        f"{human_bytes(copied.nbytes)} in {copied.seconds:.2f} s ({human_bytes(rate)}/s; {done.seconds:.2f} s in all)",
        *(f"  {line}" for line in _steps(plan)),
        *(f"  passed through `{name}`: {why}" for name, why in plan.coverage.passthrough),
        *(f"  left behind {count} x `{pattern}`: {why}" for pattern, count, why in _ignored(plan)),
        *(f"  {line}" for line in _notes(done.prepared)),
    ]
    if done.carried:
        lines.append(f"  carried along: {', '.join(done.carried)}")
    return "\n".join(lines)


def render_verified(done: Verified, format: str = "text") -> str:
    """How two checkpoints compare; `verify`."""
    if format == "json":
        findings = json.loads(render_findings(done.findings, "json"))["findings"]
        body = {"left": str(done.left), "right": str(done.right), "tensors": done.tensors, "bytes": done.nbytes}
        return as_json("verified", {**body, "equal": not done.findings, "findings": findings})
    noun = "tensor" if done.tensors == 1 else "tensors"
    compared = f"{done.tensors:,} {noun}, {human_bytes(done.nbytes)} compared"
    if not done.findings:
        return f"equal, bit for bit: {compared}"
    return f"{render_findings(done.findings, format)}\n{compared}"
