"""Table + the headers of one checkpoint -> what each tensor of the other is made of, before a single byte moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mapspec.coverage import Coverage, cover
from mapspec.diagnostics import Diagnostic
from mapspec.fill import Fill, Part
from mapspec.io.layout import Layout, NewTensor
from mapspec.table import Row, Table, TensorDecl
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


@dataclass
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
) -> Plan:
    """Decide a conversion.

    Args:
        table: the spec bound to the checkpoint's config.
        source_surface: `hf` to go to Megatron-Core, `stored` to go to Hugging Face.
        tensors: what the source holds.
        casts: role -> dtype, asked for by name; reaches roles that `dtype` does not.
        dtype: cast every floating tensor whose role allows it.
        hf_names: Hugging Face names that the result should have where the spec leaves it open (tied copies).
    """
    target_surface = "stored" if source_surface == "hf" else "hf"
    casts = dict(casts or {})
    coverage = cover(table, source_surface, tensors, cast_roles=casts)
    findings = list(coverage.findings)
    targets: dict[str, _Target] = {}
    tied_rows: list[Row] = []
    for row in table.rows:
        source_row = row
        if row.megatron in table.tied:
            if target_surface == "stored":
                tied_rows.append(row)
                continue
            if not any(name in (hf_names or ()) for name in row.names("hf")):
                continue
            source_row = table.by_megatron[table.tied[row.megatron]]
        _add_row(table, row, source_row, source_surface, target_surface, tensors, targets)
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
    parts = {name: tuple(tuple(p) for p in target.boxes.values()) for name, target in targets.items()}
    steps += _padding(table, source_surface, target_surface)
    equal = tuple(pair for row in tied_rows for pair in _tied_pairs(table, row, tensors))
    steps += [ValueStep("tied", (a.name,), f"has to equal `{b.name}`, byte by byte") for a, b in equal]
    return Plan(
        table, source_surface, target_surface, coverage, tuple(new), parts, _merge(steps), tuple(findings), equal
    )


def _add_row(
    table: Table, row: Row, source_row: Row, source_surface: str, target_surface: str,
    tensors: Mapping[str, StoredTensor], targets: dict[str, _Target],
) -> None:  # fmt: skip
    """Add what one row contributes to its target tensors."""
    region = source_row.forms.region(source_surface, target_surface)
    sources = [(tensors.get(n), f.lead(source_row.position)) for n, f in zip(
        source_row.names(source_surface), source_row.forms.surfaces[source_surface], strict=True)]  # fmt: skip
    inventory = table.inventory(target_surface)
    places = []
    for name, form in zip(row.names(target_surface), row.forms.surfaces[target_surface], strict=True):
        target = targets.get(name)
        if target is None:
            target = targets[name] = _Target(inventory[name])
        lead = form.lead(row.position)
        # torch_dist keeps one chunk per expert, as Megatron-Core's own writer does; safetensors has no chunks.
        box = lead + whole(form.slot.shape) if target_surface == "stored" else whole(form.shape)
        bucket = target.boxes.setdefault(box, [])
        places.append((target, bucket, lead))
        if target_surface == "stored":
            bucket += _zeros(row, form.slot.shape, lead)
    for piece in region:
        source, source_lead = sources[piece.left]
        if source is None:
            continue
        target, bucket, lead = places[piece.right]
        bucket.append(Part(lead + piece.right_box, source, source_lead + piece.left_box))
        target.dtypes[source.name] = source.dtype


def _zeros(row: Row, shape: tuple[int, ...], lead: Box) -> list[Part]:
    """Parts for the rows that vocabulary padding adds."""
    for axis, dim in enumerate(row.rule.dims or ()):
        if dim.padded is not None and dim.padded > dim.size:
            box = tuple((dim.size, n) if i == axis else (0, n) for i, n in enumerate(shape))
            return [Part(lead + box, None, ())]
    return []


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
