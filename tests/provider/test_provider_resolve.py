"""HF config -> fields: every key accounted for, every finding fires where it should and only there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.render import provider_report, render_provider
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import choose_provider, read_provider

TESTS = Path(__file__).parent.parent
SPEC = read_provider("nemotron_h")
MODELS = SPEC.model.metadata.references


def config_of(name: str) -> dict[str, Any]:
    """A published config."""
    return read_config(TESTS / "configs" / f"{name}.json")


def super_with(**changes: Any) -> dict[str, Any]:
    """The config of Super (MoE, latent, MTP) with changes; `...` removes a key."""
    config = {**config_of("nemotron-3-super-120b-a12b"), **changes}
    return {key: value for key, value in config.items() if value is not ...}


def codes(config: dict[str, Any], **overrides: Any) -> set[str]:
    """Codes of what resolving finds."""
    try:
        resolve_provider(SPEC, config, overrides)
    except SpecError as error:
        return {d.code for d in error.diagnostics}
    return set()


@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_a_published_config_has_a_place(name: str) -> None:
    resolved = resolve_provider(SPEC, config_of(name))
    used = {key for field in resolved.fields.values() for key in field.keys}
    derived = {"num_hidden_layers"}
    for key, value in config_of(name).items():
        assert key in used | derived or key in resolved.unused or value is None, key
    assert not used & set(resolved.unused)


def test_every_key_that_transformers_saves_has_a_place() -> None:
    from transformers import NemotronHConfig

    config = NemotronHConfig()
    for saved in (config.to_dict(), json.loads(config.to_json_string(use_diff=False))):
        assert set(saved) <= SPEC.known_keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_config_that_transformers_saved_again_gives_the_same_fields(name: str) -> None:
    from transformers import NemotronHConfig

    before = resolve_provider(SPEC, config_of(name)).values()
    saved = NemotronHConfig.from_dict(config_of(name)).to_dict()
    after = resolve_provider(SPEC, saved).values()
    # A config without `dtype` means float32 to transformers, which then leaves the key null.
    assert after == before


def test_published_values() -> None:
    fields = resolve_provider(SPEC, config_of("nemotron-3-super-120b-a12b")).values()
    assert fields["moe_latent_size"] == 1024
    assert fields["num_moe_experts"] == 512
    assert fields["activation_func"] == "squared_relu"
    assert fields["hybrid_layer_pattern"].startswith("MEMEMEM*")
    assert fields["num_layers"] == 88
    assert fields["mtp_num_layers"] == 1
    assert fields["mtp_use_repeated_layer"] is False
    assert fields["params_dtype"] == "bfloat16"
    assert fields["bf16"] is True
    assert fields["moe_shared_expert_overlap"] is False
    dense = resolve_provider(SPEC, config_of("nemotron-h-56b")).values()
    assert dense["kv_channels"] == 128
    assert "num_moe_experts" not in dense
    assert "mtp_hybrid_override_pattern" not in dense


def test_both_vocabularies_and_strings_mean_the_same() -> None:
    names = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    newer = {**names, "M": "linear_attention", "*": "full_attention"}
    pattern = config_of("nemotron-3-super-120b-a12b")["hybrid_override_pattern"]
    expected = resolve_provider(SPEC, super_with()).values()
    for table in (names, newer):
        listed = [table[symbol] for symbol in pattern]
        config = super_with(hybrid_override_pattern=..., layers_block_type=listed, num_hidden_layers=...)
        assert resolve_provider(SPEC, config).values() == expected


def test_origins() -> None:
    resolved = resolve_provider(SPEC, super_with(), {"num_moe_experts": 64, "params_dtype": "float16"})
    origin = {name: field.origin for name, field in resolved.fields.items()}
    assert origin["hidden_size"] == "hf"
    assert resolved.fields["layernorm_epsilon"].keys == ("layer_norm_epsilon", "norm_eps")
    assert origin["num_moe_experts"] == "override"
    assert origin["moe_router_dtype"] == "constant"
    assert resolved.fields["moe_router_dtype"].group == "moe"
    assert "fp32" in resolved.fields["moe_router_dtype"].reason
    assert origin["tensor_model_parallel_size"] == "default"
    assert origin["moe_aux_loss_coeff"] == "default"
    assert origin["num_layers"] == "derived"
    assert resolved.values()["fp16"] is True  # follows from the override
    span = resolved.fields["hidden_size"].span
    assert span is not None
    assert "hidden_size" in Path(span.path).read_text(encoding="utf-8").splitlines()[span.line - 1]


def test_unknown_key_names_key_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(super_with(moe_latent_sise=3), indent=1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        provider_report("nemotron_h", path)
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS420"
    assert "moe_latent_sise" in finding.message
    assert str(path) in finding.message
    assert finding.hint == "moe_latent_size"
    assert finding.span is not None
    assert finding.span.path.endswith("nemotron_h.yaml")
    assert finding.help is not None
    assert f"nemotron_h.yaml:{finding.span.line}" in finding.help
    (note,) = finding.notes
    assert note.span is not None
    assert "moe_latent_sise" in path.read_text(encoding="utf-8").splitlines()[note.span.line - 1]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"surprise": None}, "MS420"),
        ({"attention_head_dim": 64}, "MS421"),
        ({"layers_block_type": ["mamba"]}, "MS421"),
        ({"rms_norm_eps": 1e-6}, "MS421"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "MS421"),
        ({"hidden_size": ...}, "MS422"),
        ({"hidden_size": None}, "MS422"),
        ({"mtp_hybrid_override_pattern": ...}, "MS422"),
        ({"hybrid_override_pattern": ...}, "MS422"),
        ({"num_attention_heads": 30, "head_dim": ...}, "MS422"),
        ({"mlp_hidden_act": "relu3"}, "MS423"),
        ({"dtype": "int7"}, "MS423"),
        ({"hybrid_override_pattern": "MEX"}, "MS423"),
        ({"hybrid_override_pattern": ["mamba"]}, "MS423"),
        ({"mtp_hybrid_override_pattern": "*|E"}, "MS423"),
        ({"conv_kernel": 5}, "MS424"),
        ({"norm_topk_prob": False}, "MS424"),
        ({"use_bias": True}, "MS424"),
        ({"mamba_hidden_act": "gelu"}, "MS424"),
        ({"time_step_limit": [0.001, 0.1]}, "MS424"),
        ({"sliding_window": 4096}, "MS424"),
        ({"num_hidden_layers": 87}, "MS425"),
        ({"attention_bias": True}, "MS426"),
    ],
)
def test_each_finding_fires(changes: dict[str, Any], code: str) -> None:
    assert codes(super_with(**changes)) == {code}


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_head_dim": 128},
        {"attention_head_dim": None},
        {"rms_norm_eps": 1e-5},
        {"torch_dtype": "torch.bfloat16"},
        {"num_hidden_layers": ...},
        {"num_hidden_layers": None},
        {"num_experts": None, "num_local_experts": 512},  # null hides nothing
        {"time_step_limit": [0.0, 1e308]},
        {"time_step_limit": [0, float("inf")]},
        {"attention_bias": True, "mlp_bias": True},
        {"mtp_hybrid_override_pattern": ..., "num_nextn_predict_layers": 0},
        {"n_group": None, "topk_group": None},
    ],
)
def test_no_finding(changes: dict[str, Any]) -> None:
    assert codes(super_with(**changes)) == set()


def test_keys_of_a_group_that_does_not_apply_are_not_judged() -> None:
    config = {**config_of("nemotron-h-8b"), "norm_topk_prob": False, "n_routed_experts": 8}
    resolved = resolve_provider(SPEC, config)
    assert "mixture-of-experts" in resolved.unused["n_routed_experts"]
    assert "norm_topk_prob" in resolved.unused


def test_all_findings_of_a_run_are_collected() -> None:
    assert codes(super_with(surprise=1, hidden_size=..., conv_kernel=5, attention_head_dim=1)) == {
        "MS420", "MS421", "MS422", "MS424",
    }  # fmt: skip


def test_overrides() -> None:
    assert codes(super_with(), hiden_size=3) == {"MS427"}
    assert codes(super_with(), hidden_size=3) == set()
    # A pattern of another length: the layer count follows, the config's own is not held against it.
    fields = resolve_provider(SPEC, super_with(), {"hybrid_layer_pattern": "M*"}).values()
    assert fields["num_layers"] == 2
    assert fields["num_moe_experts"] == 512  # the MTP block still has experts
    # Megatron-Core's own fields can be set although the spec does not name them.
    fields = resolve_provider(SPEC, super_with(), {"recompute_granularity": "full"}).values()
    assert fields["recompute_granularity"] == "full"


def test_spec_is_found_by_architecture() -> None:
    assert choose_provider(super_with(), where="x").name == "nemotron_h"
    with pytest.raises(SpecError, match="MS409"):
        choose_provider({"architectures": ["Llama"]}, where="x")


def test_reports() -> None:
    path = TESTS / "configs" / "nemotron-3-super-120b-a12b.json"
    text = provider_report(None, path, ["mtp_num_layers=2", "mtp_hybrid_override_pattern=*E", "hf_model_id=a/b"])
    assert '"a/b"' in text
    assert "override" in text
    data = json.loads(provider_report("nemotron_h", path, fmt="json"))
    assert data["format_version"] == "1.1"
    assert data["fields"]["hidden_size"]["keys"] == ["hidden_size"]
    assert "use_cache" in data["not_carried"]
    assert "| hidden_size | 4096 |" in provider_report("nemotron_h", path, fmt="md")
    with pytest.raises(SpecError, match="MS427"):
        provider_report("nemotron_h", path, ["hidden_size"])


def test_golden_table() -> None:
    """`python tests/provider/test_provider_resolve.py` writes the file anew."""
    assert golden_text() == GOLDEN.read_text(encoding="utf-8")


def test_torch_is_not_imported() -> None:
    path = TESTS / "configs" / "nemotron-3-super-120b-a12b.json"
    code = (
        "import sys; from mapspec.provider.provider import Provider; import mapspec.provider.run_config as r\n"
        f"p = Provider.from_hf({str(path)!r}); p.hidden_dropout = 0.1; p.finalize(); r.run_config_yaml(p)\n"
        "sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GOLDEN = Path(__file__).parent / "golden" / "nemotron-3-super-120b-a12b.txt"


def golden_text() -> str:
    """The resolved provider of Super without line numbers, which change with every edit of the spec."""
    resolved = resolve_provider(SPEC, config_of("nemotron-3-super-120b-a12b"), where="nemotron-3-super-120b-a12b.json")
    data = json.loads(render_provider(resolved, "json"))
    lines = [
        f"{name} = {json.dumps(field['value'])} | {field['origin']}"
        + (f" when {field['when']}" if field["when"] else "")
        + f" | {', '.join(field['keys']) or field['reason']}"
        for name, field in data["fields"].items()
    ]
    return "\n".join([*lines, *(f"not carried: {key} | {why}" for key, why in data["not_carried"].items()), ""])


if __name__ == "__main__":
    GOLDEN.write_text(golden_text(), encoding="utf-8")
