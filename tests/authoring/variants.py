"""Variants that a user would bring: tiny checkpoints of a known model, with names, layouts and parameters changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["VARIANTS", "change_checkpoint", "write_variant"]

type Tensors = dict[str, Tensor]


def change_checkpoint(folder: Path, change: Callable[[Tensors], Tensors], config: Mapping[str, Any]) -> None:
    """Apply a change to a single-file checkpoint; `None` in `config` removes a key."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    file = folder / "config.json"
    merged = {**json.loads(file.read_text()), "architectures": ["AcmeForCausalLM"], "model_type": "acme", **config}
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}, indent=2))


def _named(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        out = {}
        for name, tensor in tensors.items():
            for pattern, new in pairs:
                name = re.sub(pattern, new, name)
            out[name] = tensor
        return out

    return change


def _more(make: Callable[[str, Tensor], Mapping[str, Tensor]]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        out = dict(tensors)
        for name, tensor in tensors.items():
            out |= make(name, tensor)
        return out

    return change


def _rand(*shape: int) -> Tensor:
    return torch.rand(shape).to(torch.bfloat16)


def _qk_norm(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    if not name.endswith("mixer.q_proj.weight"):
        return {}
    head = name.removesuffix("q_proj.weight")
    return {f"{head}q_norm.weight": _rand(16), f"{head}k_norm.weight": _rand(16)}


def _qkv_bias(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    found = re.fullmatch(r"(.*mixer\.[qkv]_proj)\.weight", name)
    return {f"{found[1]}.bias": _rand(tensor.shape[0])} if found else {}


def _router_bias(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    return {name.replace("weight", "bias"): _rand(tensor.shape[0])} if name.endswith("fc1_latent_proj.weight") else {}


def _fused_qkv(tensors: Tensors) -> Tensors:
    out = dict(tensors)
    for name in tensors:
        if name.endswith("q_proj.weight"):
            parts = [out.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
            out[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
    return out


def _cut_in_proj(tensors: Tensors) -> Tensors:
    out = dict(tensors)
    for name in tensors:
        if name.endswith("mixer.in_proj.weight"):
            for part, piece in zip(["z", "x", "B", "C", "dt"], out.pop(name).split([96, 96, 32, 32, 8]), strict=True):
                out[name.replace("in_proj", f"in_proj_{part}")] = piece
    return out


def _gated(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    is_up = name.endswith("up_proj.weight")
    return {name.replace("up_proj", "gate_proj"): _rand(*tensor.shape)} if is_up else {}


def _gate_above(tensors: Tensors) -> Tensors:
    out = dict(tensors)
    for name, tensor in tensors.items():
        if re.search(r"mixer\.up_proj", name):
            out[name.replace("up_proj", "gate_up_proj")] = torch.cat([_rand(*tensor.shape), out.pop(name)])
    return out


def _nested_mtp(tensors: Tensors) -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"mtp\.layers\.(\d+)\.(.*)", name)
        if found:
            block, inner = divmod(int(found[1]), 2)
            own = re.match(r"enorm|hnorm|eh_proj|final_layernorm", found[2])
            name = f"model.mtp.{block}.{found[2]}" if own else f"model.mtp.{block}.layers.{inner}.{found[2]}"
        out[name] = tensor
    return out


def _stacked(tensors: Tensors) -> Tensors:
    out: Tensors = {}
    experts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.weight", name)
        if found:
            experts.setdefault(f"{found[1]}.{found[2]}", []).append(tensor)
        else:
            out[name] = tensor
    return {**out, **{name: torch.stack(parts) for name, parts in experts.items()}}


_RENAMED = _named(
    (r"mixer\.o_proj", "mixer.out_proj"),
    (r"mixer\.q_proj", "mixer.query"),
    (r"mixer\.k_proj", "mixer.key"),
    (r"mixer\.v_proj", "mixer.value"),
    (r"shared_experts\.", "shared_expert."),
    (r"norm_f", "final_norm"),
)
_PREFIX = _named((r"^backbone\.layers\.", "transformer.blocks."), (r"^backbone\.", "transformer."))

# name -> (variant of fixtures_hf, change of the tensors, change of the config)
VARIANTS: Mapping[str, tuple[str, Callable[[Tensors], Tensors], Mapping[str, Any]]] = {
    "renamed": ("mtp1", _RENAMED, {}),
    "qk_norm": ("mtp1", _more(_qk_norm), {"use_qk_norm": True}),
    "qk_norm_silent": ("dense", _more(_qk_norm), {}),
    "bias": ("mtp1", _more(_qkv_bias), {"qkv_bias": True}),
    "other_bias": ("latent", _more(_router_bias), {"latent_bias": True}),
    "prefix": ("mtp1", _PREFIX, {}),
    "bare": ("mtp1", _named((r"^backbone\.", "")), {}),
    "mtp_keys": (
        "mtp1",
        lambda tensors: tensors,
        {
            "num_nextn_predict_layers": None,
            "mtp_hybrid_override_pattern": None,
            "num_mtp_layers": 1,
            "mtp_pattern": "*E",
        },
    ),
    "mtp_nested": ("mtp2", _nested_mtp, {}),
    "gated": ("moe", _more(_gated), {"mlp_hidden_act": "silu"}),
    "gate_above": ("dense", _gate_above, {"mlp_hidden_act": "silu"}),
    "fused_qkv": ("mtp1", _fused_qkv, {}),
    "cut_in_proj": ("dense", _cut_in_proj, {}),
    "stacked": ("moe", _stacked, {}),
    "renamed_config": ("dense", lambda tensors: tensors, {"intermediate_size": None, "mlp_intermediate_size": 160}),
    "everything": (
        "mtp1",
        lambda tensors: _PREFIX(_RENAMED(_more(_qk_norm)(_more(_gated)(tensors)))),
        {"use_qk_norm": True, "mlp_hidden_act": "silu", "acme_version": 3},
    ),
}


def write_variant(name: str, tiny: Callable[[str], Path], folder: Path) -> Path:
    """Write a variant into `folder`; returns it."""
    base, change, config = VARIANTS[name]
    shutil.copytree(tiny(base), folder)
    change_checkpoint(folder, change, config)
    return folder
