"""Putting Hugging Face tensors together out of the parts that ranks hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mapspec.live.matching import Held, Live
from mapspec.live.pieces import Local
from mapspec.live.transfer import slices
from mapspec.live.units import Item, Unit, cut_by, is_expert
from mapspec.ranks import Shard, local_shape

__all__ = ["Gatherer"]


class Gatherer:
    """Puts units together.

    Args:
        live: the model.
        device: where the tensors are wanted.
        to_rank: the only rank that wants them; `None` for all.
        locals_: regions of the shards seen so far; kept by the caller for as long as the table is the same.
    """

    def __init__(
        self, live: Live, device: torch.device, to_rank: int | None, locals_: dict[Shard, Local] | None = None
    ) -> None:
        self.live, self.team, self.device, self.to_rank = live, live.team, device, to_rank
        self.held: dict[int, Held] = {held.at: held for held in live.held}
        self.stages = np.array([place.stage for place in live.places])
        self._locals = {} if locals_ is None else locals_

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
        names, leads = item.row.names("hf"), item.row.leads("hf")
        for pair in self._local(group, rank).pairs(item.row.forms):
            box = leads[pair.left] + pair.left_box
            place = out[names[pair.left]][slices(box)]
            place.copy_(part[slices(pair.right_box)].reshape(place.shape))

    def _local(self, group: str | None, rank: int) -> Local:
        """Regions of another member of the group that cuts the row."""
        shard = self.team.place.shard
        if group is not None:
            shard = replace(shard, **{"tp_rank" if group == "tp" else "etp_rank": rank})
        if shard not in self._locals:
            self._locals[shard] = Local(shard)
        return self._locals[shard]

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
