"""`show` and `plan` as pages: what the model is, what would happen to it, and which line of a spec says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapspec.amounts import human_bytes
from mapspec.collapse import collapse
from mapspec.mapping import CompiledMapping
from mapspec.plan import Plan
from mapspec.prepare import Prepared
from mapspec.prove import Proof
from mapspec.render.grid import SIDES
from mapspec.render.html.assemble import assemble
from mapspec.render.html.provider import provider_data
from mapspec.render.html.rules import table_data
from mapspec.render.html.spots import Spots
from mapspec.render.show import proof_line
from mapspec.table import Table
from mapspec.tensors import StoredTensor, numel

__all__ = ["plan_page", "show_page"]

_SCRIPTS = ("report.js",)


def show_page(mapping: CompiledMapping, config: Path, *, output: Path | None = None, url: str | None = None) -> str:
    """The rules of a mapping for one model; `show --format html`.

    Args:
        mapping: the mapping, compiled for the config.
        config: path of the config, which names the model.
        output: file that the page is written to; plain links to specs are relative to it.
        url: template of links to spec lines, with `{path}` and `{line}`; default: relative paths.
    """
    table, proof = mapping.table, mapping.proof
    spots = _spots(output, url)
    data = {
        **_head("show", _model_name(config), table, proof),
        "lead": "Hugging Face and Megatron-Core, side by side",
        "facts": [_fact("Tensors", f"{proof.hf_tensors:,}", _sides(proof)), *_common_facts(table, proof)],
        **table_data(table, spots),
        "provider": provider_data(table.bound.config, spots, where=str(config)),
        "sources": spots.files,
    }
    return assemble(data, _SCRIPTS)


def plan_page(prepared: Prepared, *, output: Path | None = None, url: str | None = None) -> str:
    """What a conversion would do; `plan --format html`. Arguments as for `show_page`."""
    plan, table = prepared.plan, prepared.table
    spots = _spots(output, url)
    source = prepared.source
    body = table_data(table, spots)
    _add_bytes(body["rules"], plan, source.tensors)
    data = {
        **_head("plan", prepared.source.path.resolve().name, table, prepared.proof),
        "lead": f"{SIDES[plan.source_surface]} to {SIDES[plan.target_surface]}",
        "path": str(source.path),
        "from": plan.source_surface,
        "facts": _plan_facts(prepared),
        "coverage": _coverage(prepared),
        "steps": _steps(plan),
        "listed": [*_listed("passed through", plan.coverage.passthrough), *_listed("ignored", plan.coverage.ignored)],
        "notes": _notes(prepared),
        **body,
        "provider": provider_data(prepared.config, spots, where=prepared.reference.where),
        "sources": spots.files,
    }
    return assemble(data, _SCRIPTS)


def _spots(output: Path | None, url: str | None) -> Spots:
    return Spots(Path.cwd() if output is None else output.resolve().parent, url)


def _model_name(config: Path) -> str:
    return config.resolve().parent.name if config.name == "config.json" else config.stem


def _head(kind: str, title: str, table: Table, proof: Proof) -> dict[str, Any]:
    linked = table.bound.linked
    return {
        "format_version": "1.0",
        "kind": kind,
        "title": title,
        "mapping": linked.name,
        "architectures": [str(a) for a in table.bound.config.get("architectures") or ()],
        "flavours": [[k, v, linked.flavours()[k].about] for k, v in table.bound.flavours.items()],
        "table_hash": table.hash,
        "proof": proof_line(proof),
    }


def _fact(label: str, value: str, note: str = "") -> list[str]:
    return [label, value, note]


def _sides(proof: Proof) -> str:
    return f"{proof.megatron_tensors:,} Megatron parameters, under {proof.stored_tensors:,} torch_dist keys"


def _common_facts(table: Table, proof: Proof) -> list[list[str]]:
    layers = [axis for axis in _kinded(table) if axis]
    facts = [_fact("Parameters", _billions(proof.hf_elements), f"{proof.hf_elements:,} elements")]
    if layers:
        kinds = ", ".join(f"{layers[0].count(kind)} {kind}" for kind in dict.fromkeys(layers[0]))
        facts.append(_fact("Layers", str(len(layers[0])), kinds))
    return facts


def _kinded(table: Table) -> Iterable[Sequence[str]]:
    return (axis.kinds for rule in table.bound.rules for axis in rule.axes.values() if axis.kinds)


def _billions(n: int) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _plan_facts(prepared: Prepared) -> list[list[str]]:
    plan, proof = prepared.plan, prepared.proof
    read, written = len(prepared.source.tensors), len(plan.targets)
    objects = f", {len(plan.table.objects):,} empty extra-state objects" if prepared.to == "megatron" else ""
    files = {chunk.file for tensor in prepared.source.tensors.values() for chunk in tensor.chunks}
    values = "unchanged" if not plan.steps else f"{len(plan.steps)} step{'s' if len(plan.steps) != 1 else ''}"
    return [
        _fact("Tensors", f"{read:,} → {written:,}", f"{SIDES[plan.source_surface]} to {SIDES[plan.target_surface]}"),
        _fact(
            "To move", human_bytes(plan.nbytes), f"from {len(files):,} file{'s' if len(files) != 1 else ''}{objects}"
        ),
        *_common_facts(plan.table, proof),
        _fact("Values", values, "every byte is copied as it is" if not plan.steps else "listed below"),
    ]


def _coverage(prepared: Prepared) -> list[list[Any]]:
    """How many source tensors are accounted for in which way."""
    found = prepared.plan.coverage
    counts = [
        ["mapped", len(found.mapped)],
        ["tied copies, compared and dropped", len(found.tied_copies)],
        ["passed through", len(found.passthrough)],
        ["ignored, with a reason", len(found.ignored)],
    ]
    return [[label, count] for label, count in counts if count]


def _steps(plan: Plan) -> list[dict[str, Any]]:
    """Value steps, with the rules that they belong to as numbers."""
    number = {id(forms): i for i, forms in enumerate(dict.fromkeys(row.forms for row in plan.table.rows))}
    out = []
    for step in plan.steps:
        surface = plan.source_surface if step.kind == "tied" else plan.target_surface
        inventory = plan.table.inventory(surface)
        rules = {number[id(m.row.forms)] for n in step.tensors if n in inventory for m in inventory[n].members}
        patterns = [[pattern, count] for pattern, count in collapse(step.tensors)]
        out.append({"kind": step.kind, "detail": step.detail, "patterns": patterns, "rules": sorted(rules)})
    return out


def _listed(what: str, names: Sequence[tuple[str, str]]) -> list[list[Any]]:
    by_reason: dict[str, list[str]] = {}
    for name, why in names:
        by_reason.setdefault(why, []).append(name)
    return [[what, p, count, why] for why, listed in by_reason.items() for p, count in collapse(listed)]


def _notes(prepared: Prepared) -> list[str]:
    return [f"{note[0].upper()}{note[1:]}." for note in prepared.notes]


def _add_bytes(rules: Sequence[dict[str, Any]], plan: Plan, tensors: Mapping[str, StoredTensor]) -> None:
    """What the checkpoint holds: dtype before and after, and bytes that are read for each rule."""
    after = {target.name: target.dtype for target in plan.targets}
    forms = dict.fromkeys(row.forms for row in plan.table.rows)
    found: dict[int, tuple[set[str], set[str], list[float]]] = {id(f): (set(), set(), [0.0]) for f in forms}
    for row in plan.table.rows:
        before, then, nbytes = found[id(row.forms)]
        for name, form in zip(row.names(plan.source_surface), row.forms.surfaces[plan.source_surface], strict=True):
            tensor = tensors.get(name)
            if tensor is not None:
                before.add(tensor.dtype)
                nbytes[0] += tensor.nbytes * numel(form.slot.shape) / max(numel(form.shape), 1)
        then.update(after[name] for name in row.names(plan.target_surface) if name in after)
    for rule, (before, then, nbytes) in zip(rules, found.values(), strict=True):
        if before:
            rule["dtype"] = " → ".join(dict.fromkeys((", ".join(sorted(before)), ", ".join(sorted(then or before)))))
            rule["bytes"] = human_bytes(nbytes[0])
