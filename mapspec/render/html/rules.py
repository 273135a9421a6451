"""A table as data for a page: a record per rule, from which the page writes out tensor names itself.

Positions are products of index sets, names are patterns: the page of a model with 51,000 tensors stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mapspec.bound import BoundDim, BoundRule
from mapspec.collapse import collapse, products
from mapspec.errors import SpecError
from mapspec.ranks import Shard, local_region
from mapspec.render.html.spots import Spots
from mapspec.render.show import cut_of, grouped
from mapspec.table import Form, Row, RuleForms, Table

__all__ = ["SIZES", "table_data"]

SIZES = (1, 2, 4, 8, 16)
"""Tensor-parallel sizes that pages draw."""


def table_data(table: Table, spots: Spots) -> dict[str, Any]:
    """Rules, dims, axes and trees of a table.

    Returns:
        `rules` (one record each, see `_rule`), `dims` (how they are cut, shared by rules), `axes` (layer kinds in
        order), and `trees`: surface -> leaves `[pattern, tensors, rule, shape]`.
    """
    dims = _Dims()
    groups = grouped(table)
    trees: dict[str, list[list[Any]]] = {"hf": [], "megatron": [], "stored": []}
    rules = []
    for number, (forms, rows) in enumerate(groups.items()):
        rules.append(_rule(table, forms, rows, dims, spots))
        tied = rows[0].megatron in table.tied
        for surface, leaves in trees.items():
            columns = zip(forms.surfaces[surface], forms.columns(surface), strict=True)
            for form, column in columns if surface == "hf" or not tied else ():
                patterns = collapse(column.names[row.number] for row in rows)
                leaves += [[pattern, count, number, list(form.shape)] for pattern, count in patterns]
    return {"rules": rules, "dims": dims.records, "axes": _axes(table), "trees": trees, "sizes": list(SIZES)}


def _rule(table: Table, forms: RuleForms, rows: Sequence[Row], dims: _Dims, spots: Spots) -> dict[str, Any]:
    rule = forms.rule
    tied = table.tied.get(rows[0].megatron)
    return {
        "key": rule.key,
        "scope": rule.scope,
        "mount": rule.mount,
        "block": rule.block,
        "at": spots.at(rule.span),
        "hf": [[*_form(form), form.segment] for form in forms.surfaces["hf"]],
        "megatron": [_form(form) for form in forms.surfaces["megatron"]],
        "stored": [_form(form) for form in forms.surfaces["stored"]],
        "shape": list(rows[0].shape),
        "dims": [dim.name for dim in rule.dims or ()],
        "drawn": dims.of(forms),
        "cut": cut_of(rule),
        "experts": _experts(rule),
        "role": rule.role_name,
        "dtype": rule.dtype,
        "note": rule.note,
        "tied": tied,
        "count": len(rows),
        "elements": sum(row.numel for row in rows),
        "positions": _positions([row.position for row in rows]),
    }


def _form(form: Form) -> list[Any]:
    return [str(form.pattern) + form.suffix, list(form.shape)]


def _experts(rule: BoundRule) -> int | None:
    """Number of experts, for rules whose rows expert parallelism deals out."""
    held = set(rule.positions[0]) if rule.positions else set()
    return next((a.size for name, a in rule.axes.items() if a.parallel == "expert" and name in held), None)


def _positions(positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`fixed` values, and products of runs `[first, last]` of the axes that vary."""
    first = positions[0]
    varying = [axis for axis in first if any(position[axis] != first[axis] for position in positions)]
    fixed = {axis: value for axis, value in first.items() if axis not in varying}
    blocks = products([tuple(position[axis] for axis in varying) for position in positions]) if varying else []
    return {"fixed": fixed, "axes": varying, "sets": [[_runs(values) for values in block] for block in blocks]}


def _runs(values: Iterable[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return runs


def _axes(table: Table) -> list[dict[str, Any]]:
    """Axes whose positions have kinds, in the order of their scopes."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for rule in table.bound.rules:
        for name, axis in rule.axes.items():
            if axis.kinds:
                found.setdefault((rule.scope, name), {"scope": rule.scope, "name": name, "kinds": list(axis.kinds)})
    return list(found.values())


class _Dims:
    """Dims that are worth a drawing: fused ones and those that parallelism cuts, each once."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._numbers: dict[object, int] = {}

    def of(self, forms: RuleForms) -> list[list[int]]:
        """`[axis, number]` of the dims of a rule that are drawn."""
        dims = forms.rule.dims or ()
        return [[i, self._number(forms, dim)] for i, dim in enumerate(dims) if dim.fused or dim.split is not None]

    def _number(self, forms: RuleForms, dim: BoundDim) -> int:
        key = (dim.name, dim.size, dim.padded, dim.order, tuple(dim.sizes.items()), dim.split, dim.split_by)
        if key not in self._numbers:
            self._numbers[key] = len(self.records)
            runs = [[segment, dim.sizes[segment]] for segment in dim.order] if dim.fused else [["", dim.size]]
            self.records.append(
                {
                    "name": dim.name,
                    "size": dim.size,
                    "padded": dim.padded,
                    "runs": runs,
                    "split": dim.split,
                    "by": dim.split_by,
                    "stored": dim.stored_by,
                    "cuts": {} if dim.split is None else {size: _cuts(forms, dim, size) for size in SIZES},
                }
            )
        return self._numbers[key]


def _cuts(forms: RuleForms, dim: BoundDim, size: int) -> list[list[list[int]]] | str:
    """Rows `[first, end]` that each rank owns, as the engine cuts them, or why the size does not fit."""
    axis = next(i for i, other in enumerate(forms.rule.dims or ()) if other is dim)
    try:
        shards = [Shard(tp_rank=rank, tp_size=size) for rank in range(size)]
        return [[list(p.left_box[axis]) for p in local_region(forms, shard)] for shard in shards]
    except SpecError as error:
        return error.diagnostics[0].message
