"""The places at which hidden states are compared, and what their weights are called on both sides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mapspec.logits.report import Stage
from mapspec.table import Table

__all__ = ["name_stages"]

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_EMBEDDING = "embedding.word_embeddings.weight"
_BLOCK = re.compile(r"mtp\.layers\.(\d+)\.")


def name_stages(table: Table | None, keys: Iterable[str], kinds: Sequence[str]) -> tuple[Stage, ...]:
    """Stages in the order in which the model runs them.

    Args:
        table: where prefixes are read off, so that they are those of this checkpoint; `None` without a mapping.
        keys: stages that were recorded.
        kinds: kind of each layer.
    """
    names = [row.megatron for row in table.rows] if table is not None else []
    within = next((name.removesuffix(_EMBEDDING) for name in names if name.endswith(_EMBEDDING)), "")
    hf: dict[str, str] = {}
    for row in table.rows if table is not None else ():
        key = _key(row.megatron.removeprefix(within)) if row.megatron.startswith(within) else _media(row.megatron)
        if key is not None:
            hf.setdefault(key, _prefix(row.names("hf")[0]))
    recorded = set(keys)
    out = [
        Stage(f"{medium} features", medium, hf.get(f"{medium} features", medium), f"{medium}_projection")
        for medium in ("vision", "sound")
        if f"{medium} features" in recorded
    ]
    out.append(Stage("embedding", "embedding", hf.get("embedding", "embeddings"), f"{within}embedding.word_embeddings"))
    for i, kind in enumerate(kinds):
        out.append(Stage(f"layer {i}", kind, hf.get(f"layer {i}", f"layers.{i}"), f"{within}decoder.layers.{i}"))
    out.append(Stage("final norm", "norm", hf.get("final norm", "norm_f"), f"{within}decoder.final_norm"))
    out.append(Stage("logits", "output", hf.get("logits", "lm_head"), f"{within}output_layer"))
    blocks = len({key for key in hf if key.startswith("mtp ")}) or 1
    for step in range(sum(key.startswith("mtp ") for key in recorded)):
        block = min(step, blocks - 1)
        out.append(Stage(f"mtp {step}", "mtp block", hf.get(f"mtp {block}", "mtp"), f"{within}mtp.layers.{block}"))
    return tuple(out)


def _media(megatron: str) -> str | None:
    """The stage behind a projector."""
    found = re.match(r"(vision|sound)_projection\.encoder\.linear_fc2\.", megatron)
    return f"{found[1]} features" if found else None


def _key(megatron: str) -> str | None:
    if found := _LAYER.match(megatron):
        return f"layer {found[1]}"
    if found := _BLOCK.match(megatron):
        return f"mtp {found[1]}"
    return {
        _EMBEDDING: "embedding",
        "decoder.final_norm.weight": "final norm",
        "output_layer.weight": "logits",
    }.get(megatron)


def _prefix(name: str) -> str:
    """`backbone.layers.3.mixer.D` -> `backbone.layers.3`; names without a number lose their last part."""
    numbered = re.match(r".*?\.layers\.\d+", name)
    return numbered[0] if numbered else name.rsplit(".", 1)[0]
