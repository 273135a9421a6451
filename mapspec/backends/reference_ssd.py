"""The mathematics of the reference Mamba-2 mixer: the state space scan and the gated norm after it."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GatedGroupNorm", "ssd_scan"]


def ssd_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """The selective state space scan, in chunks: quadratic inside a chunk, one state handed from chunk to chunk.

    x [batch, s, heads, p], dt [batch, s, heads] (after softplus), a [heads] (negative), b and c [batch, s, groups, n]
    -> y [batch, s, heads, p] without the D skip. Heads share the b and c of their group.
    """
    batch, length, heads, width = x.shape
    repeat = heads // b.shape[2]
    b, c = b.repeat_interleave(repeat, dim=2), c.repeat_interleave(repeat, dim=2)
    state = x.new_zeros(batch, heads, width, b.shape[-1])
    out = []
    for start in range(0, length, chunk):
        now = slice(start, start + chunk)
        x_, dt_, b_, c_ = x[:, now], dt[:, now], b[:, now], c[:, now]
        log_decay = (dt_ * a).cumsum(dim=1).transpose(1, 2)  # [batch, heads, t]
        between = log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)  # decay from step j (last axis) to step i
        later = torch.ones(between.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = torch.einsum("bihn,bjhn->bhij", c_, b_) * between.masked_fill(later, -math.inf).exp()
        fed = dt_.unsqueeze(-1) * x_
        y = torch.einsum("bhij,bjhp->bihp", weights, fed)
        y = y + torch.einsum("bihn,bhpn,bhi->bihp", c_, state, log_decay.exp())
        out.append(y)
        last = log_decay[..., -1:]
        new = torch.einsum("bhj,bjhn,bjhp->bhpn", (last - log_decay).exp(), b_, fed)
        state = state * last.exp().unsqueeze(-1) + new
    return torch.cat(out, dim=1)


class GatedGroupNorm(nn.Module):
    """RMSNorm over groups of channels of y * silu(z); `weight` [channels of this rank], split over TP."""

    def __init__(self, size: int, group_size: int, eps: float, dtype: torch.dtype, tp_group: Any) -> None:
        super().__init__()
        self.group_size, self.eps, self.tp_group = group_size, eps, tp_group
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """[..., size] each -> [..., size]."""
        gated = y.float() * functional.silu(z.float())
        grouped = gated.view(*gated.shape[:-1], -1, self.group_size)
        scale = torch.rsqrt(grouped.square().mean(dim=-1, keepdim=True) + self.eps)
        normed: Tensor = (grouped * scale).flatten(-2) * self.weight.float()
        return normed.to(z.dtype)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None) -> Any:
        """One tensor [d_inner], split over TP on dim 0."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )
