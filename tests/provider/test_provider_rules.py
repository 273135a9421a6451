"""What `finalize()` derives and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mapspec.errors import SpecError
from mapspec.provider.pattern import parse_pattern, split_fields
from mapspec.provider.provider import Provider
from mapspec.provider.spec import read_provider

CONFIGS = Path(__file__).parent.parent / "configs"
SPEC = read_provider("nemotron_h")
TP, PP, EP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"


def finalized(name: str = "nemotron-3-super-120b-a12b", **overrides: Any) -> Provider:
    """A finalized provider."""
    provider = Provider.from_hf(CONFIGS / f"{name}.json", SPEC, **overrides)
    provider.finalize()
    return provider


def findings(name: str = "nemotron-3-super-120b-a12b", **overrides: Any) -> list[tuple[str, str]]:
    """Code and message with help of every finding."""
    with pytest.raises(SpecError) as caught:
        finalized(name, **overrides)
    return [(d.code, f"{d.message} -- {d.help}") for d in caught.value.diagnostics]


def test_derived_fields() -> None:
    provider = finalized()
    assert provider.num_layers == 88
    assert provider.hybrid_layer_pattern.endswith("E/*E")
    assert provider.mtp_num_layers == 1
    assert provider.expert_tensor_parallel_size == 1
    assert finalized("nemotron-h-8b").mtp_num_layers is None
    assert finalized(**{TP: 4}).expert_tensor_parallel_size == 4
    both = finalized(**{TP: 2, EP: 8}, sequence_parallel=True)
    assert both.expert_tensor_parallel_size == 1
    assert both.sequence_parallel is True
    assert finalized(sequence_parallel=True).sequence_parallel is False
    assert finalized(**{PP: 2}).fields["pipeline_dtype"] == "bfloat16"
    assert finalized().fields["pipeline_dtype"] is None
    assert finalized(restore_modelopt_state=True).norms == "separate"


def test_vocabulary() -> None:
    assert finalized().padded_vocab_size == 131072
    assert finalized(vocab_size=131073, should_pad_vocab=True).padded_vocab_size == 131200
    assert finalized(vocab_size=131073, should_pad_vocab=True, **{TP: 2}).padded_vocab_size == 131328
    ((code, text),) = findings(vocab_size=251, **{TP: 2})
    assert code == "MS430"
    assert "`vocab_size` is 251" in text
    assert "should_pad_vocab" in text


@pytest.mark.parametrize(
    ("overrides", "number", "works"),
    [
        ({TP: 8, "num_attention_heads": 36}, "`num_attention_heads` is 36", "1, 2, 3, 4, 6, 9"),
        ({TP: 16, "mamba_num_groups": 8}, "`mamba_num_groups` is 8", "1, 2, 4, 8"),
        ({TP: 8, "mamba_num_heads": 12, "mamba_num_groups": 4}, "`mamba_num_heads` is 12", "1, 2, 3, 4, 6, 12"),
        ({EP: 3}, "`num_moe_experts` is 512", "1, 2, 4, 8"),
        ({"expert_tensor_parallel_size": 5}, "`moe_ffn_hidden_size` is 2688", "1, 2, 3, 4, 6, 7"),
        ({TP: 2, "moe_shared_expert_intermediate_size": 5375}, "`moe_shared_expert_intermediate_size` is 5375", "1, 5"),
        ({PP: 3}, "`pipeline_model_parallel_size` is 3", "1, 2, 4, 8, 11, 22, 44, 88"),
        ({TP: 4, "num_query_groups": 6, "num_attention_heads": 12}, "`num_query_groups` is 6", "1, 2, 3, 6"),
        ({"num_query_groups": 5}, "`num_query_groups` 5 does not divide `num_attention_heads` 32", ""),
        ({"mamba_num_groups": 3}, "`mamba_num_groups` 3 does not divide `mamba_num_heads` 128", ""),
        ({"moe_router_num_groups": 3}, "`moe_router_num_groups` 3 does not divide `num_moe_experts` 512", "1, 2, 4"),
    ],
)
def test_sizes_that_do_not_divide(overrides: dict[str, int], number: str, works: str) -> None:
    found = [text for code, text in findings(**overrides) if code == "MS430" and number in text]
    assert found, findings(**overrides)
    assert works in found[0]


@pytest.mark.parametrize(
    "overrides",
    [
        {TP: 8},  # 2 query groups on 8 ranks
        {TP: 2, EP: 8, PP: 4},
        {EP: 64},
        {"moe_router_num_groups": 8, "moe_router_group_topk": 4},
        {PP: 2, "num_layers_in_first_pipeline_stage": 40},
        {PP: 3, "num_layers_in_first_pipeline_stage": 20, "num_layers_in_last_pipeline_stage": 20},
        {PP: 3, "hybrid_layer_pattern": "ME|M*|EEE"},
    ],
)
def test_sizes_that_divide(overrides: dict[str, Any]) -> None:
    finalized(**overrides)


def test_dense_models_ask_nothing_of_experts() -> None:
    finalized("nemotron-h-8b", expert_tensor_parallel_size=7)
    # Only what the pattern has is cut: without dense layers their width does not matter.
    finalized(**{TP: 2}, ffn_hidden_size=2687)


@pytest.mark.parametrize(
    ("overrides", "code", "names"),
    [
        ({"virtual_pipeline_model_parallel_size": 2}, "MS434", ("virtual_pipeline_model_parallel_size",)),
        ({"hybrid_layer_pattern": "M|E"}, "MS433", ("hybrid_layer_pattern", "pipeline_model_parallel_size")),
        ({PP: 3, "hybrid_layer_pattern": "M|E"}, "MS433", ("2 stages", "is 3")),
        ({PP: 2, "hybrid_layer_pattern": "M|E", "num_layers_in_first_pipeline_stage": 1}, "MS432",
         ("num_layers_in_first_pipeline_stage", "hybrid_layer_pattern")),
        ({"hybrid_layer_pattern": "MGE"}, "MS433", ("symbol `G` at position 1", "gated delta net")),
        ({"hybrid_layer_pattern": "ME/*E/*M"}, "MS433", ("block 2", "`*M`")),
        ({"hybrid_layer_pattern": "ME/*|E"}, "MS433", ("last stage",)),
        ({"hybrid_layer_pattern": "ME/MM"}, "MS432", ("hybrid_layer_pattern", "mtp_hybrid_override_pattern")),
        ({"hybrid_layer_pattern": "ME/*E/*E"}, "MS432", ("mtp_num_layers", "hybrid_layer_pattern")),
        ({"hybrid_layer_pattern": "/"}, "MS433", ("no layers",)),
        ({"num_layers": 87}, "MS432", ("num_layers", "hybrid_layer_pattern")),
        ({"hybrid_override_pattern": "ME", "hybrid_layer_pattern": "ME"}, "MS432",
         ("hybrid_override_pattern", "hybrid_layer_pattern")),
        ({"moe_token_dispatcher_type": "allgather", "moe_shared_expert_overlap": True}, "MS432",
         ("moe_shared_expert_overlap", "moe_token_dispatcher_type")),
        ({"moe_shared_expert_overlap": True, "recompute_modules": ["shared_experts"]}, "MS432",
         ("moe_shared_expert_overlap", "recompute_modules")),
        ({"fp16": True}, "MS432", ("bf16", "fp16")),
        ({"fp8": "hybrid"}, "MS432", ("first_last_layers_bf16", "fp8_recipe")),
        ({"moe_router_group_topk": 2}, "MS432", ("moe_router_group_topk", "moe_router_num_groups")),
        ({"moe_router_topk": 513}, "MS432", ("moe_router_topk", "num_moe_experts")),
        ({"norms": "fuzed"}, "MS444", ("norms", "separate")),
        ({"backend": "cpu"}, "MS444", ("backend", "reference")),
        ({"mamba_chunk_size": 0}, "MS431", ("mamba_chunk_size",)),
        ({TP: 0}, "MS431", (TP,)),
        ({"hidden_size": "big"}, "MS431", ("hidden_size", "'big'")),
        ({"num_moe_experts": None}, "MS431", ("num_moe_experts",)),
    ],
)  # fmt: skip
def test_forbidden_combinations_name_both_fields(overrides: dict[str, Any], code: str, names: tuple[str, ...]) -> None:
    found = [text for c, text in findings(**overrides) if c == code]
    assert found, findings(**overrides)
    for name in names:
        assert name in found[0]


def test_expert_parallelism_needs_experts() -> None:
    ((code, text),) = findings("nemotron-h-8b", **{EP: 2})
    assert code == "MS432"
    assert EP in text
    assert "hybrid_layer_pattern" in text


def test_former_pattern_field_is_moved() -> None:
    provider = finalized("nemotron-h-8b", hybrid_override_pattern="M*-")
    assert provider.hybrid_layer_pattern == "M*-"
    assert provider.num_layers == 3
    before = Provider.from_hf(CONFIGS / "nemotron-h-8b.json", hybrid_override_pattern="M*-")
    assert before.to_hf_config()["hybrid_override_pattern"] == "M*-"


def test_multi_token_prediction() -> None:
    pattern = finalized("nemotron-h-8b").hybrid_layer_pattern
    unified = finalized("nemotron-h-8b", hybrid_layer_pattern=f"{pattern}/*-/*-")
    assert (unified.mtp_num_layers, unified.mtp_hybrid_override_pattern) == (2, "*-")
    repeated = finalized(mtp_num_layers=3, mtp_use_repeated_layer=True)
    assert repeated.hybrid_layer_pattern.endswith("/*E/*E/*E")
    assert finalized(hybrid_layer_pattern="ME/*E", mtp_num_layers=2, mtp_use_repeated_layer=True).mtp_num_layers == 2


def test_patterns_come_apart_and_together() -> None:
    for text in ("M", "M*|-E", "M|*/E", "M*-E/*E/*E"):
        assert str(parse_pattern(text)) == text
    assert str(parse_pattern("M*/")) == "M*"
    assert split_fields({"hybrid_layer_pattern": "M|*/E/E"}) == {
        "hybrid_layer_pattern": "M*", "mtp_hybrid_override_pattern": "E", "mtp_num_layers": 2,
    }  # fmt: skip
