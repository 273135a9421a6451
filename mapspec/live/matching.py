"""A live model against a mapping: which row each parameter is, and that nothing on either side is left over.

All ranks do this together; it ends with an error on all of them or on none, before any value moves.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from mapspec.bind import Choices
from mapspec.collapse import collapse
from mapspec.diagnostics import Diagnostic, Note, nearest
from mapspec.errors import ConvertError, PlanError, SpecError
from mapspec.link import Linked
from mapspec.live.hyper import differing_fields
from mapspec.live.names import LocalTensor, live_tensors, skeleton, unwrap
from mapspec.live.proven import table_for
from mapspec.live.team import Place, Team
from mapspec.ranks import Shard, local_name, local_shape, owns
from mapspec.table import Row, Table
from mapspec.tensors import DTYPES

__all__ = ["Held", "Live", "match", "renewed"]

_DTYPES = tuple(DTYPES)


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter of this rank and the row it is.

    Attributes:
        at: number of the row among `table.rows`.
        source: the row whose values it has: another one where the row is tied to it.
        dtype: a key of `DTYPES`.
    """

    local: LocalTensor
    at: int
    row: Row
    source: Row
    dtype: str


@dataclass(frozen=True)
class Live:
    """A model that fits its mapping.

    Attributes:
        held: this rank's parameters.
        dtypes: [ranks, rows]: 0 where the rank does not hold the row, else 1 + the number of its dtype in `DTYPES`.
        places: of every rank.
        unheld: canonical names of rows that no rank holds (tied ones aside).
        differences: fields in which the model and the config differ, see `differing_fields`.
    """

    team: Team
    table: Table
    held: tuple[Held, ...]
    dtypes: npt.NDArray[np.uint8]
    places: tuple[Place, ...]
    unheld: tuple[str, ...]
    differences: tuple[str, ...]

    def dtype_of(self, at: int) -> str:
        """Dtype of a row's parameter, on the ranks that hold it."""
        return _DTYPES[int(self.dtypes[:, at].max()) - 1]

    def without_values(self) -> Live:
        """The same with parameters that have shapes and dtypes only."""
        bare = ((held, replace(held.local, tensor=held.local.tensor.to("meta"))) for held in self.held)
        return replace(self, held=tuple(replace(held, local=local) for held, local in bare))


def match(
    team: Team,
    models: Sequence[nn.Module],
    linked: Linked,
    config: Mapping[str, Any],
    choices: Choices,
    *,
    strict: bool,
    options: tuple[object, ...] = (),
) -> Live:
    """Find the row of every parameter. All ranks call it.

    Args:
        choices: flavours that are decided; the model's names decide the others.
        strict: whether a row that no rank holds is an error.
        options: what else has to be the same on all ranks.

    Raises:
        SpecError: what binding and proving find; MS756 where ranks were given different things.
        PlanError: MS751 for parameters without a row, MS752 for shapes, MS753 for dtypes, MS757 for rows without a
            parameter; each from whichever rank finds it.
    """
    with team.together():
        locals_ = [found for model in models for found in live_tensors(model)]
    told = team.exchange((_fingerprint(linked, config, choices, (strict, *options)), _shapes(locals_)))
    with team.together():
        if any(mark != told[0][0] for mark, _ in told):
            odd = [rank for rank, (mark, _) in enumerate(told) if mark != told[0][0]]
            message = f"ranks 0 and {odd[0]} were given different configs, mappings, flavours or options"
            help_ = "all ranks have to be called with the same arguments"
            raise SpecError(Diagnostic("MS756", message, where="arguments", help=help_))
        shapes = {name: shape for _, part in reversed(told) for name, shape in part.items()}
        table = table_for(linked, config, choices, shapes, team.place.shard.tp_size)
        differences = differing_fields(models[0], config)
        held = _held(table, locals_, team.place.shard, differences)
    codes = np.zeros(len(table.rows), np.uint8)
    for one in held:
        codes[one.at] = 1 + _DTYPES.index(one.dtype)
    answers = team.exchange((zlib.compress(codes.tobytes(), 1), team.place))
    dtypes = np.stack([np.frombuffer(zlib.decompress(data), np.uint8) for data, _ in answers])
    unheld = tuple(
        row.megatron for row, n in zip(table.rows, dtypes.max(axis=0), strict=True)
        if not n and row.megatron not in table.tied
    )  # fmt: skip
    if unheld and strict:
        raise PlanError(_unheld(table, unheld, differences))
    _check_agreement(table, dtypes)
    return Live(team, table, held, dtypes, tuple(place for _, place in answers), unheld, differences)


def renewed(live: Live, model: Any) -> Live | None:
    """The model with the tensors that it has now; `None` on all ranks where on one its names, shapes or dtypes are no
    longer those that were matched. All ranks call it.
    """
    try:
        found = {one.known_as: one for part in unwrap(model) for one in live_tensors(part)}
    except SpecError:
        found = {}  # matching says what is wrong
    before = {held.local.known_as: held.local for held in live.held}
    same = found.keys() == before.keys() and all(_alike(found[name], one) for name, one in before.items())
    if not all(live.team.exchange(same)):
        return None
    return replace(live, held=tuple(replace(held, local=found[held.local.known_as]) for held in live.held))


def _alike(one: LocalTensor, other: LocalTensor) -> bool:
    return one.tensor.shape == other.tensor.shape and one.tensor.dtype == other.tensor.dtype


def _fingerprint(linked: Linked, config: Mapping[str, Any], choices: Choices, options: tuple[object, ...]) -> int:
    text = json.dumps(
        [[scope.id for scope in linked.scopes], config, dict(choices.flavours), choices.padded_vocab_size, options],
        sort_keys=True, default=str,
    )  # fmt: skip
    return zlib.crc32(text.encode())


def _shapes(found: Sequence[LocalTensor]) -> dict[str, tuple[int, ...]]:
    """One shape per kind of name: enough to choose by, and small however many layers and experts there are."""
    return {skeleton(one.known_as): tuple(one.tensor.shape) for one in found}


def _held(table: Table, found: Sequence[LocalTensor], shard: Shard, differences: Sequence[str]) -> tuple[Held, ...]:
    """Rows of this rank's parameters, shapes and dtypes checked."""
    by_name = {local_name(row, shard): (at, row) for at, row in enumerate(table.rows) if owns(row, shard)}
    held: list[Held] = []
    findings: list[Diagnostic] = []
    unknown: list[str] = []
    for local in found:
        if local.known_as not in by_name:
            unknown.append(local.known_as)
            continue
        at, row = by_name[local.known_as]
        tied = table.tied.get(row.megatron)
        dtype = str(local.tensor.dtype).removeprefix("torch.")
        held.append(Held(local, at, row, table.by_megatron[tied] if tied else row, dtype))
        findings += _misfits(held[-1], shard)
    if unknown:
        patterns = [pattern for pattern, _ in collapse(unknown)]
        shown = ", ".join(f"`{p}`" for p in patterns[:6]) + (f" and {len(patterns) - 6} more" if patterns[6:] else "")
        message = f"{len(unknown):,} parameters that no row fills: {shown}"
        hint = nearest(unknown[0], [n for n in by_name if n.count(".") == unknown[0].count(".")][:3000])
        help_ = "the model holds more than the mapping knows for this config: another config, flavour, or a rule to add"
        span = table.bound.linked.top.span("blocks", of_key=True)
        findings.append(Diagnostic("MS751", message, span, hint=hint, help=help_))
    if findings:
        raise PlanError([_with_differences(finding, differences) for finding in findings[:20]])
    return tuple(held)


def _misfits(held: Held, shard: Shard) -> list[Diagnostic]:
    rule, out = held.row.rule, []
    shape, wanted = tuple(held.local.tensor.shape), local_shape(held.row.forms, shard)
    if shape != wanted:
        whole = list(held.row.shape)
        message = f"`{held.local.name}` has shape {list(shape)} in the model, the config gives this rank {list(wanted)}"
        notes = (Note(f"rule `{rule.key}`: {whole} over all ranks"),)
        help_ = "build the model with the checkpoint's config, or load the checkpoint that belongs to the model"
        out.append(Diagnostic("MS752", message, rule.span, notes=notes, help=help_))
    if held.dtype not in DTYPES or (rule.role.keep is not None and held.dtype not in rule.role.accepts):
        accepts = ", ".join(rule.role.accepts)
        message = f"`{held.local.name}` is {held.dtype} in the model; role `{rule.role_name}` is kept in {accepts}"
        help_ = f"bring it back to {rule.role.accepts[0]} before" + (
            f" (a mixed-precision wrapper has cast it): {rule.role.keep}" if rule.role.keep else ""
        )
        out.append(Diagnostic("MS753", message, rule.span, help=help_))
    return out


def _with_differences(finding: Diagnostic, differences: Sequence[str]) -> Diagnostic:
    """The finding with the first field in which model and checkpoint differ, its most likely cause."""
    if differences and finding.code in ("MS751", "MS752", "MS757"):
        more = f" (and {len(differences) - 1} more fields differ)" if differences[1:] else ""
        return replace(finding, notes=(Note(differences[0] + more), *finding.notes))
    return finding


def _unheld(table: Table, unheld: Sequence[str], differences: Sequence[str]) -> list[Diagnostic]:
    by_rule: dict[int, list[str]] = {}
    for name in unheld:
        by_rule.setdefault(id(table.by_megatron[name].rule), []).append(name)
    out = []
    for names in list(by_rule.values())[:20]:
        rule = table.by_megatron[names[0]].rule
        message = f"{len(names):,} rows that no rank has a parameter for: {_some(names)}"
        help_ = "build the model with the checkpoint's config; strict=False leaves them out on purpose"
        out.append(_with_differences(Diagnostic("MS757", message, rule.span, help=help_), differences))
    return out


def _some(names: Sequence[str]) -> str:
    patterns = [pattern for pattern, _ in collapse(names)]
    return ", ".join(f"`{p}`" for p in patterns[:3]) + (f" and {len(patterns) - 3} more" if patterns[3:] else "")


def _check_agreement(table: Table, dtypes: npt.NDArray[np.uint8]) -> None:
    """Parts of one row have one dtype on all ranks."""
    lowest = np.where(dtypes > 0, dtypes, 255).min(axis=0)
    odd = np.nonzero((lowest != dtypes.max(axis=0)) & (lowest != 255))[0]
    if len(odd):
        row = table.rows[int(odd[0])]
        kinds = sorted({_DTYPES[int(code) - 1] for code in dtypes[:, odd[0]] if code})
        message = f"`{row.megatron}` has different dtypes on different ranks: {', '.join(kinds)}"
        raise ConvertError(Diagnostic("MS753", message, row.rule.span, help="build the model alike on all ranks"))
