"""What one rank does in the tests of live models. Everything here is importable in the processes that are started."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import processes
import torch
from oracle import build_for, fill_model, read_hf
from safetensors import safe_open
from torch import Tensor

from mapspec.live import LoadReport, export, load, save_hf
from mapspec.provider.provider import Provider

# What every rank of these tests imports; of use where no other test has started the server before.
processes._PRELOAD.extend(("mapspec.live.saving", "mapspec.live.loading", "mapspec.provider.provider"))

__all__ = ["Case", "Seen", "largest", "scramble", "source_tensors", "there_and_back"]


@dataclass(frozen=True)
class Case:
    """How a rank builds its model: by the oracle's settings, or by a provider with these fields.

    `watch` measures memory, which takes seconds.
    """

    cuts: tuple[int, ...] = ()
    vocab_size: int | None = None
    dtype: torch.dtype = torch.bfloat16
    switches: dict[str, Any] = field(default_factory=dict)
    watch: bool = False
    provider: dict[str, Any] | None = None


@dataclass(frozen=True)
class Seen:
    """What a rank saw: its report, names in the order of export, and the largest heap of tensors during export."""

    report: LoadReport
    names: list[str]
    peak: int


def source_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names on disk."""
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            out.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    return out


def scramble(model: Any) -> None:
    """Fill everything with NaN, so that what is left out cannot look right."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bytes."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    )


def largest(tensors: dict[str, Tensor]) -> int:
    """Bytes of the largest tensor."""
    return max(t.numel() * t.element_size() for t in tensors.values())


def heap() -> dict[int, int]:
    """Address and bytes of the memory of every tensor in this process."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) is Tensor:
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return found


class Wrapper(torch.nn.Module):
    """As DDP and Float16Module: the model is in `.module`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def there_and_back(rank: int, source: str, target: str, case: Case) -> Seen:
    """Load into a scrambled model, compare with the oracle's, export, save."""
    state, config = read_hf(Path(source))
    build = {"dtype": case.dtype, "cuts": case.cuts, "vocab_size": case.vocab_size, **case.switches}
    expected = build_for(config, **build)
    if case.provider is None:
        model: Any = build_for(config, **build)
    else:
        model = Provider.from_hf(source, backend="reference", **case.provider).provide()
    fill_model(expected, state, config)
    scramble(model)
    report = load(Wrapper(Wrapper(model)), source)
    mine = model.state_dict()
    for name, value in expected.state_dict().items():
        if isinstance(value, Tensor):
            assert same_bits(mine[name], value), name
    originals = source_tensors(Path(source))
    names = []
    before = heap() if case.watch else {}
    peak = 0
    for at, (name, tensor) in enumerate(export(model, source)):
        assert same_bits(tensor, originals[name]), name
        names.append(name)
        if case.watch and at % 40 == 20:
            peak = max(peak, sum(n for at, n in heap().items() if at not in before))
    assert sorted(names) == sorted(originals)
    saved = save_hf(model, target, reference=source)
    assert saved.left_out == ()
    return Seen(report, names, peak)
