"""Providers of models that see and hear build the real ones: loaded from a checkpoint, and run, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_omni import IMAGE, OMNI, SOUND, expanded_inputs, write_tiny_omni

from mapspec.backends.reference import cpu_adapters
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.live import load
from mapspec.provider.provider import Provider
from mapspec.render.inventory import inventory_of

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_group")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("media")
    return {name: write_tiny_omni(name, root / name) for name in ("omni", "mtp", "vl")}


def parts(model: Any) -> set[str]:
    return {name.removeprefix("llava_model.").partition(".")[0] for name, _ in model.named_parameters()}


TOWERS = {"vision_model", "vision_projection"}
SOUNDS = {"sound_model", "sound_projection"}


@pytest.mark.parametrize("name", ["omni", "mtp"])
def test_expanded_is_loaded_and_runs(checkpoints: dict[str, Path], name: str) -> None:
    """transformers' own spelling of the config, and the published one."""
    provider = Provider.from_hf(checkpoints[name], backend="reference", params_dtype="float32")
    assert provider.resolved.spec.name == "nemotron_omni"
    model: Any = provider.provide()
    assert parts(model) == {"language_model", *TOWERS, *SOUNDS}
    report = load(model, checkpoints[name])
    assert report.differences == ()
    assert report.left_out == ()
    given = expanded_inputs(OMNI[name])
    ids = given.pop("input_ids")
    with cpu_adapters(), torch.no_grad():
        logits = model(ids, torch.arange(ids.shape[1])[None], runtime_gather_output=True, **given)
        text = model(ids.clamp(min=SOUND + 1), torch.arange(ids.shape[1])[None], runtime_gather_output=True)
    assert logits.shape == text.shape == (1, ids.shape[1], 256)
    assert logits.isfinite().all()
    assert (logits - text).abs().max() > 1e-3


def test_llava_runs_on_tiles(checkpoints: dict[str, Path]) -> None:
    config = read_config(checkpoints["vl"] / "config.json")
    provider = Provider.from_hf(
        config, "nemotron_vl", backend="reference", params_dtype="float32", assembly="llava", dynamic_resolution=False,
        image_token_index=IMAGE, img_h=32,
    )  # fmt: skip
    model: Any = provider.provide()
    assert all(name.startswith("llava_model.") for name, _ in model.named_parameters())
    assert parts(model) == {"language_model", *TOWERS}
    load(model, checkpoints["vl"], flavours={"assembly": "llava"})
    ids = torch.full((1, 12), 40)
    ids[0, 3] = IMAGE
    with cpu_adapters(), torch.no_grad():
        logits, _ = model(ids, torch.arange(12)[None], images=torch.randn(1, 3, 32, 32))
    assert logits.shape == (1, 11 + 16, 256)
    assert logits.isfinite().all()


def test_encoders_are_on_the_first_stage_only(checkpoints: dict[str, Path]) -> None:
    provider = Provider.from_hf(checkpoints["omni"], backend="reference")
    later: Any = provider.provide(pre_process=False, post_process=True)
    assert parts(later) == {"language_model"}
    alone: Any = provider.provide_language_model()
    assert type(alone).__name__ == "HybridModel"
    assert {f"language_model.{name}" for name in alone.state_dict()} == {
        name for name in provider.provide().state_dict() if name.startswith("language_model.")
    }
    silent = Provider.from_hf(checkpoints["omni"], backend="reference", has_sound=False)
    assert parts(silent.provide()) == {"language_model", *TOWERS}
    with pytest.raises(SpecError, match="MS434"):
        provider.provide(vp_stage=0)


@pytest.mark.parametrize("assembly", ["expanded", "llava"])
@pytest.mark.parametrize("first", [True, False])
def test_the_inventory_is_what_the_model_holds(checkpoints: dict[str, Path], assembly: str, first: bool) -> None:
    provider = Provider.from_hf(
        checkpoints["omni"], backend="reference", assembly=assembly, moe_grouped_gemm=False,
        pipeline_model_parallel_size=1 if first else 2,
    )  # fmt: skip
    (stage,) = inventory_of(provider, pp_rank=0 if first else 1).stages
    one = Provider.from_hf(checkpoints["omni"], backend="reference", assembly=assembly, moe_grouped_gemm=False)
    if first:
        model: Any = one.provide()
        held = {n: tuple(v.shape) for n, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
        assert {t.name: t.shape for t in stage.tensors} == held
    else:
        names = {t.name.removeprefix("llava_model.").partition(".")[0] for t in stage.tensors}
        assert names == {"language_model"}


@pytest.mark.parametrize(
    ("flag", "frozen"),
    [
        ("freeze_language_model", "language_model"),
        ("freeze_vision_model", "vision_model"),
        ("freeze_vision_projection", "vision_projection"),
        ("freeze_sound_encoder", "sound_model"),
        ("freeze_sound_projection", "sound_projection"),
    ],
)
@pytest.mark.parametrize("assembly", ["expanded", "llava"])
def test_what_is_frozen_takes_no_gradients(checkpoints: dict[str, Path], assembly: str, flag: str, frozen: str) -> None:
    provider = Provider.from_hf(checkpoints["omni"], backend="reference", assembly=assembly, **{flag: True})
    model: Any = provider.provide()
    still = {name: value.requires_grad for name, value in model.named_parameters()}
    for name, takes in still.items():
        assert takes == (name.removeprefix("llava_model.").partition(".")[0] != frozen), name


def test_other_sizes_than_the_config_of_the_tower_are_built(checkpoints: dict[str, Path]) -> None:
    provider = Provider.from_hf(checkpoints["omni"], backend="reference")
    provider.set_config("vision", num_layers=1)
    provider.vision_proj_ffn_hidden_size = 64
    model: Any = provider.provide()
    assert len(model.vision_model.decoder.layers) == 1
    assert model.vision_projection.encoder.linear_fc1.weight.shape[0] == 64
    back = provider.to_hf_config()
    assert back["projector_hidden_size"] == 64
    assert json.dumps(Provider.from_hf(checkpoints["omni"]).to_hf_config()) == json.dumps(
        read_config(checkpoints["omni"] / "config.json")
    )
