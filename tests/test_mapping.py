"""The transforms against formulas written out independently in numpy, and as exact inverses of each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapspec.bind import Choices
from mapspec.errors import PlanError, SpecError
from mapspec.link import link_spec
from mapspec.mapping import CompiledMapping, compile_mapping
from mapspec.ranks import Shard, local_name, local_shape, owns

LINKED = link_spec("nemotron_h")


def config_of(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "hidden_size": 8, "hybrid_override_pattern": "M*E-", "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 4, "intermediate_size": 16, "vocab_size": 24, "mamba_num_heads": 8, "mamba_head_dim": 2,
        "n_groups": 8, "ssm_state_size": 3, "conv_kernel": 4, "n_routed_experts": 4, "moe_intermediate_size": 8,
        "moe_shared_expert_intermediate_size": 16, "use_bias": True, "attention_bias": True, "mlp_bias": True,
    }  # fmt: skip
    return base | changes


def random_hf(mapping: CompiledMapping, dtype: str = "float32") -> dict[str, Any]:
    """Values that occur once in the whole checkpoint, so that no two elements can be mistaken for each other."""
    out, start = {}, 0
    for name, decl in mapping.table.inventory("hf").items():
        values = np.arange(start, start + decl.numel, dtype=np.uint32)
        start += decl.numel
        out[name] = values.reshape(decl.shape) if dtype == "uint32" else values.astype(dtype).reshape(decl.shape)
    return out


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    per_group=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([8, 16]),
    tp=st.sampled_from([1, 2, 4, 8]),
    rank=st.integers(0, 7),
    hidden=st.integers(1, 5),
)
def test_qkv_is_grouped_and_cut_as_rows(
    groups: int, per_group: int, head_dim: int, tp: int, rank: int, hidden: int
) -> None:
    """behaviour: view q as [groups, per group, head dim], put k and v behind each group, cut rows; also groups < TP."""
    heads = groups * per_group
    config = config_of(
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, hidden_size=hidden,
        hybrid_override_pattern="*",
    )  # fmt: skip
    mapping = compile_mapping(LINKED, config)
    hf = random_hf(mapping)
    stem = "backbone.layers.0.mixer."
    q = hf[stem + "q_proj.weight"].reshape(groups, per_group * head_dim, hidden)
    k = hf[stem + "k_proj.weight"].reshape(groups, head_dim, hidden)
    v = hf[stem + "v_proj.weight"].reshape(groups, head_dim, hidden)
    merged = np.concatenate([q, k, v], axis=1).reshape(-1, hidden)
    rank %= tp
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    got = mapping.hf_to_megatron(name, hf, Shard(rank, tp))
    assert np.array_equal(got, np.split(merged, tp)[rank])
    bias = np.concatenate(
        [hf[f"{stem}{x}_proj.bias"].reshape(groups, -1) for x in "qkv"], axis=1
    ).reshape(-1)  # fmt: skip
    got_bias = mapping.hf_to_megatron(name.replace("weight", "bias"), hf, Shard(rank, tp))
    assert np.array_equal(got_bias, np.split(bias, tp)[rank])


@settings(max_examples=40, deadline=None)
@given(tp=st.sampled_from([1, 2, 4, 8]), rank=st.integers(0, 7), head_dim=st.integers(1, 4), state=st.integers(1, 4))
def test_mamba_is_cut_segment_by_segment(tp: int, rank: int, head_dim: int, state: int) -> None:
    """A rank holds [z_t; x_t; B_t; C_t; dt_t], and of the convolution [x_t; B_t; C_t]."""
    mapping = compile_mapping(LINKED, config_of(mamba_head_dim=head_dim, ssm_state_size=state))
    hf = random_hf(mapping)
    rank %= tp
    inner, groups, heads = 8 * head_dim, 8 * state, 8
    for suffix, sizes in {
        "in_proj.weight": [inner, inner, groups, groups, heads],
        "in_proj.bias": [inner, inner, groups, groups, heads],
        "conv1d.weight": [inner, groups, groups],
        "conv1d.bias": [inner, groups, groups],
    }.items():
        whole = hf[f"backbone.layers.0.mixer.{suffix}"]
        segments = np.split(whole, np.cumsum(sizes)[:-1])
        expected = np.concatenate([np.split(s, tp)[rank] for s in segments])
        name = "decoder.layers.0.mixer." + suffix.replace("conv1d.", "conv1d_")
        assert np.array_equal(mapping.hf_to_megatron(name, hf, Shard(rank, tp)), expected)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_column_row_and_replicated(tp: int) -> None:
    mapping = compile_mapping(LINKED, config_of())
    hf = random_hf(mapping)
    for rank in range(tp):
        for name, source, axis in (
            ("decoder.layers.3.mlp.linear_fc1.weight", "backbone.layers.3.mixer.up_proj.weight", 0),
            ("decoder.layers.3.mlp.linear_fc1.bias", "backbone.layers.3.mixer.up_proj.bias", 0),
            ("decoder.layers.3.mlp.linear_fc2.weight", "backbone.layers.3.mixer.down_proj.weight", 1),
            ("decoder.layers.3.mlp.linear_fc2.bias", "backbone.layers.3.mixer.down_proj.bias", None),
            ("decoder.layers.1.self_attention.linear_proj.weight", "backbone.layers.1.mixer.o_proj.weight", 1),
            ("decoder.layers.0.mixer.out_proj.weight", "backbone.layers.0.mixer.out_proj.weight", 1),
            ("decoder.layers.0.mixer.norm.weight", "backbone.layers.0.mixer.norm.weight", 0),
            ("decoder.layers.2.mlp.router.weight", "backbone.layers.2.mixer.gate.weight", None),
            ("decoder.layers.2.mlp.experts.linear_fc1.weight3", "backbone.layers.2.mixer.experts.3.up_proj.weight", 0),
            ("embedding.word_embeddings.weight", "backbone.embeddings.weight", 0),
        ):
            expected = hf[source] if axis is None else np.split(hf[source], tp, axis)[rank]
            assert np.array_equal(mapping.hf_to_megatron(name, hf, Shard(rank, tp)), expected), name


FLAVOURS = st.fixed_dictionaries(
    {
        "norms": st.sampled_from(["fused", "separate"]),
        "conv": st.sampled_from(["underscore", "dotted"]),
        "experts": st.sampled_from(["grouped", "sequential"]),
        "names": st.sampled_from(["published", "native"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(
    flavours=FLAVOURS, tp=st.sampled_from([1, 2, 4, 8]), etp=st.sampled_from([None, 1, 2]),
    latent=st.sampled_from([0, 5]), groups=st.sampled_from([1, 2, 8]),
    dtype=st.sampled_from(["uint32", "float32", "float16"]),
)  # fmt: skip
def test_the_two_directions_are_inverses(
    flavours: dict[str, str], tp: int, etp: int | None, latent: int, groups: int, dtype: str
) -> None:
    etp = None if etp is None else min(etp, tp)  # experts are cut over some of the ranks that exist
    config = config_of(
        moe_latent_size=latent or None, num_key_value_heads=groups, num_nextn_predict_layers=2,
        mtp_hybrid_override_pattern="M*E-",
    )  # fmt: skip
    mapping = compile_mapping(LINKED, config, Choices(flavours))
    hf = random_hf(mapping, dtype)
    shards = [Shard(rank, tp, etp_rank=rank % etp if etp else None, etp_size=etp) for rank in range(tp)]
    parts = {row.megatron: [mapping.hf_to_megatron(row.megatron, hf, s) for s in shards] for row in mapping}
    back = mapping.megatron_to_hf(parts, shards)
    assert back.keys() == hf.keys()
    for name, values in hf.items():
        assert back[name].dtype == values.dtype
        assert back[name].tobytes() == values.tobytes(), name


def test_torch_tensors_work_alike() -> None:
    torch = pytest.importorskip("torch")
    mapping = compile_mapping(LINKED, config_of())
    hf = {name: torch.from_numpy(values).to(torch.bfloat16) for name, values in random_hf(mapping).items()}
    shards = [Shard(rank, 2) for rank in range(2)]
    parts = {row.megatron: [mapping.hf_to_megatron(row.megatron, hf, s) for s in shards] for row in mapping}
    back = mapping.megatron_to_hf(parts, shards)
    assert all(torch.equal(back[name], values) and back[name].dtype == torch.bfloat16 for name, values in hf.items())


def test_vocabulary_padding_is_zero_and_is_dropped() -> None:
    mapping = compile_mapping(LINKED, config_of(vocab_size=21), Choices(padded_vocab_size=24))
    hf = random_hf(mapping)
    name = "embedding.word_embeddings.weight"
    shards = [Shard(rank, 4) for rank in range(4)]
    parts = [mapping.hf_to_megatron(name, hf, s) for s in shards]
    whole = np.concatenate(parts)
    assert whole.shape == (24, 8)
    assert np.array_equal(whole[:21], hf["backbone.embeddings.weight"])
    assert not whole[21:].any()
    assert np.array_equal(mapping.megatron_to_hf({name: parts}, shards)["backbone.embeddings.weight"], whole[:21])


def test_experts_are_dealt_to_ranks_in_groups() -> None:
    mapping = compile_mapping(LINKED, config_of())
    rows = [
        r.row for r in mapping.resolve(layer=2) if r.row.megatron.endswith(tuple(f"fc1.weight{e}" for e in range(4)))
    ]
    assert len(rows) == 4
    for row in rows:
        expert = row.position["expert"]
        for rank in range(2):
            shard = Shard(ep_rank=rank, ep_size=2)
            assert owns(row, shard) == (expert // 2 == rank)
            if owns(row, shard):
                assert local_name(row, shard) == f"decoder.layers.2.mlp.experts.linear_fc1.weight{expert % 2}"


@pytest.mark.parametrize(
    ("shard", "name", "says"),
    [
        (
            Shard(0, 3),
            "decoder.layers.3.mlp.linear_fc1.weight",
            "tensor parallel size 3 does not divide `ffn`, which has 16",
        ),
        (Shard(0, 3), "decoder.layers.0.mixer.in_proj.weight", "segment `z` of `mamba_in`"),
        (Shard(0, 16), "decoder.layers.0.mixer.A_log", "sizes that work here: 1, 2, 4, 8"),
    ],
)
def test_sizes_that_do_not_fit(shard: Shard, name: str, says: str) -> None:
    mapping = compile_mapping(LINKED, config_of())
    with pytest.raises(SpecError) as caught:
        local_shape(mapping.table.by_megatron[name].forms, shard)
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS408"
    assert says in f"{finding.message} {finding.help}"


def test_expert_parallel_size_that_does_not_fit() -> None:
    mapping = compile_mapping(LINKED, config_of())
    row = next(row for row in mapping if "expert" in row.position)
    with pytest.raises(SpecError, match="expert parallel size 3 does not divide 4 experts"):
        owns(row, Shard(ep_size=3))


def test_what_is_missing_is_said() -> None:
    mapping = compile_mapping(LINKED, config_of(), Choices({"names": "native"}))
    hf = random_hf(mapping)
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    with pytest.raises(PlanError, match=r"needs `model\.layers\.1\.mixer\.q_proj\.weight`"):
        mapping.hf_to_megatron(name, {})
    wrong = hf | {"model.layers.1.mixer.k_proj.weight": np.zeros((3, 8), np.float32)}
    with pytest.raises(PlanError, match=r"has shape \[3, 8\], expected \[8, 8\]"):
        mapping.hf_to_megatron(name, wrong)
    part = mapping.hf_to_megatron(name, hf, Shard(0, 2))
    with pytest.raises(PlanError, match="the given ranks hold"):
        mapping.megatron_to_hf({name: part}, [Shard(0, 2)])
    with pytest.raises(PlanError, match="1 parameters for 2 ranks"):
        mapping.megatron_to_hf({name: [part]}, [Shard(0, 2), Shard(1, 2)])
    with pytest.raises(PlanError, match="has shape"):
        mapping.megatron_to_hf({name: part})
    expert = "decoder.layers.2.mlp.experts.linear_fc1.weight0"
    with pytest.raises(PlanError, match=r"`model\.layers\.2\.mixer\.experts\.up_proj` also needs .* and 2 more"):
        mapping.megatron_to_hf({expert: mapping.hf_to_megatron(expert, hf)})
    with pytest.raises(SpecError, match="MS521"):
        mapping.hf_to_megatron("decoder.layers.9.mlp.linear_fc1.weight", hf)


def test_resolve_from_every_side() -> None:
    mapping = compile_mapping(LINKED, config_of(num_nextn_predict_layers=2, mtp_hybrid_override_pattern="*E"))
    found = mapping.resolve("mtp.layers.3.mixer.experts.2.up_proj.weight")
    assert [f.surface for f in found] == ["hf"]
    assert found[0].row.megatron == "mtp.layers.1.mtp_model_layer.layers.1.mlp.experts.linear_fc1.weight2"
    assert found[0].row.position == {"block": 1, "inner": 1, "flat": 3, "expert": 2}
    stored = "mtp.layers.1.mtp_model_layer.layers.1.mlp.experts.experts.linear_fc1.weight"
    assert len(mapping.resolve(stored)) == 4
    assert len(mapping.resolve(stored, expert=2)) == 1
    assert mapping.resolve("decoder.layers.0.mixer.in_proj.weight.dt")[0].row.rule.key == "mixer.in_proj.weight"
    # `mtp.layers.1.` means MTP block 1 in Megatron and flat layer 1 on the Hugging Face side: pinned names differ.
    (eh,) = mapping.resolve("mtp.layers.1.eh_proj.weight")
    assert eh.surface == "megatron"
    assert eh.row.names("hf") == ("mtp.layers.2.eh_proj.weight",)
    with pytest.raises(SpecError) as caught:
        mapping.resolve("mtp.layers.3.eh_proj.weight")
    assert caught.value.diagnostics[0].code == "MS521"
