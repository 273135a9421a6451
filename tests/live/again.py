"""Ranks that export more than once, and ranks that save: importable in the processes that the tests start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from oracle import build_for, fill_model, read_hf
from ranks import same_bits, source_tensors
from torch import Tensor, nn

from mapspec.errors import MapspecError
from mapspec.live import Exporter, save_hf
from mapspec.live import exporting as module

__all__ = ["export_again", "filled", "save", "save_badly"]


def filled(source: Path, **build: Any) -> Any:
    """A model with the values of a checkpoint."""
    state, config = read_hf(source)
    model = build_for(config, dtype=torch.bfloat16, **build)
    fill_model(model, state, config)
    return model


def _replaced(model: nn.Module) -> None:
    """Every parameter another object in other memory, one larger."""
    for part in model.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[name] = nn.Parameter(value.detach().clone() + 1, requires_grad=False)


def _like(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return given.keys() == wanted.keys() and all(same_bits(given[name], wanted[name]) for name in wanted)


def export_again(rank: int, source: str, hidden: str) -> list[str]:
    """What one exporter gives before and after the model changed, and the error when one rank's no longer fits."""
    folder = Path(source)
    model, originals = filled(folder), source_tensors(folder)
    exporter = Exporter(model, source)
    assert all(held.local.tensor.is_meta for held in exporter._followed.live.held), "memory of the model is kept"
    names = [name for name, _ in exporter]
    torch.distributed.barrier()
    if rank == 0:
        folder.rename(hidden)  # it is not read again
    torch.distributed.barrier()
    with mock.patch.object(module, "follow", side_effect=AssertionError("set up again")):
        assert _like(dict(exporter), originals)
        _replaced(model)
        later = dict(exporter)
    torch.distributed.barrier()
    if rank == 0:
        Path(hidden).rename(folder)
    torch.distributed.barrier()
    assert _like(later, dict(Exporter(model, source)))
    assert not any(torch.equal(later[name], originals[name]) for name in later if "norm" in name)
    if rank == 1:
        model.decoder.final_norm.weight = nn.Parameter(model.decoder.final_norm.weight.float())
    try:
        dict(exporter)
    except MapspecError as error:
        names.append(error.diagnostics[0].code)
    return names


def save(rank: int, source: str, target: str, build: dict[str, Any]) -> None:
    """Save a model with the values of a checkpoint."""
    save_hf(filled(Path(source), **build), target, reference=source)


def save_badly(rank: int, source: str, target: str) -> None:
    """The same, but a bit of a block that rank 1 writes does not reach the disk as it should."""
    real, seen = os.pwrite, 0

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        nonlocal seen
        seen += 1
        if seen == 5:
            data = memoryview(bytes([data[0] ^ 1]) + bytes(data[1:]))
        return real(fd, data, offset)

    with mock.patch.object(os, "pwrite", pwrite) if rank else mock.MagicMock():
        save(rank, source, target, {"experts": "grouped"})
