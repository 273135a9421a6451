"""The ranks that share a model: their places in the parallel groups, and how they agree.

Every collective of this package goes through a `Team`, for two reasons. A rank that met with an error says so where
the others wait for it, and all end with that same error. And a rank that is gone makes the others' collectives end
with a message instead of torch's.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.ranks import Shard
from mapspec.team import LostRankError
from mapspec.team import Team as Ranks

__all__ = ["LostRankError", "Place", "Team"]


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place: its shard, and its pipeline stage."""

    shard: Shard
    stage: int


class Team(Ranks):
    """All ranks of the default process group; a single process where there is none.

    Args:
        model: whose `pg_collection` names the groups; without one Megatron-Core's parallel state does.
        timeout_s: how long to wait for other ranks in a collective; `None` for the group's own timeout. Only gloo
            can be told; NCCL ends the process after the timeout that it was set up with.
    """

    def __init__(self, model: Any, timeout_s: float | None = None) -> None:
        self.timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
        self.alone = not (dist.is_available() and dist.is_initialized())
        super().__init__(*((0, 1) if self.alone else (dist.get_rank(), dist.get_world_size())))
        self.groups: dict[str, Any] = {} if self.alone else _groups(model)
        tp, ep, etp, pp = (self._in(name) for name in ("tp", "ep", "etp", "pp"))
        self.place = Place(Shard(tp[0], tp[1], ep[0], ep[1], etp[0], etp[1]), pp[0])

    def _in(self, group: str) -> tuple[int, int]:
        found = self.groups.get(group)
        return (0, 1) if found is None else (dist.get_rank(found), dist.get_world_size(found))

    def device(self, group: Any = None) -> torch.device:
        """Where tensors have to be for a collective of the group."""
        if self.alone or "nccl" not in dist.get_backend(group):
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    # --- collectives --------------------------------------------------------------------------------------------

    def all_gather(self, tensor: Tensor, group: Any = None) -> list[Tensor]:
        """The tensors of all ranks of a group; equal shapes, on the group's device."""
        out = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        data = [_bytes(one) for one in out]
        self._run(lambda: dist.all_gather(data, _bytes(tensor), group=group, async_op=True), group)
        return out

    def broadcast(self, tensor: Tensor, member: int, group: Any = None) -> None:
        """Overwrite the tensor on all ranks of a group with that of its member number `member`."""
        source = dist.get_global_rank(group, member) if group is not None else member
        self._run(lambda: dist.broadcast(_bytes(tensor), source, group=group, async_op=True), group)

    def send(self, tensor: Tensor, rank: int) -> None:
        """Give the tensor to one rank, which calls `receive`."""
        self._run(lambda: dist.isend(_bytes(tensor), rank))

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Overwrite the tensor with what the rank sends."""
        self._run(lambda: dist.irecv(_bytes(tensor), rank))

    def exchange(self, value: object) -> list[Any]:
        """What every rank has to say, by rank."""
        if self.world == 1:
            return [value]
        device = self.device()
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(n) for n in self.all_gather(torch.tensor([data.numel()], device=device))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
        padded[: data.numel()] = data
        answers = self.all_gather(padded)
        return [pickle.loads(a[:n].cpu().numpy().tobytes()) for a, n in zip(answers, sizes, strict=True)]

    def _run(self, start: Callable[[], Any], group: Any = None) -> None:
        try:
            work = start()
            if work is None:
                return
            if self.timeout is not None and "nccl" not in dist.get_backend(group):
                work.wait(self.timeout)
            else:
                work.wait()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            message = f"rank {self.rank} lost touch with the other ranks: {reason}"
            help_ = "a rank has ended or hangs; look for the first error in the logs of the other ranks"
            raise LostRankError(Diagnostic("MS755", message, where=f"rank {self.rank}", help=help_)) from error


def _bytes(tensor: Tensor) -> Tensor:
    """A view of the bytes of a contiguous tensor: every backend knows those, whatever the dtype."""
    return tensor.view(-1).view(torch.uint8)


def _groups(model: Any) -> dict[str, Any]:
    """Process groups by our names for them."""
    from megatron.core import parallel_state

    ours = getattr(model, "pg_collection", None)
    getters: dict[str, tuple[str, Callable[[], Any]]] = {
        "tp": ("tp", parallel_state.get_tensor_model_parallel_group),
        "ep": ("ep", parallel_state.get_expert_model_parallel_group),
        "etp": ("expt_tp", parallel_state.get_expert_tensor_parallel_group),
        "pp": ("pp", parallel_state.get_pipeline_model_parallel_group),
    }
    out = {}
    for name, (attribute, getter) in getters.items():
        group = getattr(ours, attribute, None)
        if group is None:
            try:
                group = getter()
            except (AssertionError, AttributeError):
                if name in ("tp", "pp"):
                    message = f"neither the model nor Megatron-Core's parallel state has a process group for `{name}`"
                    help_ = "initialize_model_parallel(...) comes before the model is built"
                    raise SpecError(Diagnostic("MS750", message, where="model", help=help_)) from None
        out[name] = group  # a model without experts may have no groups for them
    return out
