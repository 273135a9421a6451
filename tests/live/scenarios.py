"""What can go wrong on two ranks, each as a function of (rank, model, source, folder)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from oracle import build_for, fill_model, read_hf
from ranks import same_bits, scramble, source_tensors

from mapspec.errors import MapspecError
from mapspec.live import export, load, save_hf
from mapspec.live.transfer import Reader, Writer

__all__ = ["SCENARIOS", "killed_while_exporting", "late_while_exporting", "options", "play"]


def corrupt_on_one(rank: int, model: Any, source: Path, folder: Path) -> None:
    load(model, folder / "corrupt" if rank == 1 else source)


def shape_on_one(rank: int, model: Any, source: Path, folder: Path) -> None:
    if rank == 1:
        norm = model.decoder.final_norm
        norm.weight = torch.nn.Parameter(torch.full((65,), float("nan"), dtype=norm.weight.dtype))
    load(model, source)


def bug_on_one(rank: int, model: Any, source: Path, folder: Path) -> None:
    with mock.patch.object(Reader, "fill", side_effect=ZeroDivisionError("boom")) if rank else mock.MagicMock():
        load(model, source)


def narrow_router_bias(rank: int, model: Any, source: Path, folder: Path) -> None:
    for module in model.modules():
        if "expert_bias" in module._buffers:
            module._buffers["expert_bias"] = module._buffers["expert_bias"].bfloat16()
    load(model, source)


def more_parameters(rank: int, model: Any, source: Path, folder: Path) -> None:
    model.decoder.layers[0].mixer.in_proj.bias = torch.nn.Parameter(torch.full((4,), float("nan")))
    load(model, source)


def fewer_parameters(rank: int, model: Any, source: Path, folder: Path) -> None:
    model.decoder.final_norm.weight = None
    load(model, source)


def other_flavours(rank: int, model: Any, source: Path, folder: Path) -> None:
    load(model, source, flavours={"norms": "separate" if rank else "fused"})


def no_model(rank: int, model: Any, source: Path, folder: Path) -> None:
    load([1, 2, 3][rank:], source)


def no_memory(rank: int, model: Any, source: Path, folder: Path) -> None:
    norm = model.decoder.final_norm
    norm.weight = torch.nn.Parameter(norm.weight.to("meta")) if rank else norm.weight
    load(model, source)


def other_dtype(rank: int, model: Any, source: Path, folder: Path) -> None:
    for _ in export(model, source, dtype="float8"):
        pass


def disk_full_on_one(rank: int, model: Any, source: Path, folder: Path) -> None:
    full = OSError(28, "No space left on device")
    with mock.patch.object(os, "pwrite", side_effect=full) if rank else mock.MagicMock():
        save_hf(model, folder / "full", reference=source)


def destination_taken(rank: int, model: Any, source: Path, folder: Path) -> None:
    save_hf(model, folder / "corrupt", reference=source)


def reference_with_more(rank: int, model: Any, source: Path, folder: Path) -> None:
    save_hf(model, folder / "lost", reference=folder / "more")


def writes_end_early(rank: int, model: Any, source: Path, folder: Path) -> None:
    with mock.patch.object(Writer, "write", side_effect=KeyError("bug")) if rank == 0 else mock.MagicMock():
        save_hf(model, folder / "early", reference=source)


SCENARIOS: dict[str, Callable[[int, Any, Path, Path], None]] = {
    one.__name__: one
    for one in (
        corrupt_on_one, shape_on_one, bug_on_one, narrow_router_bias, more_parameters, fewer_parameters,
        other_flavours, no_model, no_memory, other_dtype, disk_full_on_one, destination_taken, reference_with_more,
        writes_end_early,
    )
}  # fmt: skip


def play(rank: int, source: str, folder: str) -> dict[str, tuple[str, list[str], bool]]:
    """Every scenario with the model as built: exception, findings in full, whether the model is untouched."""
    _, config = read_hf(Path(source))
    seen = {}
    model = build_for(config, dtype=torch.bfloat16)
    built = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    for name, scenario in SCENARIOS.items():
        for module, parameters, buffers in built:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        scramble(model)
        try:
            scenario(rank, model, Path(source), Path(folder))
        except MapspecError as error:
            told = [f"{d.code} {d.message} {' '.join(n.message for n in d.notes)}" for d in error.diagnostics]
            kind = type(error).__name__
        except Exception as error:
            kind, told = type(error).__name__, [str(error)]
        else:
            kind, told = "", []
        left = all(t.isnan().all() for t in model.parameters() if not t.is_meta)
        seen[name] = kind, told, left
    return seen | {"other_config": wider(Path(source), config)}


def wider(source: Path, config: dict[str, Any]) -> tuple[str, list[str], bool]:
    """A model of another width than the checkpoint's."""
    model = build_for({**config, "hidden_size": 128, "num_attention_heads": 16}, dtype=torch.bfloat16)
    try:
        load(model, source)
    except MapspecError as error:
        one = error.diagnostics[0]
        return type(error).__name__, [f"{one.code} {one.message} {one.notes[0].message}"], True
    return "", [], True


def options(rank: int, source: str, folder: str) -> list[str]:
    """What is not an error: one receiver, other dtypes, parts left out, the default of a config without tensors."""
    state, config = read_hf(Path(source))
    model = build_for(config, dtype=torch.bfloat16)
    fill_model(model, state, config)
    originals = source_tensors(Path(source))
    seen = []
    for name, tensor in export(model, source, to_rank=1):
        assert same_bits(tensor, originals[name]), name
        seen.append(name)
    assert len(seen) == (len(originals) if rank == 1 else 0)
    for name, tensor in export(model, config, dtype="float32"):
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, originals[name].float()), name
    kept = {n: t.dtype for n, t in export(model, config, dtype="model")}
    assert kept["backbone.layers.0.mixer.A_log"] is torch.float32
    assert kept["backbone.layers.0.mixer.D"] is torch.float32
    assert kept["backbone.embeddings.weight"] is torch.bfloat16
    # What changes no shape is no error, but it is told.
    other = build_for({**config, "num_experts_per_tok": 2}, dtype=torch.bfloat16)
    told = load(other, source).differences
    assert told == ("moe_router_topk: the model was built with 2, the config says 3",)
    # A model without multi-token prediction takes a checkpoint with it when told to.
    short = build_for({**config, "num_nextn_predict_layers": 0}, dtype=torch.bfloat16)
    scramble(short)
    report = load(short, source, strict=False)
    assert report.left_out
    assert all(name.startswith("mtp.") for name in report.left_out)
    assert not any(p.isnan().any() for p in short.parameters())
    saved = save_hf(short, Path(folder) / "short", reference=source, strict=False, max_shard_bytes=50_000)
    assert saved.left_out == report.left_out
    assert 0 < saved.bytes_written < saved.nbytes
    return seen


def killed_while_exporting(rank: int, source: str) -> None:
    """Rank 1 is gone after the third tensor."""
    model = build_for(read_hf(Path(source))[1], dtype=torch.bfloat16)
    for at, _ in enumerate(export(model, source, timeout_s=10)):
        if at == 3 and rank == 1:
            os._exit(9)


def late_while_exporting(rank: int, source: str) -> float:
    """Rank 1 stops to answer; how long rank 0 waited."""
    model = build_for(read_hf(Path(source))[1], dtype=torch.bfloat16)
    began = time.monotonic()
    try:
        for at, _ in enumerate(export(model, source, timeout_s=1.5)):
            if at == 3 and rank == 1:
                time.sleep(4)
                return 0.0
            began = time.monotonic()
    except MapspecError as error:
        return time.monotonic() - began if error.diagnostics[0].code == "MS755" else -1.0
    return -2.0
