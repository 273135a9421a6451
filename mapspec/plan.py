"""Table + the headers of one checkpoint -> what each tensor of the other is made of, before a single byte moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mapspec.boxes import intersect
from mapspec.coverage import Coverage, cover
from mapspec.cuts import Cuts, chunk_boxes
from mapspec.diagnostics import Diagnostic
from mapspec.fill import Fill, Part
from mapspec.io.layout import Layout, NewTensor
from mapspec.regions import clip
from mapspec.table import Column, Row, RuleForms, Table, TensorDecl
from mapspec.tensors import FLOATS, Box, StoredTensor, whole

__all__ = ["Plan", "ValueStep", "make_plan"]


@dataclass(frozen=True, slots=True)
class ValueStep:
    """Something that changes or checks values. Regions only move bytes; everything else is listed as a step.

    Attributes:
        kind: `cast`, `pad`, `trim` or `tied`.
        tensors: names on the target side (for `tied`: on the source side).
        detail: what is done, for people.
    """

    kind: str
    tensors: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Plan:
    """A conversion, decided.

    Attributes:
        table: the bound spec.
        source_surface, target_surface: `hf` or `stored`.
        coverage: how every source tensor is accounted for.
        targets: tensors to be written.
        parts: target name -> per box of the target, the parts that tile it.
        steps: everything that changes or checks values.
        findings: why the conversion cannot run; empty if it can.
        equal: pairs of source tensors whose bytes have to be equal (tied copies).
    """

    table: Table
    source_surface: str
    target_surface: str
    coverage: Coverage
    targets: tuple[NewTensor, ...]
    parts: Mapping[str, tuple[tuple[Part, ...], ...]]
    steps: tuple[ValueStep, ...]
    findings: tuple[Diagnostic, ...]
    equal: tuple[tuple[StoredTensor, StoredTensor], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data that are read from the source."""
        seen: dict[str, int] = {}
        for boxes in self.parts.values():
            for parts in boxes:
                for part in parts:
                    if part.source is not None:
                        seen[part.source.name] = part.source.nbytes
        return sum(seen.values())

    def fills(self, layout: Layout) -> Iterator[Fill]:
        """The plan over the files of a layout that was made for `targets`."""
        for target in self.targets:
            stored = layout.tensors[target.name]
            for chunk, parts in zip(stored.chunks, self.parts[target.name], strict=True):
                yield Fill(stored, chunk, parts)


@dataclass(slots=True)
class _Target:
    decl: TensorDecl
    boxes: dict[Box, list[Part]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)


def make_plan(
    table: Table,
    source_surface: str,
    tensors: Mapping[str, StoredTensor],
    *,
    casts: Mapping[str, str] | None = None,
    dtype: str | None = None,
    hf_names: frozenset[str] | None = None,
    cuts: Cuts | None = None,
) -> Plan:
    """Decide a conversion.

    Args:
        table: the spec bound to the checkpoint's config.
        source_surface: `hf` to go to Megatron-Core, `stored` to go to Hugging Face.
        tensors: what the source holds.
        casts: role -> dtype, asked for by name; reaches roles that `dtype` does not.
        dtype: cast every floating tensor whose role allows it.
        hf_names: Hugging Face names that the result should have where the spec leaves it open (tied copies).
        cuts: parallel sizes that the chunks of a torch_dist checkpoint are cut for; `None` leaves tensors whole.

    Raises:
        SpecError: MS408 where a parallel size that was asked for does not divide what it cuts.
    """
    target_surface = "stored" if source_surface == "hf" else "hf"
    casts = dict(casts or {})
    coverage = cover(table, source_surface, tensors, cast_roles=casts)
    findings = list(coverage.findings)
    targets: dict[str, _Target] = {}
    tied_rows: list[Row] = []
    patterns = _Patterns(source_surface, target_surface, cuts)
    inventory = table.inventory(target_surface)
    for row in table.rows:
        source_row = row
        if row.megatron in table.tied:
            if target_surface == "stored":
                tied_rows.append(row)
                continue
            if not any(name in (hf_names or ()) for name in row.names("hf")):
                continue
            source_row = table.by_megatron[table.tied[row.megatron]]
        _add_row(patterns.of(row.forms, source_row.forms), row, source_row, tensors, inventory, targets)
    steps: list[ValueStep] = []
    new: list[NewTensor] = []
    for name, target in targets.items():
        role = target.decl.members[0].row.rule
        found = set(target.dtypes.values())
        wanted = casts.get(role.role_name) or (dtype if dtype and role.role.keep is None else None)
        if wanted and found <= set(FLOATS):
            result = wanted
        elif len(found) > 1:
            listed = ", ".join(f"`{source}` {d}" for source, d in sorted(target.dtypes.items())[:4])
            message = f"`{name}` would be made of tensors of different dtypes: {listed}"
            help_ = f"pass --dtype or --cast {role.role_name}=DTYPE to bring them to one dtype"
            findings.append(Diagnostic("MS515", message, role.span, help=help_))
            continue
        else:
            result = next(iter(found), role.dtype)
        new.append(NewTensor(name, result, target.decl.shape, tuple(target.boxes)))
        for before in sorted(found - {result}):
            steps.append(ValueStep("cast", (name,), f"{before} -> {result}"))
    parts = {name: tuple([tuple(p) for p in target.boxes.values()]) for name, target in targets.items()}
    steps += _padding(table, source_surface, target_surface)
    equal = tuple(pair for row in tied_rows for pair in _tied_pairs(table, row, tensors))
    steps += [ValueStep("tied", (a.name,), f"has to equal `{b.name}`, byte by byte") for a, b in equal]
    return Plan(
        table, source_surface, target_surface, coverage, tuple(new), parts, _merge(steps), tuple(findings), equal
    )


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What the rows of a rule contribute, leading axes left out: computed once, filled in for every row.

    Attributes:
        sources, targets: names and leading axes of the source and target tensors.
        boxes: of each target tensor.
        chunked: whether these are chunks of one row each; else all rows of a tensor share its one box.
        pieces: number of the target tensor and of the box in it, of the source tensor; box in source and target.
        zeros: number of the target tensor and of the box in it; box of the rows that vocabulary padding adds.
    """

    sources: tuple[Column, ...]
    targets: tuple[Column, ...]
    boxes: tuple[tuple[Box, ...], ...]
    chunked: bool
    pieces: tuple[tuple[int, int, int, Box, Box], ...]
    zeros: tuple[tuple[int, int, Box], ...]


class _Patterns:
    """The patterns of all rules, for one direction."""

    def __init__(self, source: str, target: str, cuts: Cuts | None) -> None:
        self._source, self._target, self._cuts = source, target, cuts
        self._known: dict[tuple[int, int], _Pattern] = {}

    def of(self, forms: RuleForms, source_forms: RuleForms) -> _Pattern:
        """The pattern of rows with these forms; tied copies take their values from rows of other forms."""
        key = id(forms), id(source_forms)
        if key not in self._known:
            self._known[key] = self._make(forms, source_forms)
        return self._known[key]

    def _make(self, forms: RuleForms, source_forms: RuleForms) -> _Pattern:
        region = source_forms.region(self._source, self._target)
        columns = source_forms.columns(self._source), forms.columns(self._target)
        targets = forms.surfaces[self._target]
        if self._target == "hf":
            # safetensors has no chunks: one box, which all rows share where a tensor holds several
            whole_boxes = tuple((whole(form.shape),) for form in targets)
            pieces = tuple((p.right, 0, p.left, p.left_box, p.right_box) for p in region)
            return _Pattern(*columns, whole_boxes, False, pieces, ())
        boxes = chunk_boxes(forms, self._cuts)
        cut = (
            (p.right, n, part.left, part.left_box, part.right_box)
            for p in region
            for n, box in enumerate(boxes[p.right])
            if (part := p if len(boxes[p.right]) == 1 else clip(p, box)) is not None
        )
        zeros = (
            (number, n, common)
            for number, form in enumerate(targets)
            if (padding := _padding_box(forms, form.slot.shape)) is not None
            for n, box in enumerate(boxes[number])
            if (common := intersect(padding, box)) is not None
        )
        return _Pattern(*columns, boxes, True, tuple(cut), tuple(zeros))


def _add_row(
    pattern: _Pattern, row: Row, source_row: Row, tensors: Mapping[str, StoredTensor],
    inventory: Mapping[str, TensorDecl], targets: dict[str, _Target],
) -> None:  # fmt: skip
    """Add what one row contributes to its target tensors."""
    at, to = source_row.number, row.number
    sources = [(tensors.get(column.names[at]), column.leads[at]) for column in pattern.sources]
    places = []
    for column, boxes in zip(pattern.targets, pattern.boxes, strict=True):
        name, lead = column.names[to], column.leads[to]
        target = targets.get(name)
        if target is None:
            target = targets[name] = _Target(inventory[name])
        inner = lead if pattern.chunked else ()
        places.append((target, [target.boxes.setdefault(inner + box, []) for box in boxes], lead))
    for number, n, box in pattern.zeros:
        _, buckets, lead = places[number]
        buckets[n].append(Part(lead + box, None, ()))
    for number, n, left, left_box, right_box in pattern.pieces:
        source, source_lead = sources[left]
        if source is None:
            continue
        target, buckets, lead = places[number]
        buckets[n].append(Part(lead + right_box, source, source_lead + left_box))
        target.dtypes[source.name] = source.dtype


def _padding_box(forms: RuleForms, shape: tuple[int, ...]) -> Box | None:
    """The rows that vocabulary padding adds to a stored tensor."""
    for axis, dim in enumerate(forms.rule.dims or ()):
        if dim.padded is not None and dim.padded > dim.size:
            return tuple((dim.size, n) if i == axis else (0, n) for i, n in enumerate(shape))
    return None


def _padding(table: Table, source_surface: str, target_surface: str) -> list[ValueStep]:
    out = []
    for row in table.rows:
        if row.megatron in table.tied:
            continue
        for dim in row.rule.dims or ():
            if dim.padded is not None and dim.padded > dim.size:
                if target_surface == "stored":
                    detail = f"rows {dim.size:,} to {dim.padded:,} are zero"
                    out.append(ValueStep("pad", row.names("stored"), detail))
                else:
                    detail = f"rows from {dim.size:,} on are padding and are dropped"
                    out.append(ValueStep("trim", row.names("hf"), detail))
    return out


def _tied_pairs(
    table: Table, row: Row, tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[StoredTensor, StoredTensor]]:
    partner = table.by_megatron[table.tied[row.megatron]]
    for copy, original in zip(row.names("hf"), partner.names("hf"), strict=True):
        if copy in tensors and original in tensors:
            yield tensors[copy], tensors[original]


def _merge(steps: list[ValueStep]) -> tuple[ValueStep, ...]:
    """Steps of the same kind and detail as one."""
    merged: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        merged.setdefault((step.kind, step.detail), []).extend(step.tensors)
    return tuple(ValueStep(kind, tuple(names), detail) for (kind, detail), names in merged.items())
