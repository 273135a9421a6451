"""Ground truth for conversions: fills a live HybridModel from a Hugging Face checkpoint by straightforward torch.

Written from the published layouts alone and independent of mapspec's specs and interpreter: nothing of `mapspec` but
the reference backend is used. Everything is done with cat, view and slicing per rank, one layer kind after another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from processes import RankError, spawn
from safetensors.torch import load_file
from torch import Tensor

from mapspec.backends.reference import build_reference_model, cpu_adapters

__all__ = [
    "Filler",
    "RankError",
    "build_for",
    "fill_model",
    "load_with_megatron",
    "megatron_fields",
    "megatron_pattern",
    "read_hf",
    "save_with_megatron",
    "sharded_lines",
    "spawn",
]

_SYMBOLS = {
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}


def read_hf(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint under their published names (experts unstacked), and its config."""
    config = json.loads((folder / "config.json").read_text())
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            name = "backbone." + name.removeprefix("model.") if name.startswith("model.") else name
            if name.endswith((".experts.up_proj", ".experts.down_proj")):
                stem, projection = name.rsplit(".", 1)
                for expert, one in enumerate(tensor):
                    state[f"{stem}.{expert}.{projection}.weight"] = one.clone()
            else:
                state[name] = tensor
    return state, config


def megatron_pattern(config: Mapping[str, Any], cuts: tuple[int, ...] = ()) -> str:
    """The pattern in Megatron's notation: main layers, `|` before each layer index in `cuts`, `/` before MTP blocks."""
    main = config.get("hybrid_override_pattern") or "".join(_SYMBOLS[kind] for kind in config["layers_block_type"])
    pieces = [main[a:b] for a, b in zip((0, *cuts), (*cuts, len(main)), strict=True)]
    blocks = config.get("num_nextn_predict_layers", 0)
    if not blocks:
        return "|".join(pieces)
    mtp = config.get("mtp_hybrid_override_pattern") or "".join(
        _SYMBOLS[kind] for kind in config["mtp_layers_block_type"]
    )
    return "|".join(pieces) + f"/{mtp}" * blocks


def megatron_fields(config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """TransformerConfig fields for a Nemotron-H config."""
    fields: dict[str, Any] = {
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "mamba_num_heads": config["mamba_num_heads"],
        "mamba_head_dim": config["mamba_head_dim"],
        "mamba_num_groups": config["n_groups"],
        "mamba_state_dim": config["ssm_state_size"],
        "layernorm_epsilon": config["layer_norm_epsilon"],
        "params_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
    }
    pattern = megatron_pattern(config)
    if "E" in pattern:
        fields |= {
            "num_moe_experts": config["n_routed_experts"],
            "moe_router_topk": config["num_experts_per_tok"],
            "moe_ffn_hidden_size": config["moe_intermediate_size"],
            "moe_shared_expert_intermediate_size": config["moe_shared_expert_intermediate_size"],
            "moe_latent_size": config.get("moe_latent_size"),
            "moe_router_topk_scaling_factor": config["routed_scaling_factor"],
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_load_balancing_type": "seq_aux_loss",
            "moe_router_dtype": "fp32",
            "moe_aux_loss_coeff": 1e-4,
        }
    if "/" in pattern:
        fields["mtp_num_layers"] = config["num_nextn_predict_layers"]
    return fields


def build_for(
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    cuts: tuple[int, ...] = (),
    vocab_size: int | None = None,
    **switches: Any,
) -> Any:
    """The reference model of this rank for a Hugging Face config."""
    switches.setdefault("share_embeddings_and_output_weights", bool(config.get("tie_word_embeddings")))
    return build_reference_model(
        megatron_fields(config, dtype),
        vocab_size=vocab_size or config["vocab_size"],
        hybrid_layer_pattern=megatron_pattern(config, cuts),
        **switches,
    )


class Filler:
    """Copies tensors into one rank's model and remembers what was used and what was filled."""

    def __init__(self, model: Any, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.model, self.state, self.config = model, state, config
        self.used: set[str] = set()
        self.filled: set[int] = set()
        self.tp = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        self.etp = (
            parallel_state.get_expert_tensor_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_world_size(),
        )

    def take(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name]

    def put(self, target: Tensor, value: Tensor) -> None:
        assert target.shape == value.shape, (tuple(target.shape), tuple(value.shape))
        target.data.copy_(value)
        self.filled.add(id(target))

    @staticmethod
    def part(tensor: Tensor, where: tuple[int, int], dim: int = 0) -> Tensor:
        """Piece `where[0]` of `where[1]` equal contiguous pieces."""
        assert tensor.shape[dim] % where[1] == 0, (tuple(tensor.shape), where)
        return tensor.chunk(where[1], dim)[where[0]]

    def rows(self, target: Tensor, name: str) -> None:
        self.put(target, self.part(self.take(name), self.tp))

    def columns(self, target: Tensor, name: str) -> None:
        self.put(target, self.part(self.take(name), self.tp, 1))

    def whole(self, target: Tensor, name: str) -> None:
        self.put(target, self.take(name))

    def pieces(self, target: Tensor, name: str, sizes: list[int]) -> None:
        """Each component cut over TP on its own; this rank's cuts one after the other."""
        self.put(target, torch.cat([self.part(one, self.tp) for one in self.take(name).split(sizes)]))

    def vocabulary(self, target: Tensor, name: str) -> None:
        """Rows of the vocabulary, zero rows added up to the model's size, cut over TP."""
        tensor = self.take(name)
        missing = self.model.vocab_size - tensor.shape[0]
        padded = torch.cat([tensor, tensor.new_zeros(missing, tensor.shape[1])])
        self.put(target, self.part(padded, self.tp))

    def norm(self, layer: Any, separate: str, fused: Any, prefix: str) -> None:
        """The norm before the layer, wherever this flavour of the model keeps it."""
        module = getattr(layer, separate)
        held = module.weight if hasattr(module, "weight") else fused.layer_norm_weight
        self.whole(held, prefix + "norm.weight")

    def mamba(self, layer: Any, prefix: str) -> None:
        mixer, mix, config = layer.mixer, prefix + "mixer.", self.config
        inner = config["mamba_num_heads"] * config["mamba_head_dim"]
        group = config["n_groups"] * config["ssm_state_size"]
        self.norm(layer, "norm", mixer.in_proj, prefix)
        self.pieces(
            mixer.in_proj.weight,
            mix + "in_proj.weight",
            [inner, inner, group, group, config["mamba_num_heads"]],
        )
        weight, bias = mixer.convolution
        self.pieces(weight, mix + "conv1d.weight", [inner, group, group])
        self.pieces(bias, mix + "conv1d.bias", [inner, group, group])
        for name in ("A_log", "D", "dt_bias"):
            self.rows(getattr(mixer, name), mix + name)
        self.rows(mixer.norm.weight, mix + "norm.weight")
        self.columns(mixer.out_proj.weight, mix + "out_proj.weight")

    def attention(self, layer: Any, prefix: str) -> None:
        mix, config, attention = prefix + "mixer.", self.config, layer.self_attention
        groups, width, hidden = config["num_key_value_heads"], config["head_dim"], config["hidden_size"]
        query, key, value = (self.take(f"{mix}{name}_proj.weight").view(groups, -1, width, hidden) for name in "qkv")
        merged = torch.cat([query, key, value], dim=1).reshape(-1, hidden)
        self.put(attention.linear_qkv.weight, self.part(merged, self.tp))
        self.columns(attention.linear_proj.weight, mix + "o_proj.weight")
        self.norm(layer, "input_layernorm", attention.linear_qkv, prefix)

    def dense(self, layer: Any, prefix: str) -> None:
        self.rows(layer.mlp.linear_fc1.weight, prefix + "mixer.up_proj.weight")
        self.columns(layer.mlp.linear_fc2.weight, prefix + "mixer.down_proj.weight")
        self.norm(layer, "pre_mlp_layernorm", layer.mlp.linear_fc1, prefix)

    def moe(self, layer: Any, prefix: str) -> None:
        moe, mix = layer.mlp, prefix + "mixer."
        self.whole(layer.pre_mlp_layernorm.weight, prefix + "norm.weight")
        self.whole(moe.router.weight, mix + "gate.weight")
        self.whole(moe.router.expert_bias, mix + "gate.e_score_correction_bias")
        self.rows(moe.shared_experts.linear_fc1.weight, mix + "shared_experts.up_proj.weight")
        self.columns(moe.shared_experts.linear_fc2.weight, mix + "shared_experts.down_proj.weight")
        if self.config.get("moe_latent_size"):
            for name in ("fc1_latent_proj", "fc2_latent_proj"):
                self.whole(getattr(moe, name).weight, f"{mix}{name}.weight")
        ep, size = (
            parallel_state.get_expert_model_parallel_rank(),
            parallel_state.get_expert_model_parallel_world_size(),
        )
        local = self.config["n_routed_experts"] // size
        for index in range(local):
            expert = f"{mix}experts.{ep * local + index}."
            if hasattr(moe.experts, "local_experts"):
                one = moe.experts.local_experts[index]
                up, down = one.linear_fc1.weight, one.linear_fc2.weight
            else:
                up = getattr(moe.experts.linear_fc1, f"weight{index}")
                down = getattr(moe.experts.linear_fc2, f"weight{index}")
            self.put(up, self.part(self.take(expert + "up_proj.weight"), self.etp))
            self.put(down, self.part(self.take(expert + "down_proj.weight"), self.etp, 1))

    def layer(self, layer: Any, kind: str, prefix: str) -> None:
        fill = {"M": self.mamba, "*": self.attention, "-": self.dense, "E": self.moe}[kind]
        fill(layer, prefix)

    def run(self) -> set[str]:
        """Fill everything; the Hugging Face names that were used."""
        model = self.model
        if hasattr(model, "embedding"):
            self.vocabulary(model.embedding.word_embeddings.weight, "backbone.embeddings.weight")
        main, *mtp = megatron_pattern(self.config).split("/")
        for layer in model.decoder.layers:
            index = layer.layer_number - 1
            self.layer(layer, main[index], f"backbone.layers.{index}.")
        if hasattr(model.decoder, "final_norm"):
            self.whole(model.decoder.final_norm.weight, "backbone.norm_f.weight")
        for block, one in enumerate(getattr(getattr(model, "mtp", None), "layers", ())):
            pattern = mtp[block]
            first = f"mtp.layers.{block * len(pattern)}."
            self.rows(one.eh_proj.weight, first + "eh_proj.weight")
            self.whole(one.enorm.weight, first + "enorm.weight")
            self.whole(one.hnorm.weight, first + "hnorm.weight")
            last = f"mtp.layers.{block * len(pattern) + len(pattern) - 1}."
            self.whole(one.final_layernorm.weight, last + "final_layernorm.weight")
            for inner, kind in enumerate(pattern):
                nested = one.mtp_model_layer.layers[inner]
                self.layer(nested, kind, f"mtp.layers.{block * len(pattern) + inner}.")
        output = getattr(getattr(model, "output_layer", None), "weight", None)
        if output is not None:
            tied = model.share_embeddings_and_output_weights
            self.vocabulary(output, "backbone.embeddings.weight" if tied else "lm_head.weight")
        return self.used


def fill_model(model: Any, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> set[str]:
    """Fill this rank's model; every parameter and saved buffer must get a value. Returns the names used."""
    filler = Filler(model, state, config)
    with torch.no_grad():
        used = filler.run()
    held = {name: value for name, value in model.state_dict(keep_vars=True).items() if value is not None}
    empty = [name for name, value in held.items() if id(value) not in filler.filled]
    assert not empty, f"left unfilled: {empty}"
    return used


def save_with_megatron(model: Any, folder: Path) -> None:
    """Write a torch_dist checkpoint with Megatron-Core itself; all ranks call it."""
    if not torch.distributed.get_rank():
        folder.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    with cpu_adapters():
        dist_checkpointing.save(
            {"model": model.sharded_state_dict(), "checkpoint_version": 3.0, "iteration": 0},
            str(folder),
            content_metadata={"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
        )


def load_with_megatron(model: Any, folder: Path, strict: str = "assume_ok_unexpected") -> Any:
    """Load a torch_dist checkpoint with Megatron-Core itself into the model; all ranks call it.

    For the `return_*` kinds of strictness returns [keys of the file that the model does not ask for, keys that the
    model asks for and the file lacks] and leaves what is lacking as it was; Megatron-Core calls the former missing
    and the latter unexpected. Else returns None.
    """
    with cpu_adapters():
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(folder), strict=strict)
    report = None
    if isinstance(loaded, tuple):
        loaded, *report = loaded
    model.load_state_dict(loaded["model"], strict=report is None)
    return report


def sharded_lines(model: Any) -> list[str]:
    """What this rank's model stores: `key dtype shape` per tensor (global shape), `key object` per byte object."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories

    with cpu_adapters():
        sharded = model.sharded_state_dict()
    apply_factories(sharded)
    lines = set()
    for value in nested_values(sharded):
        if isinstance(value, ShardedTensor):
            shape = "x".join(str(size) for size in value.global_shape)
            lines.add(f"{value.key} {str(value.dtype).removeprefix('torch.')} {shape}")
        else:
            assert isinstance(value, ShardedObject), value
            lines.add(f"{value.unique_key} object")
    return sorted(lines)
