"""Where optional parts are stored, and what the model refuses: facts that the mappings rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures_hf import VARIANTS, write_tiny
from oracle import (
    RankError,
    build_for,
    fill_model,
    load_with_megatron,
    megatron_fields,
    megatron_pattern,
    read_hf,
    save_with_megatron,
    sharded_lines,
    spawn,
)

from mapspec.backends.reference import ParallelSizes, build_reference_model, cpu_adapters, one_process_group

pytestmark = pytest.mark.megatron


def added_by(config: dict[str, object], experts: str, **fields: object) -> set[str]:
    """Keys that the changed fields add, without dtype and shape."""
    changed = megatron_fields(config) | fields
    model = build_reference_model(
        changed,
        vocab_size=256,
        hybrid_layer_pattern=megatron_pattern(config),
        experts="grouped" if experts == "grouped" else "sequential",
    )
    return {
        line.removeprefix("decoder.layers.")
        for line in set(sharded_lines(model)) - set(sharded_lines(build_for(config)))
    }


@pytest.mark.parametrize("experts", ["sequential", "grouped"])
def test_biases(tmp_path: Path, experts: str) -> None:
    _, config = read_hf(write_tiny("moe", tmp_path / "moe"))
    with one_process_group():
        assert added_by(config, experts, add_qkv_bias=True) == {"2.self_attention.linear_qkv.bias float32 192"}
        with pytest.raises(AssertionError, match="shared experts"):
            added_by(config, experts, add_bias_linear=True)
        found = added_by(config, experts, add_bias_linear=True, moe_shared_expert_intermediate_size=None)
    assert found == {
        "1.mlp.router.bias float32 8",
        "1.mlp.experts.experts.linear_fc1.bias float32 8x48",
        "1.mlp.experts.experts.linear_fc2.bias float32 8x64",
        "2.self_attention.linear_qkv.bias float32 192",
        "2.self_attention.linear_proj.bias float32 64",
        "3.mlp.linear_fc1.bias float32 160",
        "3.mlp.linear_fc2.bias float32 64",
    }


def test_a_file_loads_into_another_vocabulary_size(tmp_path: Path) -> None:
    state, config = read_hf(write_tiny("dense", tmp_path / "hf"))
    with one_process_group():
        model = build_for(config)
        fill_model(model, state, config)
        save_with_megatron(model, tmp_path / "ckpt")
        wide = build_for(config, vocab_size=320)
        assert load_with_megatron(wide, tmp_path / "ckpt", "return_all") == [set(), set()]
        for ours, theirs in (
            (wide.embedding.word_embeddings.weight, model.embedding.word_embeddings.weight),
            (wide.output_layer.weight, model.output_layer.weight),
        ):
            assert torch.equal(ours[:256], theirs)
            assert not ours[256:].any()


def keys_of_stage(rank: int, folder: str) -> tuple[list[str], list[str]]:
    """Names in memory and keys on disk that hold the vocabulary, for one pipeline stage."""
    _, config = read_hf(Path(folder))
    model = build_for(config, cuts=(1,))
    names = [name for name, _ in model.named_parameters() if name.startswith(("embedding", "output"))]
    keys = [line.split()[0] for line in sharded_lines(model) if line.startswith(("embedding", "output"))]
    return names, keys


def test_a_repeated_mtp_layer_is_stored_once(tmp_path: Path) -> None:
    _, config = read_hf(write_tiny("mtp2", tmp_path / "hf"))
    with one_process_group():
        model = build_reference_model(
            megatron_fields(config) | {"mtp_use_repeated_layer": True},
            vocab_size=256,
            hybrid_layer_pattern=megatron_pattern(config),
        )
        lines = sharded_lines(model)
    assert len(model.mtp.layers) == 1
    assert not [line for line in lines if line.startswith("mtp.layers.1.")]


def test_every_parameter_takes_part_in_training(tmp_path: Path) -> None:
    state, config = read_hf(write_tiny(VARIANTS["mtp1"].but(dtype="float32"), tmp_path / "hf"))
    tokens = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(5))
    with one_process_group(), cpu_adapters():
        model = build_for(config).train()
        fill_model(model, state, config)
        model(tokens, torch.arange(32).expand_as(tokens), None, labels=tokens).mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


EMBEDDING, OUTPUT, STATE = (
    "embedding.word_embeddings.weight",
    "output_layer.weight",
    "output_layer._extra_state/shard_0_1",
)


@pytest.mark.parametrize(
    ("variant", "last"),
    [
        ("dense", ([OUTPUT], [STATE, OUTPUT])),
        ("mtp2", ([EMBEDDING, OUTPUT], [EMBEDDING, STATE, OUTPUT])),
        ("tied", ([OUTPUT], [EMBEDDING, STATE])),
    ],
)
def test_the_vocabulary_on_the_last_stage(tmp_path: Path, variant: str, last: tuple[list[str], list[str]]) -> None:
    folder = write_tiny(variant, tmp_path / "hf")
    stages = spawn(keys_of_stage, 2, str(folder), sizes=ParallelSizes(pp=2))
    assert stages == [([EMBEDDING], [EMBEDDING]), last]


def test_tied_with_mtp_over_stages_is_refused_by_megatron(tmp_path: Path) -> None:
    model = VARIANTS["tied"].but(mtp_pattern="*-", mtp_blocks=1)
    folder = write_tiny(model, tmp_path / "hf")
    with pytest.raises(RankError, match=r"AssertionError.*output_layer\.weight"):
        spawn(keys_of_stage, 2, str(folder), sizes=ParallelSizes(pp=2))
