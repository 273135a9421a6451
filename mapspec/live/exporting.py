"""`export`: the Hugging Face tensors of a live model, one after the other, on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapspec.copying.compare import read_tensor
from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.live.matching import Held, Live, match
from mapspec.live.names import unwrap
from mapspec.live.opening import choose, reference_of
from mapspec.live.pieces import Local
from mapspec.live.team import Team
from mapspec.live.transfer import slices
from mapspec.live.units import Item, Unit, cut_by, is_expert, passthrough, units_of
from mapspec.ranks import local_shape
from mapspec.sources import Reference
from mapspec.tensors import FLOATS, StoredTensor

__all__ = ["export", "matched"]


def export(
    model: Any,
    reference: str | Path | Mapping[str, Any],
    *,
    spec: str | None = None,
    flavours: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    dtype: str | None = None,
    device: str | torch.device = "cpu",
    to_rank: int | None = None,
    strict: bool = True,
    timeout_s: float | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Give out the model as Hugging Face names and whole tensors. All ranks iterate together, to the end.

    Every rank gets every tensor, in the same order. A parameter is gathered over the tensor-parallel (or
    expert-tensor-parallel) ranks of the stage that has it, then broadcast over expert-parallel ranks and pipeline
    stages; copies that several ranks or stages have are taken once. In memory are at most the tensors of one unit
    (q, k and v of a layer; one expert; all experts of a layer where Hugging Face stacks them) and the parts of one
    parameter. A tensor belongs to the caller and is never written to again. Tensors that only Hugging Face has (the
    mapping's `passthrough`) come last, read from the reference where that is a folder. A rank that stops to iterate
    leaves the others waiting until their timeout.

    Args:
        model: as for `load`.
        reference: checkpoint folder, config.json or its contents: what the model is called in Hugging Face terms.
            A folder also decides between spellings, dtypes, and whether tied weights are given out twice.
        spec, flavours, sets: as for `load`.
        dtype: `None` for the dtypes of the reference (of its tensors, else of its config), `model` for those of the
            parameters, or a dtype for every tensor whose role does not keep its own.
        device: where the tensors are given out.
        to_rank: give tensors out on this rank of the default process group only, and send them nowhere else. The
            iterator is then empty on the other ranks, which have to exhaust it all the same.
        strict: whether the model has to hold everything that the config promises.
        timeout_s: how long to wait for other ranks (gloo only).

    Raises:
        MapspecError: findings of the checks, the same on all ranks, before the first tensor; MS755 later, where a
            rank is gone.
    """
    live, following = matched(model, reference, spec, flavours, sets, dtype, strict, timeout_s, to_rank)
    gatherer = _Gatherer(live, torch.device(device), to_rank)
    for unit in units_of(live, following, dtype):
        out = gatherer.unit(unit)
        for target in unit.targets:
            if target.name in out:
                yield target.name, out.pop(target.name)
    if to_rank is None or live.team.rank == to_rank:
        for stored in passthrough(live, following):
            yield stored.name, _read(stored, following, device)


def matched(
    model: Any,
    reference: str | Path | Mapping[str, Any],
    spec: str | None,
    flavours: Mapping[str, str] | None,
    sets: Sequence[str],
    dtype: str | None,
    strict: bool,
    timeout_s: float | None,
    *options: object,
) -> tuple[Live, Reference]:
    """The model against the mapping, and the reference that was named; `options` are those of one caller alone."""
    models = unwrap(model)
    team = Team(models[0], timeout_s)
    with team.together():
        if dtype not in (None, "model", *FLOATS):
            help_ = f"one of {', '.join(('model', *FLOATS))}"
            raise SpecError(Diagnostic("MS411", f"`{dtype}` is no floating dtype", where="dtype", help=help_))
        following = reference_of(reference)
        names = list(following.shard_of)
        linked, config, choices = choose(
            following.config, names, where=following.where, spec=spec, flavours=flavours, sets=sets
        )
    live = match(team, models, linked, config, choices, strict=strict, options=(dtype, *options))
    with team.together():
        # Fails here on all ranks rather than later on some.
        for _ in units_of(live, following, dtype):
            pass
    return live, following


def _read(stored: StoredTensor, following: Reference, device: str | torch.device) -> Tensor:
    """A tensor of the reference as it is."""
    assert following.root is not None, "a reference with tensors has a folder"
    found, dtype = torch.from_numpy(read_tensor(stored, following.root).copy()), getattr(torch, stored.dtype)
    return (found if found.dtype == dtype else found.view(dtype)).to(device)


class _Gatherer:
    """Puts units together out of the parts that ranks hold."""

    def __init__(self, live: Live, device: torch.device, to_rank: int | None) -> None:
        self.live, self.team, self.device, self.to_rank = live, live.team, device, to_rank
        self.held: dict[int, Held] = {held.at: held for held in live.held}
        self.stages = np.array([place.stage for place in live.places])
        self._locals: dict[tuple[str | None, int], Local] = {}

    @torch.no_grad()
    def unit(self, unit: Unit) -> dict[str, Tensor]:
        """The unit's tensors by name; empty where another rank gets them."""
        wanted = self.to_rank is None or self.team.rank == self.to_rank
        out: dict[str, Tensor] = {}
        if wanted:
            for target in unit.targets:
                out[target.name] = torch.empty(target.shape, dtype=getattr(torch, target.dtype), device=self.device)
        dtypes = {target.dtype for target in unit.targets}
        # Cast before the exchange where all tensors agree: usually fewer bytes to move.
        dtype = getattr(torch, next(iter(dtypes)) if len(dtypes) == 1 else self.live.dtype_of(unit.items[0].at))
        for item in unit.items:
            group, _, size = cut_by(item.row, self.team.place.shard)
            parts = self._collect(item, dtype) if self.to_rank is None else self._deliver(item, dtype, group, size)
            for rank, part in enumerate(parts):
                if wanted:
                    self._place(item, group, rank, part, out)
        return out

    def _place(self, item: Item, group: str | None, rank: int, part: Tensor, out: Mapping[str, Tensor]) -> None:
        """Copy a part to where it belongs in the Hugging Face tensors."""
        names, forms = item.row.names("hf"), item.row.forms.surfaces["hf"]
        for pair in self._local(group, rank).pairs(item.row.forms):
            box = forms[pair.left].lead(item.row.position) + pair.left_box
            place = out[names[pair.left]][slices(box)]
            place.copy_(part[slices(pair.right_box)].reshape(place.shape))

    def _local(self, group: str | None, rank: int) -> Local:
        """Regions of another member of the group that cuts the row."""
        shard = self.team.place.shard
        if group is not None:
            shard = replace(shard, **{"tp_rank" if group == "tp" else "etp_rank": rank})
        key = (group, rank)
        if key not in self._locals:
            self._locals[key] = Local(shard)
        return self._locals[key]

    def _owner(self, at: int) -> tuple[int, int]:
        """(pipeline stage, expert-parallel rank) that gives the row: the first stage that holds it."""
        holders = np.nonzero(self.live.dtypes[:, at])[0]
        first = holders[np.argmin(self.stages[holders])]
        place = self.live.places[first]
        return place.stage, place.shard.ep_rank

    def _collect(self, item: Item, dtype: torch.dtype) -> list[Tensor]:
        """All parts of the row's parameter, on every rank."""
        team, shard = self.team, self.team.place.shard
        stage, expert_rank = self._owner(item.at)
        group, _, size = cut_by(item.row, shard)
        expert = is_expert(item.row) and shard.ep_size > 1
        here = team.place.stage == stage
        gives = here and (not expert or shard.ep_rank == expert_rank)
        device = team.device()
        parts: list[Tensor]
        if gives:
            mine = self.held[item.at].local.tensor.to(device=device, dtype=dtype).contiguous()
            parts = team.all_gather(mine, team.groups[group]) if group is not None and size > 1 else [mine]
        else:
            shape = local_shape(item.row.forms, shard)
            parts = [torch.empty(shape, dtype=dtype, device=device) for _ in range(size)]
        for part in parts:
            if expert and here:
                team.broadcast(part, expert_rank, team.groups["ep"])
            if team.groups and len(set(self.stages)) > 1:
                team.broadcast(part, stage, team.groups["pp"])
        return parts

    def _deliver(self, item: Item, dtype: torch.dtype, group: str | None, size: int) -> Iterator[Tensor]:
        """The parts on the rank that gets them, one at a time; the ranks that own them send."""
        team, live = self.team, self.live
        holders = np.nonzero(live.dtypes[:, item.at])[0]
        for number in range(size):
            owners = [int(r) for r in holders if cut_by(item.row, live.places[r].shard)[1] == number]
            owner = self.to_rank if self.to_rank in owners else owners[0]
            if team.rank == owner:
                mine = self.held[item.at].local.tensor.to(device=team.device(), dtype=dtype).contiguous()
                if owner == self.to_rank:
                    yield mine
                else:
                    team.send(mine, int(self.to_rank or 0))
            elif team.rank == self.to_rank:
                part = torch.empty(local_shape(item.row.forms, team.place.shard), dtype=dtype, device=team.device())
                team.receive(part, owner)
                yield part
