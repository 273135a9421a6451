"""What `show` and `resolve` print: the linked rules of a spec, and where a single name belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mapspec.bind import BoundRule
from mapspec.boxes import show_box
from mapspec.mapping import Resolution
from mapspec.prove import Proof
from mapspec.render.findings import shorten
from mapspec.render.grid import SIDES, as_json, draw_grid
from mapspec.table import Row, RuleForms, Table
from mapspec.tensors import StoredTensor

__all__ = ["cut_of", "grouped", "proof_line", "render_resolutions", "render_table", "shape_of"]


def cut_of(rule: BoundRule) -> str:
    """How parallelism cuts a weight, in the field's words."""
    for axis, dim in enumerate(rule.dims or ()):
        if dim.split is not None:
            group = "expert tensor parallel" if dim.split == "expert_tensor" else "tensor parallel"
            word = {0: "column", 1: "row"}.get(axis, f"dim {axis}")
            by = f" by segment {' '.join(dim.sizes)}" if dim.split_by == "segment" else ""
            return f"{word} ({group}{by})"
    return "replicated"


def shape_of(rule: BoundRule) -> str:
    """Named shape with numbers: `[qkv=4608, hidden=2688]`."""
    dims = [d.name if d.name.isdigit() else f"{d.name}={d.size}" for d in rule.dims or ()]
    return "[" + ", ".join(dims) + "]"


def grouped(table: Table) -> dict[RuleForms, list[Row]]:
    out: dict[RuleForms, list[Row]] = {}
    for row in table.rows:
        out.setdefault(row.forms, []).append(row)
    return out


def render_table(table: Table, proof: Proof, format: str = "text") -> str:
    """The linked rules of a spec for one config, with provenance; `show`."""
    groups = grouped(table)
    bound = table.bound
    if format == "json":
        rules = [
            {
                "megatron": str(rule.megatron.pattern),
                "hf": {(s.segment or ""): str(s.pattern) for s in rule.hf},
                "stored": [str(f.pattern) + f.suffix for f in forms.surfaces["stored"]],
                "shape": [d.size for d in rule.dims or ()],
                "dims": [d.name for d in rule.dims or ()],
                "cut": cut_of(rule),
                "role": rule.role_name,
                "dtype": rule.dtype,
                "rows": len(rows),
                "mount": rule.mount,
                "at": str(rule.span),
            }
            for forms, rows in groups.items()
            for rule in (forms.rule,)
        ]
        proof_json = {
            "hf_tensors": proof.hf_tensors,
            "hf_elements": proof.hf_elements,
            "megatron_tensors": proof.megatron_tensors,
            "stored_tensors": proof.stored_tensors,
        }
        body = {"mapping": bound.linked.name, "flavours": dict(bound.flavours), "table_hash": table.hash}
        return as_json("table", {**body, "proof": proof_json, "rules": rules})
    rows_out = []
    for forms, rows in groups.items():
        rule = forms.rule
        hf = " + ".join(str(side.pattern) for side in rule.hf)
        at = f"{shorten(rule.span.path)}:{rule.span.line}"
        rows_out.append((str(rule.megatron.pattern), hf, shape_of(rule), cut_of(rule), str(len(rows)), at))
    head = f"{bound.linked.name}  flavours: {', '.join(f'{k}={v}' for k, v in bound.flavours.items())}"
    grid = draw_grid(("Megatron", "Hugging Face", "shape", "cut", "tensors", "rule"), rows_out, format)
    return f"{head}\n\n{grid}\n\n{proof_line(proof)}"


def proof_line(proof: Proof) -> str:
    """The proof in one sentence."""
    return (
        f"proof: {proof.hf_tensors:,} Hugging Face tensors ({proof.hf_elements:,} elements) and "
        f"{proof.megatron_tensors:,} Megatron tensors ({proof.megatron_elements:,} elements, stored under "
        f"{proof.stored_tensors:,} torch_dist keys) cover each other exactly once"
    )


def render_resolutions(
    found: Sequence[Resolution], format: str = "text", tensors: Mapping[str, StoredTensor] | None = None
) -> str:
    """Where a name belongs: rule, indices, shapes, pieces; `resolve`."""
    if format == "json":
        return as_json("resolutions", {"rows": [_resolution_json(r, tensors) for r in found]})
    return "\n\n".join(_resolution_text(r, tensors) for r in found)


def _resolution_text(found: Resolution, tensors: Mapping[str, StoredTensor] | None) -> str:
    row, rule = found.row, found.row.rule
    lines = [
        f"{found.name}  ({SIDES[found.surface]} side)",
        f"  rule      {shorten(rule.span.path)}:{rule.span.line}  "
        f"`{rule.key}` of block `{rule.block}`, mount `{rule.mount}`",
    ]
    if row.position:
        lines.append(f"  indices   {', '.join(f'{k} = {v}' for k, v in row.position.items())}")
    lines += [
        f"  role      {rule.role_name} ({rule.dtype} by the config)",
        f"  cut       {cut_of(rule)}",
        f"  Megatron  {row.megatron}  {shape_of(rule)}",
    ]
    for surface in ("hf", "stored"):
        for name, form in zip(row.names(surface), row.forms.surfaces[surface], strict=True):
            stacked = "".join(f", {row.position[a.name]} of {a.size} on dim {i}" for i, a in enumerate(form.stacked))
            lines.append(f"  {SIDES[surface]:<12}  {name}  {list(form.shape)}{stacked}{_bytes(name, tensors)}")
    pieces = list(row.pieces("hf", "megatron"))
    shown = pieces if len(pieces) <= 12 else pieces[:6]
    for hf, hf_box, _, box in shown:
        lines.append(f"    {hf} {show_box(hf_box)} = {show_box(box)}")
    if len(shown) < len(pieces):
        lines.append(f"    ... {len(pieces) - len(shown)} more pieces")
    if rule.note:
        lines.append(f"  note      {rule.note}")
    return "\n".join(lines)


def _bytes(name: str, tensors: Mapping[str, StoredTensor] | None) -> str:
    tensor = (tensors or {}).get(name)
    if tensor is None:
        return ""
    chunk = tensor.chunks[0]
    more = f" and {len(tensor.chunks) - 1} more chunks" if len(tensor.chunks) > 1 else ""
    end = chunk.offset + chunk.nbytes
    return f"\n                {tensor.dtype}, {chunk.file} bytes {chunk.offset:,} to {end:,}{more}"


def _resolution_json(found: Resolution, tensors: Mapping[str, StoredTensor] | None) -> dict[str, Any]:
    row, rule = found.row, found.row.rule
    stored = {
        name: [{"file": c.file, "offset": c.offset, "nbytes": c.nbytes, "box": c.box} for c in tensors[name].chunks]
        for surface in ("hf", "stored")
        for name in row.names(surface)
        if tensors and name in tensors
    }
    return {
        "name": found.name,
        "side": found.surface,
        "rule": {"at": str(rule.span), "key": rule.key, "block": rule.block, "mount": rule.mount},
        "indices": dict(row.position),
        "role": rule.role_name,
        "dtype": rule.dtype,
        "cut": cut_of(rule),
        "megatron": {"name": row.megatron, "shape": list(row.shape)},
        **{
            surface: [
                {"name": name, "shape": list(form.shape), "stacked": [a.name for a in form.stacked]}
                for name, form in zip(row.names(surface), row.forms.surfaces[surface], strict=True)
            ]
            for surface in ("hf", "stored")
        },
        "pieces": [[a, show_box(b), c, show_box(d)] for a, b, c, d in row.pieces("hf", "megatron")],
        "bytes": stored,
    }
