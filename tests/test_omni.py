"""Nemotron Omni and VL: tiny checkpoints with every tower go there and back; towers that do not fit are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mapspec.bind import Choices
from mapspec.convert import Output, convert
from mapspec.diagnostics import Diagnostic
from mapspec.io.hf_folder import open_hf
from mapspec.io.torch_dist import open_torch_dist
from mapspec.mapping import compile_mapping
from mapspec.prepare import Prepared, Request, prepare
from mapspec.verify import verify

CONFIGS = Path(__file__).parent / "configs"
MEL, WINDOW = (f"sound_encoder.encoder.feature_extractor.featurizer.{name}" for name in ("fb", "window"))
CLASS_TOKEN = "vision_model.radio_model.model.patch_generator.cls_token.token"


def config_named(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **changes}


def published(**changes: Any) -> dict[str, Any]:
    """Published spellings; everything there is."""
    return config_named("nemotron-omni-every-option", **changes)


def dense() -> dict[str, Any]:
    """As Nemotron VL: no sound, no experts, no MTP, no embedder for video."""
    values = published(architectures=["NemotronH_Nano_VL_V2"])
    del values["sound_config"]
    values["llm_config"] |= {"hybrid_override_pattern": "M*M-", "num_nextn_predict_layers": 0}
    values["vision_config"] = {**values["vision_config"], "separate_video_embedder": False}
    return values


def quiet() -> dict[str, Any]:
    """With an explicit null where the sound would be, as Nemotron 3.5 Super VL has it."""
    return published(architectures=["NemotronH_Super_Omni_Reasoning_V3"], sound_config=None)


def native() -> dict[str, Any]:
    return config_named("nemotron-omni-aliases")


def write_omni(folder: Path, config: dict[str, Any], flavours: dict[str, str] | None = None) -> Path:
    """A checkpoint with random values for all that the mapping expects, and the buffers that are passed through."""
    folder.mkdir(parents=True)
    inventory = compile_mapping("nemotron_omni", config, Choices(flavours or {})).table.inventory("hf")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(decl.shape, generator=generator).to(getattr(torch, decl.dtype))
        if decl.dtype != "int64"
        else torch.tensor(2**40 + i)
        for i, (name, decl) in enumerate(inventory.items())
    }
    words = config.get("llm_config") or config["text_config"]
    if words.get("tie_word_embeddings"):
        embedding = next(name for name in tensors if name.endswith("embeddings.weight"))
        tensors["language_model.lm_head.weight"] = tensors[embedding].clone()
    for name in ("norm_mean", "norm_std"):
        tensors[f"vision_model.radio_model.input_conditioner.{name}"] = torch.rand(3, 1, 1, generator=generator)
    if config.get("sound_config") or config.get("audio_config"):
        tensors[MEL], tensors[WINDOW] = torch.rand(1, 16, 9, generator=generator), torch.rand(20, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def there_and_back(source: Path, tmp_path: Path, **flavours: str) -> Prepared:
    done = convert(Request(source, flavours=flavours), Output(tmp_path / "megatron")).prepared
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings
    assert not verify(source, tmp_path / "megatron").findings
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8)), name
    return done


@pytest.mark.parametrize("assembly", ["expanded", "llava"])
@pytest.mark.parametrize("make", [published, quiet, dense, native])
def test_there_and_back(tmp_path: Path, make: Callable[[], dict[str, Any]], assembly: str) -> None:
    done = there_and_back(write_omni(tmp_path / "hf", make()), tmp_path, assembly=assembly)
    keys = {*open_torch_dist(tmp_path / "megatron").tensors, *done.table.objects}
    prefix = "llava_model." if assembly == "llava" else ""
    parts = {"language_model", "vision_model", "vision_projection"}
    if make in (published, native):
        parts |= {"sound_model", "sound_projection"}
    assert {key.removeprefix(prefix).split(".")[0] for key in keys} == parts
    assert all(key.startswith(prefix) for key in keys)
    assert len(done.plan.coverage.passthrough) == (4 if "sound_model" in parts else 2)
    assert done.run_config is not None
    assert done.run_config.text is None  # no provider describes these models; the report says so


@pytest.mark.parametrize("mtp_names", ["mtp_beside", "mtp_within"])
def test_both_places_of_mtp_are_told_apart_by_their_names(tmp_path: Path, mtp_names: str) -> None:
    source = write_omni(tmp_path / "hf", published(), {"mtp_names": mtp_names})
    prefix = "mtp." if mtp_names == "mtp_beside" else "language_model.mtp."
    assert any(name.startswith(prefix) for name in open_hf(source).tensors)
    done = there_and_back(source, tmp_path)
    assert done.table.bound.flavours["mtp_names"] == mtp_names
    assert "language_model.mtp.layers.0.eh_proj.weight" in open_torch_dist(tmp_path / "megatron").tensors


def test_other_names_of_the_language_model_are_detected_below_its_prefix(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", native(), {"names": "native"})
    assert there_and_back(source, tmp_path).table.bound.flavours["names"] == "native"


def test_what_transformers_adds_is_carried_along_and_what_it_drops_is_not_missed(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", published())

    def resave(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if "input_conditioner" in n or "featurizer" in n]:
            del tensors[name]
        for layer in range(2):
            for scale in (1, 2):
                tensors[f"vision_model.radio_model.model.blocks.{layer}.layer_scale{scale}.lambda1"] = torch.ones(32)
        tensors["vision_model.radio_model.summary_idxs"] = torch.tensor([0, 1, 2])
        tensors["vision_final_layernorm.weight"] = torch.ones(32)
        tensors["vision_final_layernorm.bias"] = torch.zeros(32)

    edit(source, resave)
    assert len(there_and_back(source, tmp_path).plan.coverage.passthrough) == 7


# --- vision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["fused", "separate"])
@pytest.mark.parametrize("vision_layers", ["stacked", "numbered"])
def test_layers_of_the_vision_tower_are_stacked_or_numbered(tmp_path: Path, norms: str, vision_layers: str) -> None:
    source = write_omni(tmp_path / "hf", published())
    done = there_and_back(source, tmp_path, norms=norms, vision_layers=vision_layers)
    stored = open_torch_dist(tmp_path / "megatron").tensors
    layers = "layers" if vision_layers == "stacked" else "layers.1"
    norm = "input_layernorm.bias" if norms == "separate" else "self_attention.linear_qkv.layer_norm_bias"
    assert stored[f"vision_model.decoder.{layers}.{norm}"].shape == ((2, 32) if vision_layers == "stacked" else (32,))
    shard = "shard_1_2" if vision_layers == "stacked" else "shard_0_1"
    assert f"vision_model.decoder.{layers}.mlp.linear_fc2._extra_state/{shard}" in done.table.objects


def test_queries_keys_and_values_of_the_vision_tower_are_dealt_by_heads() -> None:
    mapping = compile_mapping("nemotron_omni", published())
    hf = torch.arange(96).repeat_interleave(32).view(96, 32)
    name = "vision_model.radio_model.model.blocks.0.attn.qkv.weight"
    row = next(row for row in mapping if row.names("hf") == (name,))
    out = torch.empty(96, 32, dtype=torch.int64)
    for _, left, _, right in row.pieces("hf", "megatron"):
        out[slice(*right[0])] = hf[slice(*left[0])]
    head = [torch.arange(part + 8 * h, part + 8 * h + 8) for h in range(4) for part in (0, 32, 64)]
    assert torch.equal(out[:, 0], torch.cat(head))


@pytest.mark.parametrize(
    ("vision", "rows"),
    [
        ({"args": {"register_multiple": 8}}, 8),
        ({"args": {"register_multiple": 16}}, 16),
        ({"args": {}}, 10),
        ({}, 10),
        ({"num_registers": 7}, 10),
        ({"num_cls_tokens": 1, "num_registers": 7}, 8),
    ],
)
def test_rows_of_class_tokens(vision: dict[str, Any], rows: int) -> None:
    values = published()
    del values["vision_config"]["args"]
    values["vision_config"] |= vision
    assert compile_mapping("nemotron_omni", values).table.inventory("hf")[CLASS_TOKEN].shape == (rows, 32)


# --- bad input -------------------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def finding(folder: Path, code: str, *sets: str) -> Diagnostic:
    found = prepare(Request(folder, sets=sets)).plan.findings
    assert {d.code for d in found} == {code}, found
    return found[0]


def test_class_tokens_that_do_not_fit(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", published())
    edit(source, lambda tensors: tensors.update({CLASS_TOKEN: torch.zeros(8, 32, dtype=torch.bfloat16)}))
    found = finding(source, "MS513")
    assert "shape [8, 32] in the checkpoint, [16, 32] by the spec" in found.message
    assert "`vision_config.args.register_multiple`" in found.notes[0].message
    assert not prepare(Request(source, sets=["vision_config.num_registers=5"])).plan.findings


def test_sound_in_the_files_and_none_in_the_config(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", published())
    found = finding(source, "MS512", "sound_config=null")
    assert "`sound_encoder.encoder." in found.message
    assert [n.message for n in found.notes] == [
        "names below `sound_encoder.encoder` are those of include `sound_model`, if only `has_sound` held"
    ]


def test_sound_in_the_config_and_none_in_the_files(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", quiet())
    (source / "config.json").write_text(json.dumps(published()))
    found = prepare(Request(source)).plan.findings
    assert {d.code for d in found} == {"MS511"}
    assert any("`sound_projection" in d.message for d in found)


def test_an_unknown_tower_is_named_with_the_line_to_extend(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", published())
    edit(source, lambda tensors: tensors.update({"depth_model.blocks.0.weight": torch.zeros(3)}))
    found = finding(source, "MS512")
    assert "`depth_model.blocks.0.weight`" in found.message
    assert found.span is not None
    assert Path(found.span.path).name == "nemotron_omni.yaml"


def test_a_projector_that_contradicts_the_language_model(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", published())
    edit(source, lambda t: t.update({"mlp1.3.weight": torch.zeros(80, 48, dtype=torch.bfloat16)}))
    found = finding(source, "MS513")
    assert "`mlp1.3.weight`: shape [80, 48] in the checkpoint, [64, 48]" in found.message


def test_a_counter_that_is_no_whole_number(tmp_path: Path) -> None:
    source = write_omni(tmp_path / "hf", published())
    name = "sound_encoder.encoder.layers.0.conv.norm.num_batches_tracked"
    edit(source, lambda tensors: tensors.update({name: torch.tensor(3.0)}))
    assert name in finding(source, "MS514").message
