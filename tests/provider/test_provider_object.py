"""Provider objects: attributes, versions, and the real HybridModel on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mapspec.errors import CheckpointError, SpecError
from mapspec.provider import build, installed
from mapspec.provider.provider import Provider
from mapspec.provider.spec import read_provider

CONFIGS = Path(__file__).parent.parent / "configs"
SPEC = read_provider("nemotron_h")
SUPER = CONFIGS / "nemotron-3-super-120b-a12b.json"
TINY: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"], "hybrid_override_pattern": "ME*-", "vocab_size": 250,
    "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 12, "n_groups": 4, "ssm_state_size": 8, "chunk_size": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "moe_latent_size": 40,
    "moe_shared_expert_intermediate_size": 80, "routed_scaling_factor": 2.5, "max_position_embeddings": 512,
    "num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": "*E",
}  # fmt: skip


def tiny(**overrides: Any) -> Provider:
    """A provider of a model that fits a test, on the reference backend."""
    return Provider.from_hf(TINY, SPEC, **{"backend": "reference", **overrides})


def test_fields_are_attributes() -> None:
    provider = Provider.from_hf(SUPER)
    assert provider.hidden_size == 4096
    provider.tensor_model_parallel_size = 4
    assert provider.tensor_model_parallel_size == 4
    assert provider.origin("tensor_model_parallel_size").origin == "override"
    assert provider.origin("hidden_size").keys == ("hidden_size",)
    assert "hidden_size" in dir(provider)
    assert "1 overrides" in repr(provider)
    provider.hybrid_layer_pattern = "M*M"
    assert provider.num_layers == 3  # follows
    provider.finalize()
    provider.finalize()
    assert "finalized" in repr(provider)
    with pytest.raises(AttributeError, match=r"cannot change after finalize.*copy"):
        provider.hidden_size = 1
    again = provider.copy()
    again.hidden_size = 8192
    assert (again.hidden_size, provider.hidden_size) == (8192, 4096)


def test_unknown_attributes_name_the_nearest() -> None:
    provider = tiny()
    with pytest.raises(AttributeError, match="did you mean `hidden_size`"):
        _ = provider.hiden_size
    with pytest.raises(AttributeError, match="did you mean `tensor_model_parallel_size`"):
        provider.tensor_model_paralel_size = 2
    with pytest.raises(AttributeError, match="qqq"):
        provider.origin("qqq")
    assert not hasattr(provider, "qqqq")
    assert not hasattr(provider, "__deepcopy__")


def test_fields_that_only_megatron_knows() -> None:
    provider = tiny()
    assert provider.recompute_granularity is None
    assert provider.mtp_detach_heads is False
    provider.recompute_granularity = "full"
    assert provider.recompute_granularity == "full"


@pytest.mark.megatron
def test_objects_are_read_and_set_by_name_or_themselves() -> None:
    import torch
    from megatron.core.activations import squared_relu
    from megatron.core.transformer.enums import AttnBackend

    provider = tiny()
    assert provider.activation_func is squared_relu
    assert provider.params_dtype is torch.float32
    assert provider.attention_backend is AttnBackend.flash
    provider.params_dtype = torch.bfloat16
    provider.activation_func = torch.nn.functional.silu
    provider.attention_backend = AttnBackend.local
    assert provider.bf16 is True  # derived fields compare names
    assert provider.fields["params_dtype"] == "bfloat16"
    assert provider.fields["activation_func"] == "silu"
    assert provider.fields["attention_backend"] == "local"
    assert provider.to_hf_config()["mlp_hidden_act"] == "silu"
    provider.activation_func = "softplus"
    with pytest.raises(SpecError, match=r"MS444 there is no activation `softplus`"):
        _ = provider.activation_func


def test_from_hf_takes_folders_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    assert Provider.from_hf(tmp_path, "nemotron_h").hidden_size == 64
    assert Provider.from_hf(str(tmp_path / "config.json")).resolved.where == str(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="MS602"):
        Provider.from_hf(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("version", "code", "said"),
    [
        (None, "MS440", "0.17 up to below 0.21"),
        ("0.16.1", "MS441", "too old"),
        ("0.21.0", "MS441", "too new"),
        ("1.0.0rc1", "MS441", "too new"),
    ],
)
def test_megatron_versions(monkeypatch: pytest.MonkeyPatch, version: str | None, code: str, said: str) -> None:
    monkeypatch.setattr(installed, "megatron_version", lambda: version)
    with pytest.raises(SpecError) as caught:
        tiny().provide()
    (finding,) = caught.value.diagnostics
    assert finding.code == code
    assert said in finding.message
    assert "0.19.2" in finding.message
    assert "pip install" in (finding.help or "")


@pytest.mark.parametrize("version", ["0.17.0", "0.18.2", "0.19.2", "0.20.0rc1"])
def test_versions_in_range(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(installed, "megatron_version", lambda: version)
    assert installed.check_version(SPEC.model.metadata.megatron) == version


def test_fields_that_this_megatron_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older = {n: v for n, v in installed.config_fields().items() if n not in ("moe_latent_size", "is_hybrid_model")}
    provider = tiny()
    monkeypatch.setattr(build, "config_fields", lambda: older)
    with pytest.raises(SpecError) as caught:
        provider.provide()
    assert {d.code for d in caught.value.diagnostics} == {"MS442"}
    text = str(caught.value)
    assert "`moe_latent_size`" in text
    assert "megatron-core 0." in text


def test_every_field_is_known_to_the_installed_megatron() -> None:
    owned = {name for name, entry in SPEC.entries.items() if entry.decl.of == "config"}
    assert owned <= set(installed.config_fields())


def test_virtual_stages_are_refused() -> None:
    with pytest.raises(SpecError, match="MS434 `vp_stage` is 1"):
        tiny().provide(vp_stage=1)


@pytest.mark.megatron
def test_gpu_backend_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError) as caught:
        tiny(backend="transformer_engine").provide()
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS443"
    assert "a CUDA device" in finding.message
    assert 'backend = "reference"' in (finding.help or "")


@pytest.mark.megatron
def test_process_groups_have_to_exist() -> None:
    with pytest.raises(SpecError, match="MS443 Megatron-Core's process groups"):
        tiny().provide()


@pytest.mark.megatron
def test_real_model_on_the_cpu() -> None:
    import torch
    from megatron.core.models.hybrid.hybrid_model import HybridModel

    from mapspec.backends.reference import one_process_group, reference_logits

    with one_process_group():
        model = tiny().provide()
        assert type(model) is HybridModel
        assert model.hybrid_layer_pattern == "ME*-/*E/*E"
        assert len(model.mtp.layers) == 2
        assert {m.chunk_size for m in model.modules() if hasattr(m, "chunk_size")} == {8}
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert shapes["embedding.word_embeddings.weight"] == (250, 64)
        assert shapes["decoder.layers.1.mlp.fc1_latent_proj.weight"] == (40, 64)
        assert "decoder.layers.0.mixer.in_proj.layer_norm_weight" in shapes
        logits = reference_logits(model, torch.arange(12).reshape(2, 6))
        assert logits.shape == (2, 6, 250)
        assert torch.isfinite(logits).all()

        separate = dict(tiny(norms="separate", moe_grouped_gemm=False).provide().named_parameters())
        assert "decoder.layers.0.norm.weight" in separate
        assert "decoder.layers.1.mlp.experts.local_experts.0.linear_fc1.weight" in separate
        assert len(tiny(mtp_use_repeated_layer=True).provide().mtp.layers) == 1
        padded = tiny(should_pad_vocab=True).provide()
        assert padded.output_layer.weight.shape == (256, 64)

        with pytest.raises(SpecError) as caught:
            tiny(tensor_model_parallel_size=2).provide()
        assert "`tensor_model_parallel_size` is 2, but the process groups were made with 1" in str(caught.value)
        with pytest.raises(SpecError, match=r"MS447 megatron-core 0\..* refuses the fields: .*recompute_modules"):
            tiny(recompute_granularity="selective", recompute_modules=["nonsense"]).provide()


@pytest.mark.megatron
def test_gpu_stack_is_megatrons_own_with_our_chunk_size() -> None:
    """The layer spec of the GPU model needs no CUDA to be put together, only to be built."""
    from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec
    from megatron.core.models.hybrid.hybrid_model import HybridModel

    def stack(**overrides: Any) -> Any:
        spec, model_class, argument = build._stack(tiny(backend="transformer_engine", **overrides).assembly())
        assert model_class is HybridModel
        assert argument == "hybrid_stack_spec"
        assert spec.submodules.mamba_layer.submodules.mixer.params["chunk_size"] == 8
        return spec.submodules

    shipped = hybrid_stack_spec.submodules
    own = stack()
    assert own.moe_layer.submodules.mlp is shipped.moe_layer.submodules.mlp
    assert own.mtp_block_spec is shipped.mtp_block_spec
    assert stack(moe_grouped_gemm=False).moe_layer.submodules.mlp is not shipped.moe_layer.submodules.mlp
    fused = own.mamba_layer.submodules.mixer.submodules.in_proj
    assert stack(norms="separate").mamba_layer.submodules.mixer.submodules.in_proj is not fused
    assert "chunk_size" not in (shipped.mamba_layer.submodules.mixer.params or {})  # other models are not touched
