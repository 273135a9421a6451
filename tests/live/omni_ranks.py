"""What one rank does in the tests of live Omni models; importable in the processes that are started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from oracle import read_hf
from oracle_omni import build_omni, fill_omni
from ranks import Seen, Wrapper, same_bits, source_tensors
from torch import Tensor

from mapspec.live import export, load, save_hf

__all__ = ["omni_there_and_back"]


def omni_there_and_back(rank: int, source: str, target: str, assembly: str, build: dict[str, Any]) -> Seen:
    """Load into a scrambled model, compare with the oracle's, export, save."""
    _, config = read_hf(Path(source))
    expected, model = (build_omni(config, assembly, dtype=torch.bfloat16, **build) for _ in range(2))
    fill_omni(expected, Path(source))
    with torch.no_grad():
        for value in model.state_dict(keep_vars=True).values():
            if value is not None:
                value.fill_(float("nan") if value.is_floating_point() else -1)
    report = load(Wrapper(Wrapper(model)), source)
    mine = model.state_dict()
    for name, value in expected.state_dict().items():
        if isinstance(value, Tensor):
            assert same_bits(mine[name], value), name
    originals = source_tensors(Path(source))
    names = []
    for name, tensor in export(model, source):
        assert same_bits(tensor, originals[name]), name
        names.append(name)
    assert sorted(names) == sorted(originals)
    saved = save_hf(model, target, reference=source)
    assert saved.left_out == ()
    return Seen(report, names, 0)
