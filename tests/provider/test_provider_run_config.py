"""run_config.yaml as Megatron-Bridge reads it, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mapspec.errors import SpecError
from mapspec.provider.provider import Provider
from mapspec.provider.run_config import provider_fields_from_run_config, run_config_yaml
from mapspec.provider.spec import read_provider

CONFIGS = Path(__file__).parent.parent / "configs"
SPEC = read_provider("nemotron_h")
HYBRID = "megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider"
MAMBA = "megatron.bridge.models.mamba.mamba_provider.MambaModelProvider"


def provider_of(name: str, **overrides: Any) -> Provider:
    """A provider of a published model."""
    return Provider.from_hf(CONFIGS / f"{name}.json", SPEC, **overrides)


def parsed(text: str) -> dict[str, Any]:
    """Plain data of YAML text."""
    data: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return data


def test_form() -> None:
    model = parsed(run_config_yaml(provider_of("nemotron-3-super-120b-a12b")))["model"]
    assert model["_target_"] == HYBRID
    assert model["activation_func"] == {"_call_": False, "_target_": "megatron.core.activations.squared_relu"}
    assert model["params_dtype"] == {"_call_": False, "_target_": "torch.bfloat16"}
    assert model["attention_backend"] == {
        "_args_": [1], "_call_": True, "_target_": "megatron.core.transformer.enums.AttnBackend",
    }  # fmt: skip
    assert model["hybrid_layer_pattern"].endswith("/*E")
    assert model["mamba_chunk_size"] == 128
    assert model["num_layers"] == 88
    assert not {"backend", "norms", "hybrid_override_pattern"} & set(model)


@pytest.mark.parametrize(
    ("version", "target", "pattern", "chunk"),
    [
        ("0.3.1", MAMBA, "hybrid_override_pattern", False),
        ("0.5.1", MAMBA, "hybrid_layer_pattern", False),
        ("0.6", HYBRID, "hybrid_layer_pattern", True),
        ("0.7.0rc0", HYBRID, "hybrid_layer_pattern", True),
    ],
)
def test_versions(version: str, target: str, pattern: str, chunk: bool) -> None:
    model = parsed(run_config_yaml(provider_of("nemotron-h-8b").resolved, megatron_bridge=version))["model"]
    assert model["_target_"] == target
    assert pattern in model
    assert len({"hybrid_override_pattern", "hybrid_layer_pattern"} & set(model)) == 1
    assert ("mamba_chunk_size" in model) == chunk


def test_too_old() -> None:
    with pytest.raises(SpecError, match=r"MS445 .*Megatron-Bridge 0\.2"):
        run_config_yaml(provider_of("nemotron-h-8b"), megatron_bridge="0.2.1")


def test_the_provider_is_left_as_it_is() -> None:
    provider = provider_of("nemotron-h-8b")
    run_config_yaml(provider)
    provider.hidden_size = 3
    provider.finalize()
    assert "hidden_size: 3" in run_config_yaml(provider)


@pytest.mark.parametrize("version", ["0.3", "0.5", "0.6"])
@pytest.mark.parametrize("name", SPEC.model.metadata.references)
def test_a_config_comes_back_without_a_reference(name: str, version: str) -> None:
    from mapspec.provider.export import to_hf_config

    provider = provider_of(name)
    fields = provider_fields_from_run_config(SPEC, parsed(run_config_yaml(provider, megatron_bridge=version)))
    expected = provider.to_hf_config("native", reference=False)
    lost = {"0.3": {"chunk_size", "num_nextn_predict_layers", "mtp_layers_block_type"}, "0.5": {"chunk_size"}}
    got = to_hf_config(SPEC, fields, dialect="native")
    for key in lost.get(version, ()):
        expected.pop(key, None)
        got.pop(key, None)
    assert got == expected


def test_other_spellings_are_read() -> None:
    model = {
        "_target_": "megatron.bridge.models.nemotronh.nemotron_h_provider.NemotronHModelProvider8B",
        "hybrid_layer_pattern": None,
        "hybrid_override_pattern": "M*",
        "activation_func": {"_target_": "torch._C._nn.gelu", "_call_": False},
        "attention_backend": {"_target_": "megatron.core.transformer.enums.AttnBackend", "_call_": True, "_args_": [5]},
        "init_method": {"_target_": "somewhere.evil", "_partial_": True, "_args_": []},
        "params_dtype": {"_target_": "torch.float16", "_call_": False},
    }
    assert provider_fields_from_run_config(SPEC, {"model": model}) == {
        "hybrid_layer_pattern": "M*", "activation_func": "gelu",
        "attention_backend": "auto", "params_dtype": "float16",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("run_config", "said"),
    [
        ({}, "no section `model`"),
        ({"model": {"hidden_size": 1}}, "no section `model`"),
        ({"model": {"_target_": "os.system"}}, "`os.system`"),
        ({"model": {"_target_": HYBRID, "activation_func": {"_target_": "os.system", "_call_": True}}}, "`os.system`"),
        ({"model": {"_target_": HYBRID, "hidden_size": {"_target_": "builtins.eval"}}}, "`builtins.eval`"),
        ({"model": {"_target_": HYBRID, "params_dtype": {"_target_": "torch.int4"}}}, "`torch.int4`"),
    ],
)
def test_nothing_is_executed(run_config: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        provider_fields_from_run_config(SPEC, run_config)
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS445"
    assert said in finding.message


def test_objects_without_a_path_are_refused() -> None:
    with pytest.raises(SpecError, match="MS445 `grad_scale_func`"):
        run_config_yaml(provider_of("nemotron-h-8b", grad_scale_func=lambda loss: loss))
