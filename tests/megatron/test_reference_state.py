"""What the reference model stores, and that the adapters leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures_hf import VARIANTS, mtp_tensors, write_tiny
from oracle import build_for, load_with_megatron, megatron_fields, read_hf, save_with_megatron, sharded_lines
from processes import RankError, spawn
from safetensors.torch import load_file

from mapspec.backends.reference import (
    ParallelSizes,
    build_reference_model,
    cpu_adapters,
    one_process_group,
    parallel_group,
    reference_logits,
)

pytestmark = pytest.mark.megatron

GOLDEN = Path(__file__).parent / "golden"
FLAVOURS = {
    "fused": {"norms": "fused"},
    "separate": {"norms": "separate"},
    "fused-te": {"norms": "fused", "norm_state": True},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny(name, root / name) for name in VARIANTS}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_stored_keys_are_as_recorded(checkpoints: dict[str, Path], variant: str, flavour: str) -> None:
    """Set UPDATE_GOLDEN=1 to record anew."""
    _, config = read_hf(checkpoints[variant])
    with one_process_group():
        found = {
            experts: sharded_lines(build_for(config, dtype=torch.bfloat16, experts=experts, **FLAVOURS[flavour]))
            for experts in ("sequential", "grouped")
        }
    assert found["sequential"] == found["grouped"]
    path = GOLDEN / f"{variant}.{flavour}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text("\n".join(found["grouped"]) + "\n")
    assert found["grouped"] == path.read_text().splitlines()


@pytest.mark.parametrize("norms", ["fused", "separate"])
def test_conv_names_change_memory_but_not_the_file(checkpoints: dict[str, Path], norms: str) -> None:
    _, config = read_hf(checkpoints["dense"])
    with one_process_group():
        models = {kind: build_for(config, norms=norms, conv_names=kind) for kind in ("underscore", "dotted")}
        assert sharded_lines(models["underscore"]) == sharded_lines(models["dotted"])
        names = {kind: set(dict(model.named_parameters())) for kind, model in models.items()}
    stem = "decoder.layers.0.mixer."
    assert {name for name in names["dotted"] - names["underscore"] if name.startswith(stem)} == {
        f"{stem}conv1d.weight",
        f"{stem}conv1d.bias",
    }
    assert {f"{stem}conv1d_weight", f"{stem}conv1d_bias"} <= names["underscore"]


def test_a_file_of_one_flavour_lacks_the_norms_of_the_other(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    _, config = read_hf(checkpoints["moe"])
    with one_process_group():
        save_with_megatron(build_for(config, norms="fused"), tmp_path / "ckpt")
        unwanted, lacking = load_with_megatron(build_for(config, norms="separate"), tmp_path / "ckpt", "return_all")
    layers = "decoder.layers."
    assert lacking == {
        f"{layers}0.norm.weight",
        f"{layers}2.input_layernorm.weight",
        f"{layers}3.pre_mlp_layernorm.weight",
    }
    assert unwanted == {
        f"{layers}0.mixer.in_proj.layer_norm_weight",
        f"{layers}2.self_attention.linear_qkv.layer_norm_weight",
        f"{layers}3.mlp.linear_fc1.layer_norm_weight",
    }


def test_dtypes_of_a_bf16_model(checkpoints: dict[str, Path]) -> None:
    _, config = read_hf(checkpoints["mtp1"])
    with one_process_group():
        model = build_for(config, dtype=torch.bfloat16)
        wide = {
            name.rsplit(".", 1)[1]
            for name, t in model.state_dict().items()
            if t is not None and t.dtype != torch.bfloat16
        }
        assert wide == {"A_log", "D", "expert_bias"}
        tokens = torch.zeros(1, 4, dtype=torch.long)
        assert reference_logits(model, tokens).dtype is torch.bfloat16


def test_adapters_are_undone() -> None:
    from megatron.core.models.common.language_module.language_module import LanguageModule
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.tensor_parallel import mappings, random
    from megatron.core.transformer.moe import moe_layer, router, token_dispatcher

    owners = [hybrid_block, mappings, random, moe_layer, router, token_dispatcher, LanguageModule]
    owners += [torch, torch.cuda, torch.Tensor, token_dispatcher.MoEAlltoAllTokenDispatcher]
    before = [dict(vars(owner)) for owner in owners]
    with cpu_adapters():
        assert router.torch is not torch
        assert router.torch.Tensor is torch.Tensor
        assert router.torch.cuda.current_device() == torch.device("cpu")
        with cpu_adapters():
            assert router.torch is not torch
        assert router.torch is not torch
    with pytest.raises(ZeroDivisionError), cpu_adapters():
        raise ZeroDivisionError
    assert router.torch is torch
    for owner, names in zip(owners, before, strict=True):
        now = vars(owner)
        assert now.keys() == names.keys(), owner
        assert [name for name in names if now[name] is not names[name]] == [], owner


def test_unknown_fields_are_named() -> None:
    with one_process_group(), pytest.raises(TypeError, match="hiden_size"):
        build_reference_model({"hiden_size": 8}, vocab_size=8, hybrid_layer_pattern="-")


def test_a_second_process_group_is_refused() -> None:
    with one_process_group(), pytest.raises(RuntimeError, match="exists"), parallel_group():
        pass


def test_world_sizes() -> None:
    assert ParallelSizes(tp=2, ep=2, etp=2).world == 4
    assert ParallelSizes(tp=2, ep=2).world == 2
    assert ParallelSizes(tp=4, pp=2, ep=2).world == 8
    assert ParallelSizes(tp=2, ep=3).world == 6


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, mapspec.backends; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fail_on_one(rank: int) -> int:
    if rank == 1:
        raise ValueError("rank one is out")
    torch.distributed.barrier()
    return rank


def hang(rank: int) -> None:
    time.sleep(60)


def test_errors_of_ranks_come_home() -> None:
    with pytest.raises(RankError, match="rank one is out"):
        spawn(fail_on_one, 2)


def test_ranks_do_not_outlive_the_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match="no answer from ranks"):
        spawn(hang, 2, timeout_s=2)
    assert time.monotonic() - start < 20


def test_tiny_checkpoints_are_small_and_loadable(checkpoints: dict[str, Path]) -> None:
    from transformers import AutoConfig

    for name, folder in checkpoints.items():
        assert sum(path.stat().st_size for path in folder.iterdir()) < 3 << 20, name
        config = AutoConfig.from_pretrained(folder)
        assert config.hybrid_override_pattern == VARIANTS[name].pattern
        state, _ = read_hf(folder)
        assert all(torch.isfinite(tensor.float()).all() for tensor in state.values()), name
        assert {n for n in state if n.startswith("mtp.")} == set(mtp_tensors(VARIANTS[name]))
        biases = [t for n, t in state.items() if n.endswith("e_score_correction_bias")]
        assert all(t.dtype is torch.float32 and t.unique().numel() == t.numel() for t in biases), name
    index = json.loads((checkpoints["mtp_mamba"] / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    held = {n: f for f in files for n in load_file(checkpoints["mtp_mamba"] / f)}
    assert held == index["weight_map"]


def test_native_layout_holds_the_same_values(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = write_tiny(VARIANTS["mtp1"].but(layout="native"), tmp_path / "native")
    names = set(load_file(folder / "model.safetensors"))
    assert "model.layers.1.mixer.experts.up_proj" in names
    assert not any(name.startswith("backbone.") for name in names)
    ours, theirs = read_hf(folder)[0], read_hf(checkpoints["mtp1"])[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fields_cover_the_moe_switches(checkpoints: dict[str, Path]) -> None:
    fields = megatron_fields(read_hf(checkpoints["mtp1"])[1])
    assert fields["moe_router_topk"] == 3
    assert fields["moe_latent_size"] == 40
    assert fields["mtp_num_layers"] == 1
