"""Hugging Face checkpoints of any size with random values, for the other scripts of this folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mapspec.io.layout import Layout, NewTensor
from mapspec.io.safetensors_layout import layout_safetensors
from mapspec.mapping import compile_mapping
from mapspec.tensors import itemsize, numel, whole

__all__ = ["CONFIGS", "KINDS", "lay_out", "make"]

CONFIGS = Path(__file__).resolve().parent.parent / "tests" / "configs"
KINDS = ("dense", "moe")
_BLOCK = 16 << 20


def _config(kind: str, blocks: int) -> dict[str, Any]:
    """A dense model in the proportions of Nemotron-H 8B at half its width, or one with 512 small experts per layer."""
    name = "nemotron-h-8b" if kind == "dense" else "nemotron-3-nano-30b-a3b"
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    pattern = ("M-M*-" if kind == "dense" else "ME*E") * blocks
    config |= {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern), "vocab_size": 8192}
    if kind == "dense":
        config |= {"hidden_size": 2048, "intermediate_size": 10752, "mamba_num_heads": 64, "num_attention_heads": 16}
    else:
        config |= {"hidden_size": 1024, "n_routed_experts": 512, "moe_intermediate_size": 256}
    return config


def _layout(config: dict[str, Any], shard_bytes: int) -> tuple[Layout, int]:
    inventory = compile_mapping("nemotron_h", config).table.inventory("hf")
    tensors = [NewTensor(n, d.dtype, d.shape, (whole(d.shape),)) for n, d in inventory.items()]
    total = sum(numel(t.shape) * itemsize(t.dtype) for t in tensors)
    return layout_safetensors(tensors, max_shard_bytes=shard_bytes), total


def lay_out(config: dict[str, Any], folder: Path) -> int:
    """Write a model's headers over sparse files of the right size; the number of tensors."""
    layout, _ = _layout(config, 5 * 10**9)
    _write_headers(layout, config, folder)
    return len(layout.tensors)


def make(kind: str, folder: Path, nbytes: int) -> tuple[int, int]:
    """Write a checkpoint of at least `nbytes` with random values; its bytes, and its tensors."""
    folder.mkdir(parents=True)
    blocks = 1
    layout, total = _layout(_config(kind, 1), max(nbytes // 4, 1 << 20))
    if total < nbytes:
        _, next_ = _layout(_config(kind, 2), nbytes)
        blocks = 1 + -(-(nbytes - total) // (next_ - total))
        layout, total = _layout(_config(kind, blocks), nbytes // 4)
    _write_headers(layout, _config(kind, blocks), folder)
    noise = np.random.default_rng(0).bytes(2 * _BLOCK)
    for file, size in layout.file_sizes.items():
        start = sum(len(framing.data) for framing in layout.framing[file])
        with (folder / file).open("r+b") as stream:
            stream.seek(start)
            for at in range(start, size, _BLOCK):
                shift = at // _BLOCK * 4099 % _BLOCK  # no two blocks alike
                stream.write(noise[shift : shift + min(_BLOCK, size - at)])
            stream.flush()
            os.fsync(stream.fileno())
    return total, len(layout.tensors)


def _write_headers(layout: Layout, config: dict[str, Any], folder: Path) -> None:
    for file, size in layout.file_sizes.items():
        with (folder / file).open("wb") as stream:
            for framing in layout.framing[file]:
                stream.seek(framing.offset)
                stream.write(framing.data)
            stream.truncate(size)
    for file, data in layout.small_files.items():
        (folder / file).write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config))
