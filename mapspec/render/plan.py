"""What `plan` and `convert` print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mapspec.amounts import human_bytes
from mapspec.boxes import show_box
from mapspec.collapse import braced, collapse
from mapspec.cuts import Cuts, chunk_count, read_by_rank
from mapspec.errors import SpecError
from mapspec.io.remote import RemotePath
from mapspec.memory import memory_of
from mapspec.plan import Plan
from mapspec.prepare import Prepared
from mapspec.render.findings import shorten
from mapspec.render.grid import SIDES, as_json, draw_grid
from mapspec.render.show import grouped, proof_line
from mapspec.table import Table
from mapspec.tensors import StoredTensor

__all__ = [
    "access_json",
    "accounted",
    "by_reason",
    "patterns_of",
    "reading",
    "render_plan",
]


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
        *_chunks(prepared),
        _memory(prepared),
        f"reading   {reading(prepared)}",
        "",
        draw_grid(("source", "", "target", "tensors", "rule"), _plan_rows(plan), format),
        "",
        *accounted(prepared),
        proof_line(prepared.proof),
    ]
    return "\n".join(lines)


def _chunks(prepared: Prepared) -> list[str]:
    """How a torch_dist checkpoint is cut, and what that means for a rank that loads it."""
    if prepared.to != "megatron":
        return []
    cuts, plan = prepared.request.cuts, prepared.plan
    chunks = sum(len(target.boxes) for target in plan.targets)
    asked = (
        [cuts] if cuts.strict else [replace(cuts, tensor=n) for n in range(cuts.tensor, 0, -1) if not cuts.tensor % n]
    )
    for sizes in asked:
        try:
            owned, read = read_by_rank(plan.table.rows, cuts, sizes.rank)
        except SpecError:
            continue
        rank = f"TP {sizes.tensor}, EP {sizes.expert}, expert TP {sizes.expert_tensor}"
        share = read / owned if owned else 1.0
        line = f"chunks    {chunks:,}; a rank at {rank} owns {human_bytes(owned)} and reads {share:.2f} x that"
        return [line, *_whole_experts(plan.table, cuts, sizes)]
    return [f"chunks    {chunks:,}"]


def _whole_experts(table: Table, cuts: Cuts, sizes: Cuts) -> list[str]:
    """What it means for ranks that cut experts, too, that nobody asked for such cuts."""
    wider = replace(sizes, expert_tensor=sizes.tensor, strict=True)
    cut = any(dim.split == "expert_tensor" for rule in table.bound.rules for dim in rule.dims or ())
    if cuts.strict or sizes.expert_tensor >= wider.expert_tensor or not cut:
        return []
    rows = [row for row in table.rows if row.megatron not in table.tied]
    try:
        (owned, read), (_, least) = (read_by_rank(rows, one, wider.rank) for one in (cuts, wider))
        count = chunk_count(rows, wider)
    except SpecError:
        return []
    if read == least:
        return []
    n = wider.tensor
    line = f"experts are whole: at expert TP {n} a rank would read {read / owned:.2f} x its bytes; "
    return [f"          {line}--tp {n} --etp {n} makes that {least / owned:.2f} x, in {count:,} chunks"]


def _memory(prepared: Prepared) -> str:
    memory = memory_of(prepared)
    workers = f"{memory.workers} worker{'s' if memory.workers != 1 else ''}"
    return (
        f"memory    at most {human_bytes(memory.total)}: {human_bytes(memory.base)} Python and its modules, "
        f"{human_bytes(memory.tables)} tables, {workers} of {human_bytes(memory.worker)}"
    )


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
        source, target = (patterns_of(names[s]) for s in (plan.source_surface, plan.target_surface))
        at = f"{shorten(forms.rule.span.path)}:{forms.rule.span.line}"
        out.append((source, "->", target, str(len(rows)), at))
    return out


def patterns_of(collapsed: Sequence[tuple[str, int]]) -> str:
    """Up to six patterns, one to a line, and how many more there are."""
    patterns = braced(pattern for pattern, _ in collapsed)
    return "\n".join([*patterns[:6], *([f"... {len(patterns) - 6} more"] if len(patterns) > 6 else [])])


def reading(prepared: Prepared) -> str:
    """How the source is read, and what has been asked of a store so far."""
    path = prepared.source.path
    if not isinstance(path, RemotePath):
        return str(prepared.access)
    store = path.store
    return f"{prepared.access}; {store.requests:,} requests so far, {human_bytes(store.nbytes)}"


def accounted(prepared: Prepared) -> list[str]:
    """Everything that is not a plain copy: value steps, what has no place on the other side, notes."""
    plan = prepared.plan
    return [
        *_steps(plan),
        *(
            f"passed through  {count} x `{pattern}`: {why}"
            for pattern, count, why in by_reason(plan.coverage.passthrough)
        ),
        *(f"left behind  {count} x `{pattern}`: {why}" for pattern, count, why in by_reason(plan.coverage.ignored)),
        *_notes(prepared),
    ]


def _steps(plan: Plan) -> list[str]:
    if not plan.steps:
        return ["values    unchanged: every byte is copied as it is"]
    return [f"value step  {s.kind}: {s.detail}: {_some(s.tensors)}" for s in plan.steps]


def _some(names: Sequence[str], most: int = 4) -> str:
    """A few patterns, and how many tensors there are in all."""
    patterns = [pattern for pattern, _ in collapse(names)]
    more = f" and {len(patterns) - most} more patterns" if len(patterns) > most else ""
    return f"{', '.join(patterns[:most])}{more} ({len(names):,} tensor{'s' if len(names) != 1 else ''})"


def by_reason(named: Sequence[tuple[str, str]]) -> list[tuple[str, int, str]]:
    """(pattern, how many, reason) of names with reasons."""
    reasons: dict[str, list[str]] = {}
    for name, why in named:
        reasons.setdefault(why, []).append(name)
    return [(pattern, count, why) for why, names in reasons.items() for pattern, count in collapse(names)]


def _notes(prepared: Prepared) -> list[str]:
    plan = prepared.plan
    out = [f"note      {note}" for note in prepared.notes]
    rules = dict.fromkeys(row.rule.key for row in plan.table.rows if row.rule.note)
    notes = {row.rule.key: row.rule.note for row in plan.table.rows if row.rule.note}
    return out + [f"note      `{key}`: {notes[key]}" for key in rules]


def access_json(prepared: Prepared) -> dict[str, Any]:
    """`reading` for machines."""
    path = prepared.source.path
    asked = {"requests": path.store.requests, "bytes": path.store.nbytes} if isinstance(path, RemotePath) else {}
    return {**asdict(prepared.access), **asked}


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
        "peak_memory": memory_of(prepared).total,
        "reading": access_json(prepared),
        "targets": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in plan.targets],
        "pieces": rows,
        "value_steps": [{"kind": s.kind, "detail": s.detail, "tensors": list(s.tensors)} for s in plan.steps],
        "passthrough": dict(plan.coverage.passthrough),
        "ignored": dict(plan.coverage.ignored),
    }
