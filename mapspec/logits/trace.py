"""A model that is ready to run, of either kind, and what one run of it leaves: logits and hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Built", "Trace", "recorded", "run", "with_chunk"]


@dataclass(frozen=True, slots=True)
class Trace:
    """One run.

    Attributes:
        logits: [batch, s, vocab].
        hidden: stage key -> hidden states [batch, s, hidden] after it; features of media are [1, n, hidden].
    """

    logits: Tensor
    hidden: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Built:
    """A model with the weights of a checkpoint.

    Attributes:
        model: the module; `forward` runs it on token ids [batch, s].
        watched: (stage key, module whose output is recorded); `mtp` may come several times.
        sequence_first: whether hidden states are [s, batch, hidden].
        about: what it is, for the report.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    watched: tuple[tuple[str, nn.Module], ...]
    sequence_first: bool
    about: str


def run(built: Built, tokens: Tensor) -> Trace:
    """Run the model on token ids [batch, s]."""
    import torch

    with torch.no_grad(), recorded(built) as hidden:
        logits = built.forward(tokens)
    return Trace(logits, hidden)


@contextmanager
def recorded(built: Built) -> Iterator[dict[str, Tensor]]:
    """Outputs of the watched modules, while the block runs; those of `mtp` are counted: `mtp 0`, `mtp 1`."""
    hidden: dict[str, Any] = {}

    def keep(key: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            tensor = (output[0] if isinstance(output, tuple) else output).detach()
            name = f"mtp {sum(k.startswith('mtp') for k in hidden)}" if key == "mtp" else key
            if key.endswith("features"):  # of the media of all sequences, in order
                hidden[name] = tensor.reshape(1, -1, tensor.shape[-1])
            else:
                hidden[name] = tensor.transpose(0, 1) if built.sequence_first else tensor

        return hook

    handles = [module.register_forward_hook(keep(key)) for key, module in built.watched]
    try:
        yield hidden
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def with_chunk(built: Built, size: int) -> Iterator[bool]:
    """Another chunk size of the state space scan; says whether the model has any."""
    modules: list[Any] = [m for m in built.model.modules() if isinstance(getattr(m, "chunk_size", None), int)]
    before = [(module, module.chunk_size) for module in modules]
    for module in modules:
        module.chunk_size = size
    try:
        yield bool(before)
    finally:
        for module, value in before:
            module.chunk_size = value
