"""Fields -> HF config is the inverse of HF config -> fields, in every dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.export import to_hf_config
from mapspec.provider.provider import Provider
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import read_provider

CONFIGS = Path(__file__).parent.parent / "configs"
SPEC = read_provider("nemotron_h")
MODELS = SPEC.model.metadata.references
DIALECTS = tuple(SPEC.model.dialects)


def config_of(name: str) -> dict[str, Any]:
    """A published config."""
    return read_config(CONFIGS / f"{name}.json")


def fields_of(config: dict[str, Any]) -> dict[str, Any]:
    """Its fields."""
    return resolve_provider(SPEC, config).values()


@pytest.mark.parametrize("name", MODELS)
def test_with_its_reference_a_config_comes_back_unchanged(name: str) -> None:
    config = config_of(name)
    back = to_hf_config(SPEC, fields_of(config), reference=config)
    assert json.dumps(back) == json.dumps(config)  # values, their types, and the order of keys
    provider = Provider.from_hf(config, SPEC)
    provider.finalize()
    assert json.dumps(provider.to_hf_config()) == json.dumps(config)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MODELS)
def test_without_a_reference_the_fields_come_back(name: str, dialect: str) -> None:
    from transformers import NemotronHConfig

    fields = fields_of(config_of(name))
    config = to_hf_config(SPEC, fields, dialect=dialect)
    assert fields_of(config) == fields
    assert ("hybrid_override_pattern" in config) == (dialect == "string")
    read = NemotronHConfig.from_dict(dict(config))
    assert read.hybrid_override_pattern == fields["hybrid_layer_pattern"]
    assert read.moe_latent_size == fields.get("moe_latent_size")
    assert read.mlp_hidden_act == "relu2"
    assert read.architectures == ["NemotronHForCausalLM"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_reference_is_translated_to_another_dialect(name: str, dialect: str) -> None:
    config = config_of(name)
    there = to_hf_config(SPEC, fields_of(config), dialect=dialect, reference=config)
    assert fields_of(there) == fields_of(config)
    names = there.get("layers_block_type", [])
    assert ("linear_attention" in names) == (dialect == "native")
    assert ("mamba" in names) == (dialect == "list")
    kept = {key: value for key, value in config.items() if key in SPEC.waived}
    assert {key: there.get(key) for key in kept} == kept


def test_changed_fields_are_written_in_the_words_of_the_reference() -> None:
    config = config_of("nemotron-3-ultra-550b-a55b")
    fields = {**fields_of(config), "hybrid_layer_pattern": "M*E-", "moe_latent_size": None, "seq_length": 4096}
    back = to_hf_config(SPEC, fields, reference=config)
    assert back["layers_block_type"] == ["mamba", "attention", "moe", "mlp"]
    assert back["moe_latent_size"] is None
    assert back["max_position_embeddings"] == 4096
    assert "num_hidden_layers" not in back
    assert list(back) == list(config)
    short = config_of("nemotron-h-56b")
    assert to_hf_config(SPEC, {**fields_of(short), "kv_channels": 64}, reference=short)["attention_head_dim"] == 64
    half = to_hf_config(SPEC, {**fields_of(short), "params_dtype": "float16"}, reference=short)
    assert half["torch_dtype"] == "float16"


def test_what_a_reference_lacks_is_added_only_where_it_differs() -> None:
    config = config_of("nemotron-h-8b")
    fields = fields_of(config)
    assert to_hf_config(SPEC, fields, reference=config) == config
    back = to_hf_config(SPEC, {**fields, "layernorm_epsilon": 1e-6}, reference=config)
    assert back == {**config, "layer_norm_epsilon": 1e-6}


def test_stored_blocks_are_counted_not_training_depth() -> None:
    config = config_of("nemotron-3-super-120b-a12b")
    repeated = Provider.from_hf(config, SPEC, mtp_num_layers=2, mtp_use_repeated_layer=True)
    repeated.finalize()
    assert repeated.to_hf_config() == config
    assert repeated.to_hf_config(reference=False)["num_nextn_predict_layers"] == 1
    two = Provider.from_hf(config, SPEC, mtp_num_layers=2)
    two.finalize()
    assert two.hybrid_layer_pattern.endswith("/*E/*E")
    assert two.to_hf_config()["num_nextn_predict_layers"] == 2
    # A config that says itself that its block is repeated keeps its own count.
    own = {**config, "num_nextn_predict_layers": 2, "mtp_use_repeated_layer": True}
    assert Provider.from_hf(own, SPEC).to_hf_config() == own


def test_stage_borders_are_not_written() -> None:
    provider = Provider.from_hf(config_of("nemotron-h-8b"), SPEC, pipeline_model_parallel_size=2)
    pattern = provider.hybrid_layer_pattern
    provider.hybrid_layer_pattern = f"{pattern[:20]}|{pattern[20:]}"
    provider.finalize()
    assert provider.to_hf_config() == config_of("nemotron-h-8b")


def test_groups_are_written_as_modelling_code_needs_them() -> None:
    fields = fields_of(config_of("nemotron-3-super-120b-a12b"))
    config = to_hf_config(SPEC, {**fields, "moe_router_num_groups": None, "moe_router_group_topk": None})
    assert (config["n_group"], config["topk_group"]) == (1, 1)


def test_quantization_is_left_out() -> None:
    config = {**config_of("nemotron-h-8b"), "quantization_config": {"quant_method": "modelopt"}}
    assert to_hf_config(SPEC, fields_of(config), reference=config) == config_of("nemotron-h-8b")


@pytest.mark.parametrize(
    ("changes", "dialect"),
    [
        ({}, "strings"),
        ({"hidden_size": ...}, None),
        ({"activation_func": "softplus"}, None),
        ({"params_dtype": "int8"}, None),
    ],
)
def test_what_cannot_be_written_is_an_error(changes: dict[str, Any], dialect: str | None) -> None:
    fields = {k: v for k, v in {**fields_of(config_of("nemotron-h-8b")), **changes}.items() if v is not ...}
    with pytest.raises(SpecError, match="MS446"):
        to_hf_config(SPEC, fields, dialect=dialect)


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Overrides that make another model of the family."""
    size = st.integers(1, 64)
    sizes = "hidden_size ffn_hidden_size kv_channels vocab_size mamba_num_heads mamba_chunk_size seq_length"
    out: dict[str, Any] = {name: draw(size) for name in sizes.split()}
    out["hybrid_layer_pattern"] = draw(st.text("M*-E", min_size=1, max_size=12))
    out["params_dtype"] = draw(st.sampled_from(["bfloat16", "float16", "float32"]))
    out["activation_func"] = draw(st.sampled_from(["squared_relu", "silu", "gelu", "fast_gelu"]))
    out["share_embeddings_and_output_weights"] = draw(st.booleans())
    out["add_qkv_bias"] = out["add_bias_linear"] = draw(st.booleans())
    out["layernorm_epsilon"] = draw(st.floats(1e-8, 1e-3))
    out["mtp_num_layers"] = draw(st.integers(0, 3))
    if out["mtp_num_layers"]:
        out["mtp_hybrid_override_pattern"] = draw(st.text("M*-E", min_size=1, max_size=4))
    if "E" in out["hybrid_layer_pattern"] + out.get("mtp_hybrid_override_pattern", ""):
        sizes = "num_moe_experts moe_router_topk moe_ffn_hidden_size moe_shared_expert_intermediate_size"
        out |= {name: draw(size) for name in sizes.split()}
        out["moe_latent_size"] = draw(st.none() | size)
    return out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=models(), dialect=st.sampled_from(DIALECTS), base=st.sampled_from(MODELS), with_reference=st.booleans())
def test_any_model_comes_back(model: dict[str, Any], dialect: str, base: str, with_reference: bool) -> None:
    reference = config_of(base)
    fields = resolve_provider(SPEC, reference, model).values()
    config = to_hf_config(SPEC, fields, dialect=dialect, reference=reference if with_reference else None)
    back = fields_of(config)
    written = {name for name, entry in SPEC.entries.items() if entry.section == "fields"}
    assert {n: v for n, v in back.items() if n in written} == {n: v for n, v in fields.items() if n in written}
