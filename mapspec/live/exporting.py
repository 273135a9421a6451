"""`export`: the Hugging Face tensors of a live model, one after the other, on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapspec.copying.compare import read_tensor
from mapspec.live.following import follow
from mapspec.live.gathering import Gatherer
from mapspec.live.matching import Live, renewed
from mapspec.live.pieces import Local
from mapspec.live.units import passthrough
from mapspec.ranks import Shard
from mapspec.sources import Reference
from mapspec.tensors import StoredTensor

__all__ = ["Exporter", "export"]


class Exporter:
    """Gives out a model as Hugging Face names and whole tensors, as often as it is iterated over.

    Making one is the work that does not depend on values: the reference is read, the model is held against the
    mapping, and ranks agree on it. Each iteration then gives the values that the model has at that moment. Parameters
    may have been replaced or moved to another device in between; where names, shapes or dtypes are no longer the same
    on some rank, all ranks begin anew. What has changed in the reference since the beginning is not looked at.

    All ranks make it together, and iterate together, to the end. Every rank gets every tensor, in the same order. A
    parameter is gathered over the tensor-parallel (or expert-tensor-parallel) ranks of the stage that has it, then
    broadcast over expert-parallel ranks and pipeline stages; copies that several ranks or stages have are taken once.
    In memory are at most the tensors of one unit (q, k and v of a layer; one expert; all experts of a layer where
    Hugging Face stacks them) and the parts of one parameter. A tensor belongs to the caller and is never written to
    again. Tensors that only Hugging Face has (the mapping's `passthrough`) come last, read from the reference where
    that is a folder. A rank that stops to iterate leaves the others waiting until their timeout.

    Args:
        model: as for `load`.
        reference: checkpoint folder, config.json or its contents: what the model is called in Hugging Face terms.
            A folder also decides between spellings, dtypes, and whether tied weights are given out twice.
        spec, flavours, sets: as for `load`.
        dtype: `None` for the dtypes of the reference (of its tensors, else of its config), `model` for those of the
            parameters, or a dtype for every tensor whose role does not keep its own.
        device: where the tensors are given out.
        to_rank: give tensors out on this rank of the default process group only, and send them nowhere else. An
            iteration is then empty on the other ranks, which have to exhaust it all the same.
        strict: whether the model has to hold everything that the config promises.
        timeout_s: how long to wait for other ranks (gloo only).

    Raises:
        MapspecError: findings of the checks, the same on all ranks, here or before the first tensor of an iteration;
            MS755 later, where a rank is gone.
    """

    def __init__(
        self,
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
    ) -> None:
        self._model, self._device, self._to_rank = model, torch.device(device), to_rank
        self._follow = partial(
            follow, model, reference, spec=spec, flavours=flavours, sets=sets, dtype=dtype, strict=strict,
            timeout_s=timeout_s, options=(to_rank,),
        )  # fmt: skip
        self._set_up()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        live = renewed(self._followed.live, self._model)
        if live is None:
            live = self._set_up()
        reference = self._followed.reference
        gatherer = Gatherer(live, self._device, self._to_rank, self._locals)
        for unit in self._followed.units:
            out = gatherer.unit(unit)
            for target in unit.targets:
                if target.name in out:
                    yield target.name, out.pop(target.name)
        if self._to_rank is None or live.team.rank == self._to_rank:
            for stored in passthrough(live, reference):
                yield stored.name, _read(stored, reference, self._device)

    def _set_up(self) -> Live:
        """Follow the reference; the model with its values. They are not kept: their memory belongs to the model."""
        followed = self._follow()
        self._followed = replace(followed, live=followed.live.without_values())
        self._locals: dict[Shard, Local] = {}
        return followed.live


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
    """Give out the model once: an `Exporter` made when the first tensor is asked for; arguments and errors are its."""
    yield from Exporter(
        model, reference, spec=spec, flavours=flavours, sets=sets, dtype=dtype, device=device, to_rank=to_rank,
        strict=strict, timeout_s=timeout_s,
    )  # fmt: skip


def _read(stored: StoredTensor, reference: Reference, device: torch.device) -> Tensor:
    """A tensor of the reference as it is."""
    assert reference.root is not None, "a reference with tensors has a folder"
    found, dtype = torch.from_numpy(read_tensor(stored, reference.root).copy()), getattr(torch, stored.dtype)
    return (found if found.dtype == dtype else found.view(dtype)).to(device)
