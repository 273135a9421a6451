"""Which rows have to be together to make whole Hugging Face tensors, and which of them a model can give."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from mapspec.diagnostics import Diagnostic
from mapspec.errors import PlanError
from mapspec.live.matching import Live
from mapspec.ranks import Shard
from mapspec.sources import Reference
from mapspec.table import Row
from mapspec.tensors import FLOATS, StoredTensor

__all__ = ["Item", "Target", "Unit", "cut_by", "is_expert", "passthrough", "target_dtype", "units_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """A Hugging Face tensor to be given out: name, shape, and a key of `DTYPES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Item:
    """A row that gives values.

    Attributes:
        row: whose names and regions count.
        at: number of the row whose parameter is read: another one where the row is tied.
    """

    row: Row
    at: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows and the tensors that they make up: one row and q, k, v; or all experts and one stacked tensor."""

    items: tuple[Item, ...]
    targets: tuple[Target, ...]


def units_of(live: Live, reference: Reference, dtype: str | None) -> Iterator[Unit]:
    """The units of a model in the mapping's order.

    Tied tensors are given out where the reference holds them as well. Rows that no rank holds are left out.

    Args:
        dtype: `None` for the reference's dtypes, `model` for those of the parameters, else the dtype of every tensor
            whose role allows it.

    Raises:
        PlanError: MS757 where a tensor would be made of some rows only.
    """
    table = live.table
    number = {row.megatron: at for at, row in enumerate(table.rows)}
    unheld = frozenset(live.unheld)
    grouped: dict[int, list[Item]] = {}
    unit_of: dict[str, int] = {}
    for at, row in enumerate(table.rows):
        names = row.names("hf")
        if row.megatron in table.tied:
            if not any(name in reference.shard_of for name in names):
                continue
            at = number[table.tied[row.megatron]]
        if table.rows[at].megatron in unheld:
            continue
        unit = next((unit_of[name] for name in names if name in unit_of), len(grouped))
        grouped.setdefault(unit, []).append(Item(row, at))
        unit_of.update(dict.fromkeys(names, unit))
    inventory = table.inventory("hf")
    for items in grouped.values():
        targets: dict[str, Target] = {}
        for item in items:
            for name in item.row.names("hf"):
                if name not in targets:
                    decl = inventory[name]
                    gone = [m.row.megatron for m in decl.members if m.row.megatron in unheld]
                    if gone:
                        message = f"`{name}` also needs `{gone[0]}`, which no rank has a parameter for"
                        raise PlanError(Diagnostic("MS757", message, item.row.rule.span, where=name))
                    targets[name] = Target(name, decl.shape, target_dtype(live, item, name, reference, dtype))
        yield Unit(tuple(items), tuple(targets.values()))


def target_dtype(live: Live, item: Item, name: str, reference: Reference, dtype: str | None) -> str:
    """The dtype in which a tensor is given out."""
    rule, held = item.row.rule, live.dtype_of(item.at)
    if dtype == "model" or held not in FLOATS:
        return held
    if dtype is not None:
        return held if rule.role.keep is not None else dtype
    stored = reference.passthrough.get(name)
    wanted = stored.dtype if stored is not None else rule.dtype
    return wanted if wanted in FLOATS else held


def passthrough(live: Live, following: Reference) -> list[StoredTensor]:
    """Tensors of the reference that only Hugging Face has, in the reference's order."""
    patterns = [pattern for pattern, _, _ in live.table.bound.passthrough]
    return [t for name, t in following.passthrough.items() if any(pattern.match(name) for pattern in patterns)]


def is_expert(row: Row) -> bool:
    """Whether expert parallelism deals the row out."""
    return any(row.rule.axes[name].parallel == "expert" for name in row.position)


def cut_by(row: Row, shard: Shard) -> tuple[str | None, int, int]:
    """(group, rank in it, size) of what cuts the row's parameter; the group is `tp`, `etp`, or `None` for whole."""
    split = next((dim.split for dim in row.rule.dims or () if dim.split is not None), None)
    if split is None:
        return None, 0, 1
    rank, size = shard.group(split)
    return ("etp" if split == "expert_tensor" and shard.etp_size is not None else "tp"), rank, size


def casts(live: Live, units: Collection[Unit]) -> Mapping[str, list[str]]:
    """Tensors that are given out in another dtype than the model's, by `from -> to`."""
    out: dict[str, list[str]] = {}
    for unit in units:
        held = live.dtype_of(unit.items[0].at)
        for target in unit.targets:
            if target.dtype != held:
                out.setdefault(f"{held} -> {target.dtype}", []).append(target.name)
    return out
