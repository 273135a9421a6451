"""Numbers about two runs of a model: how far logits and hidden states lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mapspec.logits.report import LayerLine, Measured, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from mapspec.logits.trace import Trace

__all__ = ["largest_of", "layer_lines", "measure"]


def measure(left: Tensor, right: Tensor, tie: float = 0.0) -> Measured:
    """Compare logits [batch, s, vocab].

    Args:
        tie: difference that rounding may make. Where both predict different tokens, the left model's logits of the
            two are at most twice that far apart in a tie; everything else counts as wrong.
    """
    import torch

    a, b = left.double(), right.double()
    largest = (a - b).abs().max().item()
    log_a, log_b = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    kl = (log_a.exp() * (log_a - log_b)).sum(-1)
    best_a, best_b = a.argmax(-1, keepdim=True), b.argmax(-1, keepdim=True)
    differ = best_a != best_b
    gap = a.gather(-1, best_a) - a.gather(-1, best_b)
    wrong = differ & ~(gap <= 2 * tie)
    return Measured(
        largest=largest,
        relative=largest / max((a.max() - a.min()).item(), 1e-30),
        kl_mean=max(kl.mean().item(), 0.0) if not kl.isnan().any() else float("nan"),
        kl_max=kl.max().item(),
        argmax=1.0 - differ.double().mean().item(),
        argmax_wrong=int(wrong.sum().item()),
    )


def largest_of(runs: Iterable[Measured]) -> Measured:
    """The worst of each number."""
    found = tuple(runs)
    return Measured(
        largest=max(m.largest for m in found),
        relative=max(m.relative for m in found),
        kl_mean=max(m.kl_mean for m in found),
        kl_max=max(m.kl_max for m in found),
        argmax=min(m.argmax for m in found),
    )


def layer_lines(
    left: Trace, right: Trace, floors: Mapping[str, float], stages: Iterable[Stage], *, multiple: float, eps: float
) -> tuple[LayerLine, ...]:
    """One line per stage that both sides have; no floor is below one unit in the last place of the largest value."""
    out = []
    for stage in stages:
        a, b = left.hidden.get(stage.key), right.hidden.get(stage.key)
        if a is None or b is None:
            continue
        scale = a.abs().max().item()
        floor = max(floors.get(stage.key, 0.0), eps * scale)
        difference = (a.double() - b.double()).abs().max().item()
        out.append(LayerLine(stage, difference, floor, multiple * floor, scale))
    return tuple(out)
