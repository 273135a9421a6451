"""Megatron-LM takes a converted checkpoint: its own loader, and the arguments of docs/megatron_lm.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_hf import write_tiny
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import checkpointing
from megatron.training.arguments import core_transformer_config_from_args, parse_args
from typer.testing import CliRunner

import mapspec
from mapspec.backends.reference import cpu_adapters, one_process_group
from mapspec.cli import app

pytestmark = pytest.mark.megatron

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "tests" / "configs" / "nemotron-3-nano-30b-a3b.json"


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint with Mamba, latent experts and MTP, and what it was converted to."""
    source = write_tiny("mtp1", tmp_path / "hf")
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "megatron"), "--progress", "none"])
    assert done.exit_code == 0, done.output
    return source, tmp_path / "megatron"


@pytest.fixture
def megatron_lm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Megatron-LM's arguments, in force for its checkpointing module, which then works without a GPU."""

    def start(*words: str) -> Any:
        monkeypatch.setattr("sys.argv", ["pretrain_hybrid.py", *words])
        args = parse_args()
        args.use_dist_ckpt = args.ckpt_format != "torch"  # validate_args, which asks for a GPU, sets these
        args.consumed_train_samples = args.skipped_train_samples = args.consumed_valid_samples = 0
        monkeypatch.setattr(checkpointing, "get_args", lambda: args)
        monkeypatch.setattr(checkpointing, "update_num_microbatches", lambda **_: None)
        monkeypatch.setattr(checkpointing, "_CHECKPOINT_VERSION", None)
        real = torch.tensor
        # Ranks agree on the iteration through a tensor on the GPU.
        monkeypatch.setattr(torch, "tensor", lambda *a, device=None, **k: real(*a, **k))
        return args

    return start


def test_its_loader_fills_the_model(converted: tuple[Path, Path], megatron_lm: Callable[..., Any]) -> None:
    source, checkpoint = converted
    pattern = ["--hybrid-layer-pattern", "ME*E/*E", "--hidden-size", "64", "--num-attention-heads", "8"]
    args = megatron_lm("--load", str(checkpoint), "--ckpt-format", "torch_dist", *pattern)
    args.num_layers = 4  # from the pattern
    with one_process_group():
        model = mapspec.Provider.from_hf(str(source), backend="reference").provide()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        with cpu_adapters():
            iteration, _ = checkpointing.load_checkpoint([model], None, None, strict=True)
        assert iteration == 0
        assert not [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
        exported = dict(mapspec.export(model, str(source)))
    from safetensors.torch import load_file

    for name, tensor in load_file(source / "model.safetensors").items():
        assert torch.equal(exported[name], tensor), name


def test_a_hybrid_model_is_not_taken_for_a_gpt_model(
    converted: tuple[Path, Path], megatron_lm: Callable[..., Any]
) -> None:
    """From 0.19 on the loader asks the checkpoint's `args` which of the two it is."""
    source, checkpoint = converted
    args = megatron_lm("--load", str(checkpoint), "--ckpt-format", "torch_dist", "--hybrid-layer-pattern", "ME*E/*E")
    common = checkpointing.dist_checkpointing.load_common_state_dict(str(checkpoint / "iter_0000000"))
    with one_process_group():
        model = mapspec.Provider.from_hf(str(source), backend="reference").provide()
        assert checkpointing._maybe_setup_gpt_to_hybrid_load(args, common["args"], [model]) == (None, False)


def test_use_checkpoint_args_gives_the_model(converted: tuple[Path, Path], megatron_lm: Callable[..., Any]) -> None:
    source, checkpoint = converted
    args = megatron_lm("--load", str(checkpoint), "--ckpt-format", "torch_dist", "--use-checkpoint-args")
    loaded, _ = checkpointing.load_args_from_checkpoint(args)
    provider = mapspec.Provider.from_hf(str(source))
    provider.finalize()
    for name, value in {**provider.fields, "num_experts": provider.num_moe_experts}.items():
        if name in SET_BY_CHECKPOINT:
            assert getattr(loaded, name) == value, name
    assert loaded.hybrid_layer_pattern == "ME*E/*E"
    assert loaded.padded_vocab_size == 256
    assert (loaded.squared_relu, loaded.swiglu, loaded.group_query_attention) == (True, False, True)
    assert loaded.untie_embeddings_and_output_weights


SET_BY_CHECKPOINT = {
    "num_layers", "hidden_size", "ffn_hidden_size", "seq_length", "num_attention_heads", "num_query_groups",
    "kv_channels", "position_embedding_type", "add_bias_linear", "normalization", "num_experts", "moe_ffn_hidden_size",
    "moe_router_topk", "moe_router_score_function", "moe_router_topk_scaling_factor", "moe_latent_size",
    "moe_shared_expert_intermediate_size", "mamba_state_dim", "mamba_head_dim", "mamba_num_groups", "mamba_num_heads",
    "mtp_num_layers",
}  # fmt: skip


# Fields of the config that differ between the arguments of the page and the provider, and why that is all right.
_OTHERWISE = {
    "kernels and their fusion": {
        "attention_backend", "cross_entropy_loss_fusion", "gradient_accumulation_fusion", "masked_softmax_fusion",
        "moe_permute_fusion", "moe_shared_expert_overlap", "cp_comm_type", "cuda_graph_modules",
    },
    "how a run is cut, offloaded or saved": {
        "tensor_model_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size", "sequence_parallel",
        "pipeline_dtype", "autocast_dtype", "recompute_modules",
    },
    "initialisation, which loading overwrites": {
        "init_method", "output_layer_init_method", "embedding_init_method", "embedding_init_method_std",
    },
    "another way to write it": {
        "moe_aux_loss_coeff", "moe_router_load_balancing_type", "moe_router_num_groups", "moe_router_group_topk",
    },
    "of training alone": {"first_last_layers_bf16", "inference_sampling_seed", "tensor_parallel_num_weight_shards"},
}  # fmt: skip


def test_the_arguments_of_the_page_mean_the_model(megatron_lm: Callable[..., Any]) -> None:
    text = (ROOT / "docs" / "megatron_lm.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "), comments=True)
    args = megatron_lm(*words[words.index("pretrain_hybrid.py") + 1 :])
    # What validate_args, which asks for a GPU, and the tokenizer would fill in.
    provider = mapspec.Provider.from_hf(str(NANO))
    provider.finalize()
    args.num_layers, args.params_dtype, args.apply_rope_fusion = (
        len(provider.hybrid_layer_pattern),
        torch.bfloat16,
        False,
    )
    config = core_transformer_config_from_args(args)
    expected, allowed = provider.fields, set().union(*_OTHERWISE.values())
    differing = {}
    for field in fields(TransformerConfig):
        if field.name in expected and field.name not in allowed:
            found, wanted = getattr(config, field.name), expected[field.name]
            found = getattr(found, "__name__", found)
            if str(found).removeprefix("torch.") != str(wanted):
                differing[field.name] = (found, wanted)
    assert differing == {}
    assert args.hybrid_layer_pattern == provider.hybrid_layer_pattern
    assert args.untie_embeddings_and_output_weights is not provider.share_embeddings_and_output_weights
    assert args.seq_length <= provider.seq_length
