"""The proof: the regions of a table tile both sides exactly once. Nothing left over, nothing twice.

It needs a config and no checkpoint. Rules are proven once each, because their rows differ in names only; tensors that
several rows share (stacked experts) are proven from the rows' places in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mapspec.diagnostics import Diagnostic, Note
from mapspec.regions import tiling_fault
from mapspec.table import SURFACES, Member, Row, RuleForms, Table, TensorDecl
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
    findings = [*_canonical_names(table), *_rules(table), *_lists(table), *_ties(table)]
    for surface in SURFACES:
        findings += _tensors(table, surface)
    hf, megatron = table.inventory("hf"), table.inventory("megatron")
    return Proof(
        tuple(sorted(set(findings), key=Diagnostic.sort_key)),
        len(hf),
        sum(decl.numel for decl in hf.values()),
        len(megatron),
        sum(decl.numel for decl in megatron.values()),
        len(table.inventory("stored")),
    )


def _canonical_names(table: Table) -> Iterator[Diagnostic]:
    first: dict[str, Row] = {}
    for row in table.rows:
        other = first.setdefault(row.megatron, row)
        if other is not row:
            message = f"`{row.rule.key}` and `{other.rule.key}` both make `{row.megatron}`"
            notes = (Note("the other rule", other.rule.span),)
            yield Diagnostic(
                "MS501", message, row.rule.span, notes=notes, help="a weight has one rule; drop one of them"
            )


def _rules(table: Table) -> Iterator[Diagnostic]:
    for forms in dict.fromkeys(row.forms for row in table.rows):
        for left, right in (("megatron", "hf"), ("hf", "megatron"), ("stored", "megatron"), ("megatron", "stored")):
            for number, form in enumerate(forms.surfaces[right]):
                boxes = [piece.right_box for piece in forms.region(left, right) if piece.right == number]
                # Rows that padding adds to the Megatron side are zeros, nobody's image on the Hugging Face side.
                shape = _unpadded(forms, form.slot.shape) if left == "hf" else form.slot.shape
                fault = tiling_fault(shape, boxes)
                if fault:
                    message = f"`{forms.rule.key}` does not cover its {right} tensor exactly once: {fault}"
                    yield Diagnostic("MS502", message, forms.rule.span)


def _unpadded(forms: RuleForms, shape: tuple[int, ...]) -> tuple[int, ...]:
    dims = forms.rule.dims or ()
    return tuple(dim.size if dim.padded is not None else n for dim, n in zip(dims, shape, strict=True))


def _tensors(table: Table, surface: str) -> Iterator[Diagnostic]:
    for decl in table.inventory(surface).values():
        if len(decl.members) == 1 and not decl.members[0].form.stacked:
            continue
        shapes = {member.form.shape for member in decl.members}
        boxes = [_place(member) for member in decl.members]
        fault = f"its shape is given as {sorted(shapes)}" if len(shapes) > 1 else tiling_fault(decl.shape, boxes)
        if fault:
            yield _shared(decl, surface, fault)


def _place(member: Member) -> tuple[tuple[int, int], ...]:
    return member.form.lead(member.row.position) + whole(member.form.slot.shape)


def _shared(decl: TensorDecl, surface: str, fault: str) -> Diagnostic:
    rules = list(dict.fromkeys(member.row.rule.span for member in decl.members))
    side = {"hf": "Hugging Face tensor", "stored": "torch_dist tensor", "megatron": "Megatron tensor"}[surface]
    if len(rules) > 1:
        message = f"two rules claim the {side} `{decl.name}`: {fault}"
        notes = tuple(Note("the other rule", span) for span in rules[1:])
        help_ = "rule order never decides; make the names differ, or give the rules conditions that exclude each other"
        return Diagnostic("MS501", message, rules[0], notes=notes, help=help_)
    message = f"`{decl.members[0].row.rule.key}` fills the {side} `{decl.name}` wrongly: {fault}"
    help_ = "a name without the hole of an axis holds all its positions; is a `{hole}` missing in the name?"
    return Diagnostic("MS502", message, rules[0], help=help_)


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
