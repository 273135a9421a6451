"""Running a checkpoint's model, and measuring how far rounding alone moves what it computes: the noise floor.

The floor is the same model against itself: with chunks of another size, with one sequence at a time, and (Hugging Face
only, whose layers run in any dtype) in fp64 where the comparison is in fp32, in fp32 where it is in bf16. Each changes
the order or the width of additions and nothing else; the largest of each number counts. transformers and Megatron-Core
differ from each other in just that way, so on sound weights their difference is about as large as the floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mapspec.logits.measure import measure
from mapspec.logits.media import language_part
from mapspec.logits.report import Measured
from mapspec.logits.trace import Built, Trace, run, with_chunk
from mapspec.sources import Source

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chunk_size", "eps", "run_once", "run_with_floor"]


def chunk_size(config: Mapping[str, Any]) -> int:
    """Chunk size of the state space scan."""
    return int(config.get("chunk_size") or config.get("mamba_chunk_size") or 128)


def run_once(
    source: Source, config: dict[str, Any], sets: Sequence[str], tokens: Tensor, dtype: str, device: str
) -> tuple[Trace, str]:
    """The run, and what ran."""
    built = _build(source, config, sets, dtype, device)
    return _with_logits(run(built, tokens)), built.about


def run_with_floor(
    source: Source, config: dict[str, Any], sets: Sequence[str], tokens: Tensor, dtype: str, device: str
) -> tuple[Trace, str, dict[str, Measured], dict[str, float]]:
    """The run, and how far the same model moves when rounding falls otherwise: three other ways to compute the same."""
    import torch

    built = _build(source, config, sets, dtype, device)
    base = _with_logits(run(built, tokens))
    runs: dict[str, Measured] = {}
    floors: dict[str, float] = {}

    def add(title: str, other: Trace) -> None:
        runs[title] = measure(base.logits, other.logits)
        for key, value in other.hidden.items():
            largest = (base.hidden[key].double() - value.double().reshape_as(base.hidden[key])).abs().max().item()
            floors[key] = max(floors.get(key, 0.0), largest)

    half = max(1, min(chunk_size(language_part(config)), tokens.shape[1]) // 2)
    with with_chunk(built, half) as chunked:
        if chunked:
            add(f"chunks of {half}", _with_logits(run(built, tokens)))
    add("one sequence at a time", _joined([run(built, row[None]) for row in tokens]))
    if source.kind == "hf":
        wide = torch.float64 if dtype == "float32" else torch.float32
        built.model.to(wide)
        add(f"weights and activations in {str(wide).removeprefix('torch.')}", _with_logits(run(built, tokens)))
    return base, built.about, runs, floors


def _build(source: Source, config: dict[str, Any], sets: Sequence[str], dtype: str, device: str) -> Built:
    if source.kind == "hf":
        from mapspec.logits.hf_model import build_hf

        return build_hf(source.root, sets=sets, dtype=dtype, device=device)
    from mapspec.logits.megatron_model import build_megatron

    return build_megatron(config, source, dtype=dtype, device=device)


def _with_logits(trace: Trace) -> Trace:
    return Trace(trace.logits, {**trace.hidden, "logits": trace.logits})


def _joined(traces: Sequence[Trace]) -> Trace:
    import torch

    hidden = {key: torch.cat([trace.hidden[key] for trace in traces]) for key in traces[0].hidden}
    return _with_logits(Trace(torch.cat([trace.logits for trace in traces]), hidden))


def eps(dtype: str) -> float:
    """One unit in the last place of 1."""
    import torch

    return float(torch.finfo(getattr(torch, dtype)).eps)
