"""The tensors of a live model under names that a mapping knows: global layer numbers, local expert numbers.

Nothing here depends on the class of a module. A list called `layers` numbers its modules from 0 on every pipeline
stage; which layers of the model they are is what each module says of itself in `layer_number`, counted from 1. (The
layers inside a multi-token prediction block say their number within the block, which is what the mapping counts.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError

__all__ = ["LocalTensor", "live_tensors", "skeleton", "unwrap"]


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """A parameter or persistent buffer of this rank.

    Attributes:
        name: where it stands in the model, as `named_parameters` says.
        known_as: the same with global layer numbers; experts still count from 0 on every rank.
        tensor: its storage, detached.
    """

    name: str
    known_as: str
    tensor: Tensor


def unwrap(model: Any) -> tuple[nn.Module, ...]:
    """The model itself, out of wrappers that keep it in `.module`; for a list of chunks each of them.

    Raises:
        SpecError: MS750 where it is no model of Megatron-Core.
    """
    out = []
    for chunk in model if isinstance(model, Sequence) else (model,):
        inner = chunk
        while isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        if not isinstance(inner, nn.Module) or not hasattr(inner, "config"):
            message = f"a {type(inner).__name__} is no model of Megatron-Core: it has no parameters or no `config`"
            help_ = "give the HybridModel of this rank, wrapped or not, or the list of its chunks"
            raise SpecError(Diagnostic("MS750", message, where="model", help=help_))
        out.append(inner)
    return tuple(out)


def live_tensors(model: nn.Module) -> Iterator[LocalTensor]:
    """Every parameter and persistent buffer, each once.

    Raises:
        SpecError: MS750 for a parameter that has no storage yet (meta device).
    """
    known = {"": ""}
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        modules[name] = module
        if name:
            parent, _, part = name.rpartition(".")
            number = getattr(module, "layer_number", None)
            if parent.rpartition(".")[2] == "layers" and part.isdigit() and isinstance(number, int):
                part = str(number - 1)
            known[name] = f"{known[parent]}.{part}" if known[parent] else part
        hidden = module._non_persistent_buffers_set
        held = [*module._parameters.items(), *((n, b) for n, b in module._buffers.items() if n not in hidden)]
        for leaf, tensor in held:
            if tensor is None:
                continue
            if tensor.is_meta:
                message = f"`{name}.{leaf}` is on the meta device and has no memory to be filled"
                help_ = "give the model memory first: model.to_empty(device=...)"
                raise SpecError(Diagnostic("MS750", message, where="model", help=help_))
            yield LocalTensor(f"{name}.{leaf}".lstrip("."), f"{known[name]}.{leaf}".lstrip("."), tensor.detach())


def skeleton(name: str) -> str:
    """The name without its numbers: what it has in common with the same tensor of other layers and experts."""
    return re.sub(r"\d+", "*", name)
