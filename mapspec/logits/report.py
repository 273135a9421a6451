"""What a comparison of logits found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mapspec.diagnostics import Diagnostic

__all__ = ["LayerLine", "LogitsReport", "Measured", "Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A place in the model after which hidden states are compared.

    Attributes:
        key: the same on both sides: `embedding`, `layer 3`, `final norm`, `mtp 0`, `logits`.
        kind: what stands there: `mamba`, `attention`, `mlp`, `moe`, `norm`, ...
        hf, megatron: prefixes of its weights.
    """

    key: str
    kind: str
    hf: str
    megatron: str


@dataclass(frozen=True, slots=True)
class Measured:
    """How far two sets of logits lie apart.

    Attributes:
        largest: largest absolute difference.
        relative: the same, divided by the range (largest minus smallest) of the logits.
        kl_mean, kl_max: Kullback-Leibler divergence of the predicted distributions, in nats, over the positions.
        argmax: share of positions at which both predict the same token.
        argmax_wrong: positions at which they do not, although the gap between the two tokens is no rounding matter.
    """

    largest: float
    relative: float
    kl_mean: float
    kl_max: float
    argmax: float
    argmax_wrong: int = 0


@dataclass(frozen=True, slots=True)
class LayerLine:
    """Hidden states after one stage: largest difference, what rounding alone makes there, and what is allowed."""

    stage: Stage
    difference: float
    floor: float
    allowed: float
    scale: float

    @property
    def diverges(self) -> bool:
        """Whether the difference is more than rounding explains; true for NaN too."""
        return not self.difference <= self.allowed


@dataclass(frozen=True, slots=True)
class LogitsReport:
    """The outcome of `compare_logits`.

    Attributes:
        left, right: the two checkpoints; left_model, right_model: what was built of them.
        tokens: (sequences, tokens in each).
        seed: of the random tokens.
        device, dtype: where and in what the models ran.
        multiple: how many times the floor a difference may be.
        measured: the logits of one against the other; `None` where a model could not be filled.
        floor: the left model against itself, computed otherwise: the largest of `floor_runs`.
        floor_runs: how it was computed otherwise -> what that made of the logits.
        layers: after every stage, in order.
        notes: what was assumed or left out.
        findings: what is wrong; empty where the two agree.
    """

    left: Path
    right: Path
    left_model: str
    right_model: str
    tokens: tuple[int, int]
    seed: int
    device: str
    dtype: str
    multiple: float
    measured: Measured | None = None
    floor: Measured | None = None
    floor_runs: dict[str, Measured] = field(default_factory=dict)
    layers: tuple[LayerLine, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Diagnostic, ...] = ()

    @property
    def first_diverging(self) -> LayerLine | None:
        """The first stage whose difference rounding does not explain."""
        return next((line for line in self.layers if line.diverges), None)
