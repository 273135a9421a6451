"""Models of several parts: included specs, fields in parts of the config, further configs, checks of final fields."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.provider import Provider
from mapspec.provider.render import provider_report, render_provider
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import choose_provider, read_provider
from mapspec.provider.values import same

CONFIGS = Path(__file__).parent.parent / "configs"
OMNI, VL = read_provider("nemotron_omni"), read_provider("nemotron_vl")
NANO, DENSE, SUPER = "nemotron-3-nano-omni-30b-a3b", "nemotron-nano-12b-v2-vl", "nemotron-3.5-super-vl-120b-a12b"
MODELS = (NANO, DENSE, SUPER, "nemotron-omni-aliases")


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """A config with changes; `...` removes a key, `part__key` is the key of a part."""
    config = copy.deepcopy(read_config(CONFIGS / f"{name}.json"))
    for path, value in changes.items():
        *parts, last = path.split("__")
        here = config
        for part in parts:
            here = here.setdefault(part, {})
        if value is ...:
            del here[last]
        else:
            here[last] = value
    return config


def provider_of(name: str, overrides: dict[str, Any] | None = None, **changes: Any) -> Provider:
    """The provider of a config, on the reference backend."""
    return Provider.from_hf(config_of(name, **changes), **{"backend": "reference", **(overrides or {})})


def findings(name: str, overrides: dict[str, Any] | None = None, **changes: Any) -> list[tuple[str, str]]:
    """(code, message) of what finalizing finds."""
    with pytest.raises(SpecError) as caught:
        provider_of(name, overrides, **changes).finalize()
    return [(d.code, d.message) for d in caught.value.diagnostics]


# --- which spec ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (config_of(NANO), "nemotron_omni"),
        (config_of(SUPER), "nemotron_omni"),
        (config_of(DENSE), "nemotron_vl"),
        (config_of(NANO, architectures=["NemotronH_Nano_VL_V2"]), "nemotron_omni"),
        (config_of(NANO, architectures=["NemotronH_Super_Omni_Reasoning_V3"]), "nemotron_omni"),
        (config_of("nemotron-h-8b"), "nemotron_h"),
    ],
)
def test_architecture_and_experts_choose_the_spec(config: dict[str, Any], spec: str) -> None:
    assert choose_provider(config, where="config.json").name == spec


# --- fields -------------------------------------------------------------------------------------------------------

# Fields and defaults of the provider classes that users of Megatron-Bridge 0.5 know. What is right today differs for
# those in DIFFERENT, see docs/decisions.md.
KNOWN: dict[str, Any] = {
    "mamba_num_groups": 8, "num_query_groups": 8, "make_vocab_size_divisible_by": 128, "masked_softmax_fusion": True,
    "apply_query_key_layer_scaling": False, "persist_layer_norm": True, "first_last_layers_bf16": True,
    "is_hybrid_model": True, "moe_aux_loss_coeff": 1e-4, "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True, "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_router_dtype": "fp32", "moe_grouped_gemm": True, "moe_token_dispatcher_type": "alltoall",
    "moe_permute_fusion": True, "moe_shared_expert_overlap": True, "scatter_embedding_sequence_parallel": False,
    "attention_softmax_in_fp32": True, "vision_model_type": "radio", "radio_force_eval_mode": True,
    "radio_force_cpe_eval_mode": True, "radio_cpe_aspect_ratio_select": False, "radio_disable_cpe": False,
    "img_start_token_id": 0, "img_end_token_id": 0, "vision_proj_ffn_hidden_size": 20480,
    "freeze_language_model": False, "freeze_vision_model": False, "freeze_vision_projection": False,
    "temporal_patch_dim": 1, "separate_video_embedder": False, "temporal_ckpt_compat": False,
}  # fmt: skip
SOUND: dict[str, Any] = {
    "has_sound": False, "sound_model_type": "parakeet", "sound_hidden_size": 1024, "sound_config": None,
    "sound_projection_hidden_size": 4096, "sound_context_token_id": 0, "freeze_sound_encoder": False,
    "freeze_sound_projection": False,
}  # fmt: skip
DIFFERENT: dict[str, Any] = {
    "dynamic_resolution": True, "use_vision_backbone_fp8_arch": False, "radio_interpolate_only_cpe": False,
    "vision_class_token_len": 10, "image_token_index": 131072, "language_model_type": "nemotron5-hybrid-12b",
    "tokenizer_type": "nemotron-h-5p5-reasoning",
}  # fmt: skip


def test_the_fields_that_users_know_have_the_values_that_they_know() -> None:
    provider = provider_of(DENSE)
    assert {name: getattr(provider, name) for name in KNOWN} == KNOWN
    assert {name: getattr(provider, name) for name in DIFFERENT} == DIFFERENT
    assert provider.activation_func.__name__ == "squared_relu"
    silent = Provider.from_hf(config_of(DENSE), OMNI)
    assert {name: getattr(silent, name) for name in SOUND} == SOUND
    assert {name: getattr(silent, name) for name in KNOWN if "token" not in name} == {
        name: value for name, value in KNOWN.items() if "token" not in name
    }
    # The old values can still be had.
    for name, value in {"dynamic_resolution": False, "radio_interpolate_only_cpe": True}.items():
        setattr(provider, name, value)
        assert getattr(provider, name) is value


def test_published_values() -> None:
    provider = provider_of(NANO)
    provider.finalize()
    wanted = {
        "hidden_size": 2688, "num_layers": 52, "num_moe_experts": 128, "image_token_index": 18,
        "video_token_index": 131081, "sound_context_token_id": 27, "img_start_token_id": 21, "img_end_token_id": 22,
        "language_model_type": "nemotron6-moe", "tokenizer_type": "nemotron6-moe", "vision_class_token_len": 10,
        "separate_video_embedder": True, "temporal_patch_dim": 2, "temporal_ckpt_compat": True, "has_sound": True,
        "nemotron_omni_contract": "expanded_sequence_v1", "vision_projection_input_size": 5120, "max_img_size": 2048,
    }  # fmt: skip
    assert {name: getattr(provider, name) for name in wanted} == wanted
    assert provider_of(NANO, architectures=["NemotronH_Nano_VL_V2"]).img_start_token_id == 19
    assert provider_of(DENSE, {"assembly": "llava"}).nemotron_omni_contract == "llava_collapse_expand_v1"
    dense = provider_of(DENSE, vision_config__args={"model": "vit_huge_patch16_224", "register_multiple": 16})
    assert (dense.vision_class_token_len, dense.vision_num_registers) == (16, 13)


def test_without_sound_the_fields_are_those_of_vision() -> None:
    config = config_of(NANO, sound_config=..., sound_context_token_id=..., sound_context_token=...)
    with_sound = resolve_provider(OMNI, config).values()
    assert with_sound["has_sound"] is False
    vision = resolve_provider(VL, config).values()
    own = {"language_model_type", "tokenizer_type", "img_start_token_id", "img_end_token_id"}
    assert {name: with_sound[name] for name in vision if name not in own} == {
        name: value for name, value in vision.items() if name not in own
    }
    assert set(with_sound) - set(vision) == {
        "has_sound", "sound_config", "sound_context_token_id", "freeze_sound_encoder", "freeze_sound_projection",
    }  # fmt: skip
    off = provider_of(NANO, {"has_sound": False})
    off.finalize()
    assert list(off.configs) == ["vision", "vision_projection"]


def test_a_part_and_its_keys_follow_each_other() -> None:
    provider = provider_of(NANO, {"sound_hidden_size": 512})
    assert provider.sound_config["hidden_size"] == 512
    provider = provider_of(DENSE)
    provider = Provider.from_hf(config_of(SUPER), backend="reference")
    assert (provider.has_sound, provider.sound_hidden_size) == (False, 1024)
    provider.sound_config = {"hidden_size": 256, "num_hidden_layers": 2, "num_mel_bins": 80}
    provider.sound_context_token_id = 27
    assert (provider.has_sound, provider.sound_hidden_size, provider.sound_num_mel_bins) == (True, 256, 80)
    assert provider.origin("sound_hidden_size").origin == "hf"
    provider.finalize()
    assert provider.to_hf_config()["sound_config"]["num_mel_bins"] == 80


# --- golden -------------------------------------------------------------------------------------------------------


def table(name: str) -> str:
    """The report without line numbers, which change with every edit of a spec."""
    config = config_of(name)
    data = json.loads(
        render_provider(resolve_provider(choose_provider(config, where=name), config, where=name), "json")
    )
    lines = []
    for title, fields in [("fields", data["fields"]), *((c, v["fields"]) for c, v in data["configs"].items())]:
        lines.append(f"[{title}]")
        for field, found in fields.items():
            when = f" when {found['when']}" if found["when"] else ""
            source = ", ".join(found["keys"]) or found["reason"]
            lines.append(f"{field} = {json.dumps(found['value'])} | {found['origin']}{when} | {source}")
    return "\n".join([*lines, *(f"not carried: {key} | {why}" for key, why in data["not_carried"].items()), ""])


@pytest.mark.parametrize("name", [NANO, DENSE, SUPER])
def test_golden_table(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"providers/{name}.txt", table(name))


def test_reports_show_the_further_configs() -> None:
    path = CONFIGS / f"{NANO}.json"
    text = provider_report("nemotron_omni", path, ["vision.num_layers=2"])
    assert "config vision, the RADIO vision transformer: the language model's, and of its own:" in text
    assert "config sound_model, the Parakeet encoder, as transformers' own class takes it: `sound_config`" in text
    data = json.loads(provider_report("nemotron_omni", path, ["vision.num_layers=2"], "json"))
    assert data["configs"]["vision"]["fields"]["num_layers"]["origin"] == "override"
    assert "moe_ffn_hidden_size" in data["configs"]["vision"]["without"]
    assert data["fields"]["moe_router_topk"]["spec"]["path"] == "nemotron_h.yaml"
    assert "#### config vision_projection" in provider_report("nemotron_omni", path, fmt="md")


# --- the way back -------------------------------------------------------------------------------------------------


def comparable(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without the part that is written with all its defaults."""
    return {name: value for name, value in fields.items() if name != "sound_config"}


@pytest.mark.parametrize("name", MODELS)
def test_with_its_reference_a_config_comes_back_unchanged(name: str) -> None:
    provider = provider_of(name)
    provider.finalize()
    assert json.dumps(provider.to_hf_config()) == json.dumps(config_of(name))


@pytest.mark.parametrize("dialect", OMNI.dialects)
@pytest.mark.parametrize("name", MODELS)
def test_without_a_reference_the_fields_come_back(name: str, dialect: str) -> None:
    from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3_Config as Config

    provider = provider_of(name)
    fields = Provider.from_hf(config_of(name)).fields
    config = provider.to_hf_config(dialect, reference=False)
    spec = provider.resolved.spec
    again = resolve_provider(spec, config).values()
    repeated = {"mtp_num_layers", "mtp_use_repeated_layer"}  # of a repeated block, the one that is stored is counted
    skipped = repeated if fields.get("mtp_use_repeated_layer") else set()
    assert comparable({k: v for k, v in again.items() if k not in skipped}) == comparable(
        {k: v for k, v in fields.items() if k not in skipped}
    )
    assert choose_provider(config, where=dialect).name == spec.name
    assert ("text_config" in config) == (dialect == "native")
    assert not {"text_config", "llm_config"} <= set(config)
    if dialect != "native" and config.get("sound_config"):
        del config["sound_config"]["model_type"]  # transformers 5.23 refuses the name that released configs have
    read = Config.from_dict(config)
    assert read.text_config.hybrid_override_pattern == fields["hybrid_layer_pattern"]
    assert read.text_config.hidden_size == fields["hidden_size"]
    assert read.projector_hidden_size == fields["vision_proj_ffn_hidden_size"]
    assert read.vision_config.num_cls_tokens + read.vision_config.num_registers == fields["vision_class_token_len"]
    assert read.vision_config.mlp_ratio * read.vision_config.hidden_size == fields["vision_ffn_hidden_size"]
    assert read.image_token_id == fields["image_token_index"]
    if fields.get("has_sound"):
        assert read.audio_token_id == fields["sound_context_token_id"]
        assert read.audio_config.attention_bias is read.audio_config.convolution_bias is False
        assert read.audio_config.projection_hidden_size == fields["sound_projection_hidden_size"]
    else:
        assert read.audio_config is None


@pytest.mark.parametrize("dialect", OMNI.dialects)
@pytest.mark.parametrize("name", MODELS)
def test_a_reference_is_translated_with_all_its_parts(name: str, dialect: str) -> None:
    config, provider = config_of(name), provider_of(name)
    there = provider.to_hf_config(dialect)
    again = resolve_provider(provider.resolved.spec, there).values()
    assert comparable(again) == comparable(Provider.from_hf(config).fields)
    legacy = {"llm_config", "sound_config", "img_context_token_id", "vit_hidden_size"}
    native = {"text_config", "audio_config", "image_token_id", "vision_hidden_size"}
    assert not (legacy if dialect == "native" else native) & set(there)
    assert there["architectures"] == config["architectures"]
    part = there["text_config" if dialect == "native" else "llm_config"]
    given = config.get("llm_config") or config["text_config"]
    assert part["model_type"] == given["model_type"]


def test_parts_that_a_model_has_no_more_are_null() -> None:
    off = provider_of(NANO, {"has_sound": False})
    back = off.to_hf_config()
    assert back["sound_config"] is None
    assert back["sound_context_token_id"] is None
    assert set(back) == set(config_of(NANO))
    fresh = off.to_hf_config("native", reference=False)
    assert fresh["audio_config"] is None
    assert fresh["audio_token_id"] is None
    assert resolve_provider(OMNI, back).values()["has_sound"] is False


def test_changed_fields_are_written_into_their_parts() -> None:
    provider = provider_of(NANO, {"hidden_size": 1024, "vision_num_layers": 2, "vision_class_token_len": 16})
    provider.sound_num_layers = 3
    provider.image_token_index = 99
    back = provider.to_hf_config()
    assert back["llm_config"]["hidden_size"] == 1024
    assert back["vision_config"]["num_hidden_layers"] == 2
    assert back["vision_config"]["num_registers"] == 13
    assert back["sound_config"]["num_hidden_layers"] == 3
    assert back["img_context_token_id"] == 99
    assert resolve_provider(OMNI, back).values()["vision_class_token_len"] == 16


CHANGES = {
    "hidden_size": st.sampled_from([1024, 4096]),
    "hybrid_layer_pattern": st.sampled_from(["M*E-", "ME*ME"]),
    "params_dtype": st.sampled_from(["float32", "float16"]),
    "layernorm_epsilon": st.just(1e-6),
    "image_token_index": st.integers(1, 10),
    "video_token_index": st.sampled_from([None, 77]),
    "vision_num_layers": st.integers(1, 40),
    "vision_class_token_len": st.integers(4, 32),
    "vision_hidden_size": st.sampled_from([640, 1280]),
    "vision_ffn_hidden_size": st.sampled_from([2560, 5120]),
    "vision_patch_size": st.sampled_from([14, 16]),
    "vision_proj_ffn_hidden_size": st.integers(1, 99),
    "separate_video_embedder": st.booleans(),
    "temporal_patch_dim": st.integers(2, 4),
    "has_sound": st.booleans(),
    "sound_context_token_id": st.integers(50, 60),
    "sound_hidden_size": st.sampled_from([512, 1024]),
    "sound_num_layers": st.integers(1, 30),
    "sound_attention_bias": st.booleans(),
}


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from([NANO, "nemotron-omni-aliases"]),
    changes=st.fixed_dictionaries({}, optional=CHANGES),
    dialect=st.sampled_from([None, *OMNI.dialects]),
    reference=st.booleans(),
)
def test_whatever_is_set_comes_back(name: str, changes: dict[str, Any], dialect: str | None, reference: bool) -> None:
    """Fields that a config can say are the same after they went through one."""
    plain = {"text_config__mtp_use_repeated_layer": False} if name != NANO else {}
    provider = provider_of(name, changes, **plain)
    config = provider.to_hf_config(dialect, reference=reference)
    before, after = provider.fields, resolve_provider(OMNI, config).values()
    if (
        not provider.separate_video_embedder
    ):  # then there is one frame to a patch, and a config has no place for another
        before["temporal_patch_dim"] = after["temporal_patch_dim"]
    # What is not in a config, and fields whose key says what another field was set to.
    one_sided = {"backend", "temporal_ckpt_compat", "vision_num_registers", "vision_mlp_ratio"}
    one_sided |= {"video_temporal_patch_size", "video_temporal_patch_size_beside"}
    gone = set() if provider.has_sound else {n for n in before if n.startswith("sound_")}
    for field, value in before.items():
        if field not in {*one_sided, *gone, "sound_config"}:
            assert same(after[field], value), field
    assert after["has_sound"] is provider.has_sound


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "overrides", "code", "said"),
    [
        ({}, {"dynamic_resolution": False}, "MS460", "`dynamic_resolution` is false"),
        ({}, {"image_token_index": 0}, "MS460", "`image_token_index` is 0"),
        ({"sound_config": None}, {"has_sound": True}, "MS460", "there is no `sound_config`"),
        ({"sound_context_token_id": ...}, {}, "MS460", "`sound_context_token_id` is 0"),
        ({"sound_context_token_id": 18}, {}, "MS460", "already stands for pictures"),
        ({}, {"nemotron_omni_contract": None}, "MS460", "cannot be guessed"),
        (
            {}, {"nemotron_omni_contract": "llava_collapse_expand_v1"}, "MS460",
            '"llava_collapse_expand_v1", but `assembly` "expanded" is built for "expanded_sequence_v1"',
        ),
        ({}, {"assembly": "mixed"}, "MS460", '`assembly` is "mixed"'),
        ({}, {"vision_model_type": "clip"}, "MS460", '`vision_model_type` is "clip"'),
        ({"vision_config__model_type": "clip"}, {}, "MS423", "unknown value `clip`"),
        ({"sound_config__model_type": "whisper"}, {}, "MS423", "unknown value `whisper`"),
        ({}, {"use_vision_backbone_fp8_arch": True}, "MS460", "`vision_class_token_len` is 10"),
        (
            {"vision_config__num_registers": 5, "vision_config__args__register_multiple": 16}, {}, "MS426",
            "3 class tokens and 5",
        ),
        ({"vision_config__args__model": "vit_giant"}, {}, "MS426", "other than ViT-H/16"),
        ({"vit_hidden_size": 1024, "vision_config__hidden_size": 1280}, {}, "MS425", "`vit_hidden_size` is 1024"),
        ({"text_config": {"hidden_size": 64}}, {}, "MS421", "both spell `hidden_size`"),
        ({}, {"vision_projection.hidden_size": 64}, "MS462", "`vision_projection.hidden_size` is 64"),
        ({}, {"sound_projection.hidden_size": 64}, "MS462", "`sound_projection.hidden_size` is 64"),
        ({}, {"vision_hidden_size": 1281}, "MS461", "`kv_channels` of the config `vision`"),
        (
            {}, {"vision_proj_ffn_hidden_size": 20481, "tensor_model_parallel_size": 2}, "MS430",
            "`vision_projection.ffn_hidden_size` is 20481",
        ),
        ({}, {"vision.num_layer": 2}, "MS427", "`vision.num_layer`"),
        ({}, {"sight.num_layers": 2}, "MS427", "`sight.num_layers`"),
        ({"llm_config__mamba_gate": 1}, {}, "MS420", "`llm_config.mamba_gate`"),
        ({"vision_config__gate": 1}, {}, "MS420", "`vision_config.gate`"),
        ({"sound_config__gate": 1}, {}, "MS420", "`sound_config.gate`"),
        ({"touch_config": {"hidden_size": 1}}, {}, "MS420", "`touch_config`"),
        ({"llm_config__use_bias": True}, {}, "MS424", "`llm_config.use_bias` is true"),
        ({"llm_config__hidden_size": ...}, {}, "MS422", "`llm_config.hidden_size`"),
    ],
)  # fmt: skip
def test_what_does_not_fit(changes: dict[str, Any], overrides: dict[str, Any], code: str, said: str) -> None:
    found = findings(NANO, overrides, **changes)
    assert any(c == code and said in message for c, message in found), found


def test_unknown_keys_of_a_part_belong_into_the_included_spec(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(NANO, llm_config__mamba_gate=1), indent=1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        Provider.from_hf(path)
    (found,) = caught.value.diagnostics
    assert found.span is not None
    assert Path(found.span.path).name == "nemotron_h.yaml"
    assert found.help is not None
    assert "add `mamba_gate` under `waived`" in found.help
    assert '"mamba_gate"' in path.read_text(encoding="utf-8").splitlines()[found.notes[0].span.line - 1]  # type: ignore[union-attr]


# --- spec mistakes ------------------------------------------------------------------------------------------------

TEXT = VL.document.path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("moe: the vision", "mo: the vision", "no group `mo`"),
        ("    from: language\n    about: the RADIO", "    from: langauge\n    about: the RADIO", "no field `langauge`"),
        ("value: vision_num_layers, reason", "value: vision_layers, reason", "uses `vision_layers`"),
        ("value: vision_num_layers, reason", "value: hf.vision_config.depth, reason", "computed from fields"),
        ("{if: freeze_vision_model", "{if: freeze_visoin_model", "uses `freeze_visoin_model`"),
        ("is {image_token_index}, which", "is {image_token}, which", "`{image_token}` is no field"),
        ("that: image_token_index > 0", "that: hf.image_token_id > 0", "reads no `hf.` keys"),
        ("text_config: {dialects: [native]}", "text_config: {dialects: [nativ]}", "no dialect `nativ`"),
        ("applies: not present(hf.llm_config", "applies: not present(llm_config", "only `hf` has parts"),
        ("  hf: force_image_size", "  hf: llm_config.vocab_size", "spells `vocab_size` of the included"),
        ("vision_tokens: vision_num", "vocab_size: vision_num", "a field as well as a value"),
        ("      num_layers: {value: vision", "      is_hybrid_model: {value: vision", "a constant of `vision` already"),
        ("  vision_projection:\n    from", "  language:\n    from", "the config that others are made from"),
    ],
)
def test_mistakes_of_a_spec(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TEXT
    path = tmp_path / "edited.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        read_provider(path)
    assert any(d.code == "MS428" and said in d.message for d in caught.value.diagnostics), caught.value.diagnostics


def test_an_include_is_pinned_and_runs_in_no_circle(tmp_path: Path) -> None:
    path = tmp_path / "edited.yaml"
    for old, new, code in (
        ("provider: nemotron_h@1", "provider: nemotron_h@2", "MS306"),
        ("provider: nemotron_h@1", "provider: nemotron_x@1", "MS301"),
        ("provider: nemotron_h@1", "provider: edited@1", "MS302"),
        ("provider: nemotron_h@1", "provider: nemotron_h", "MS305"),
    ):
        path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(SpecError) as caught:
            read_provider(path)
        assert caught.value.diagnostics[0].code == code


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.megatron
def test_further_configs_are_what_megatron_takes() -> None:
    provider = provider_of(
        NANO, {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2, "context_parallel_size": 2,
               "recompute_granularity": "full"},
    )  # fmt: skip
    provider.set_config("vision", num_layers=2)
    vision = provider.vision_config()
    wanted = {
        "num_layers": 2, "hidden_size": 1280, "num_attention_heads": 16, "num_query_groups": 16, "kv_channels": 80,
        "ffn_hidden_size": 5120, "add_bias_linear": True, "add_qkv_bias": True, "normalization": "LayerNorm",
        "layernorm_epsilon": 1e-6, "pipeline_model_parallel_size": 1, "context_parallel_size": 1,
        "sequence_parallel": False, "mtp_num_layers": None, "num_moe_experts": None, "recompute_granularity": None,
        "gated_linear_unit": False, "class_token_len": 10, "vision_model_type": "radio",
        "attention_softmax_in_fp32": True, "bf16": True,
    }  # fmt: skip
    assert {name: getattr(vision, name) for name in wanted} == wanted
    assert vision.activation_func.__name__ == "gelu"
    projector, sound = provider.vision_projection_config(), provider.config("sound_projection")
    for config, ffn in ((projector, 20480), (sound, 4096)):
        assert (config.hidden_size, config.ffn_hidden_size) == (2688, ffn)
        assert config.activation_func.__name__ == "squared_relu"
        assert (config.add_bias_linear, config.normalization, config.pipeline_model_parallel_size) == (
            False, "RMSNorm", 1,
        )  # fmt: skip
    assert provider.sound_model_config()["attention_bias"] is False
    assert not {"model_type", "projection_hidden_size", "sampling_rate"} & set(provider.sound_model_config())
    relu = provider_of(NANO, {"vision_projection_activation_func": "relu"})
    assert relu.vision_projection_config().activation_func.__name__ == "relu"
    with pytest.raises(SpecError, match="MS461"):
        provider_of(DENSE).config("sound_projection")
    with pytest.raises(SpecError, match="MS461"):
        provider.set_config("touch", num_layers=1)
    with pytest.raises(AttributeError, match="after finalize"):
        provider.set_config("vision", num_layers=3)
    assert "vision_config" in dir(provider)
