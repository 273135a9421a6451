"""The proof: the regions of a table tile both sides exactly once. Nothing left over, nothing twice.

It needs a config and no checkpoint. Rules are proven once each, because their rows differ in names only; tensors that
several rows share (stacked experts) are proven from the rows' places in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mapspec.bind import BoundRule
from mapspec.boxes import tiling_fault
from mapspec.diagnostics import Diagnostic, Note, Span
from mapspec.table import RuleForms, Table, TensorDecl
from mapspec.tensors import whole

__all__ = ["Proof", "prove"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was shown.

    Attributes:
        findings: why the table is no bijection; empty if it is one.
        hf_tensors, hf_elements: size of the Hugging Face side.
        megatron_tensors, megatron_elements: size of the canonical Megatron side (padding included).
        stored_tensors: number of torch_dist tensors.
    """

    findings: tuple[Diagnostic, ...]
    hf_tensors: int
    hf_elements: int
    megatron_tensors: int
    megatron_elements: int
    stored_tensors: int


def prove(table: Table) -> Proof:
    """Check that the table is a bijection between its two sides."""
    findings = [*_claims(table), *_rules(table), *_lists(table), *_ties(table)]
    hf = table.inventory("hf")
    megatron = [row for row in table.rows if row.megatron not in table.tied]
    return Proof(
        tuple(sorted(set(findings), key=Diagnostic.sort_key)),
        len(hf),
        sum(decl.numel for decl in hf.values()),
        len(megatron),
        sum(row.numel for row in megatron),
        len(table.inventory("stored")),
    )


def _claims(table: Table) -> Iterator[Diagnostic]:
    """Tensors that several rows share: that they share them well, or else one finding for each set of rules."""
    found: dict[frozenset[Place], tuple[str, TensorDecl, str]] = {}
    counts: Counter[frozenset[Place]] = Counter()
    # Canonical names are looked into only where two rows share one: most tables are large, and none of them do.
    shared = len(table.by_megatron) < len(table.rows)
    for surface in ("megatron", "hf", "stored") if shared else ("hf", "stored"):
        for decl in table.inventory(surface).values():
            if len(decl.members) == 1 and not decl.members[0].form.stacked:
                continue
            fault = _fault(decl, surface)
            if fault is not None:
                places = frozenset(_place(member.row.rule) for member in decl.members)
                counts[places] += found.setdefault(places, (surface, decl, fault))[0] == surface
    for places, (surface, decl, fault) in found.items():
        # The finding stands in the file that is looked at, where one of the rules is an inherited one.
        top = str(table.bound.linked.top.document.path)
        ordered = sorted(places, key=lambda place: (place[0].path == top, place))
        yield _claimed(ordered, surface, decl, fault, counts[places])


type Place = tuple[Span, str, str]
"""A rule at its mount: place of the rule, scope and mount."""


def _place(rule: BoundRule) -> Place:
    return rule.span, rule.scope, rule.mount


def _fault(decl: TensorDecl, surface: str) -> str | None:
    """How the rows of a tensor fail to share it."""
    if surface == "megatron":
        # A row is one canonical tensor: nothing is shared on this side, not even well.
        return "several positions have this one name"
    forms = {id(member.form): member.form for member in decl.members}
    shapes = sorted({form.shape for form in forms.values()})
    if len(shapes) > 1:
        return f"its shape is given as {' and '.join(str(list(shape)) for shape in shapes)}"
    boxes = [m.form.lead(m.row.position) + whole(m.form.slot.shape) for m in decl.members]
    return tiling_fault(decl.shape, boxes)


def _claimed(places: list[Place], surface: str, decl: TensorDecl, fault: str, count: int) -> Diagnostic:
    table_of = {_place(member.row.rule): member.row.rule for member in decl.members}
    rules = [table_of[place] for place in places]
    side = {"hf": "Hugging Face tensor", "stored": "torch_dist tensor", "megatron": "Megatron tensor"}[surface]
    more = f" and {count - 1:,} more" if count > 1 else ""
    what = f"the {side} `{decl.name}`{more}"
    if len(rules) == 1:
        message = f"`{rules[0].key}` fills {what} wrongly: {fault}"
        help_ = "a name without the hole of an axis holds all its positions; is a `{hole}` missing in the name?"
        return Diagnostic("MS502", message, rules[0].span, help=help_)
    *others, last = rules
    if others[-1].span == last.span:
        message = f"mounts {' and '.join(f'`{rule.mount}`' for rule in rules)} both make {what}"
        return Diagnostic("MS501", message, last.span, help="mount the block once, or under another prefix")
    how = f": {fault}" if fault.startswith("its shape") else ""
    message = f"two rules make {what}" if surface == "megatron" else f"two rules claim {what}{how}"
    notes = tuple(Note(f"the other rule, `{rule.key}`", rule.span) for rule in others)
    help_ = "rule order never decides; make the names differ, or give the rules conditions that exclude each other"
    return Diagnostic("MS501", message, last.span, notes=notes, help=help_)


def _rules(table: Table) -> Iterator[Diagnostic]:
    for forms in dict.fromkeys(row.forms for row in table.rows):
        fault = next(_untiled(forms), None)
        if fault is not None:
            surface, why = fault
            side = {"hf": "Hugging Face", "stored": "torch_dist", "megatron": "Megatron"}[surface]
            message = f"`{forms.rule.key}` does not cover its {side} tensor exactly once: {why}"
            yield Diagnostic("MS502", message, forms.rule.span)


def _untiled(forms: RuleForms) -> Iterator[tuple[str, str]]:
    for left, right in (("megatron", "hf"), ("hf", "megatron"), ("stored", "megatron"), ("megatron", "stored")):
        for number, form in enumerate(forms.surfaces[right]):
            boxes = [piece.right_box for piece in forms.region(left, right) if piece.right == number]
            # Rows that padding adds to the Megatron side are zeros, nobody's image on the Hugging Face side.
            shape = _unpadded(forms, form.slot.shape) if left == "hf" else form.slot.shape
            fault = tiling_fault(shape, boxes)
            if fault is not None:
                yield right, fault


def _unpadded(forms: RuleForms, shape: tuple[int, ...]) -> tuple[int, ...]:
    dims = forms.rule.dims or ()
    return tuple(dim.size if dim.padded is not None else n for dim, n in zip(dims, shape, strict=True))


def _ties(table: Table) -> Iterator[Diagnostic]:
    for name, to, span in table.bound.ties:
        for pattern in (name, to):
            if pattern.fill({}) not in table.by_megatron:
                yield Diagnostic("MS503", f"no rule makes `{pattern}`, so it cannot be tied", span)


def _lists(table: Table) -> Iterator[Diagnostic]:
    """Names that are both mapped and listed as passed through or ignored."""
    for section, surface in (("passthrough", "hf"), ("ignore_hf", "hf"), ("ignore_megatron", "stored")):
        for pattern, _, span in getattr(table.bound, section):
            hit = next((d for name, d in table.inventory(surface).items() if pattern.match(name)), None)
            if hit is not None:
                note = Note("the rule that maps it", hit.members[0].row.rule.span)
                message = f"`{pattern}` in `{section}` also matches the mapped tensor `{hit.name}`"
                yield Diagnostic("MS504", message, span, notes=(note,), help="make the pattern narrower")
