"""`mapspec convert` from the outside: options that work, and bad input that is named and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mapspec.bind import Choices
from mapspec.cli import app
from mapspec.convert import Output, convert
from mapspec.errors import CheckpointError, ConvertError, MapspecError, PlanError, SpecError
from mapspec.io.hf_folder import open_hf
from mapspec.io.torch_dist import open_torch_dist
from mapspec.mapping import compile_mapping
from mapspec.prepare import Request, prepare
from mapspec.render.plan import render_plan
from mapspec.verify import verify

CONFIGS = Path(__file__).parent / "configs"


def write_hf(folder: Path, config: dict[str, Any], flavours: dict[str, str] | None = None, shards: int = 1) -> Path:
    """A checkpoint with random values for every tensor that the mapping expects of the config."""
    folder.mkdir(parents=True)
    inventory = compile_mapping("nemotron_h", config, Choices(flavours or {})).table.inventory("hf")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(decl.shape, generator=generator).to(getattr(torch, decl.dtype))
        for name, decl in inventory.items()
    }
    if config.get("tie_word_embeddings"):
        embedding = next(name for name in tensors if name.endswith("embeddings.weight"))
        tensors["lm_head.weight"] = tensors[embedding].clone()
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        members = names[i::shards]
        save_file({name: tensors[name] for name in members}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(members, file))
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def config_named(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **changes}


def there_and_back(home: Path, shards: int, **beside: str) -> Path:
    """`hf` in that many shards and with these files, `megatron` converted from it, and `back` from that."""
    write_hf(home / "hf", small(), shards=shards)
    for name, text in beside.items():
        (home / "hf" / f"{name}.json").write_text(text)
    convert(Request(home / "hf"), Output(home / "megatron"))
    convert(Request(home / "megatron"), Output(home / "back"))
    return home


def small(**changes: Any) -> dict[str, Any]:
    """Mamba, attention, MoE and MLP, without biases and MTP."""
    plain = {"use_bias": False, "attention_bias": False, "mlp_bias": False, "num_nextn_predict_layers": 0}
    return config_named("nemotron-h-every-option", **{**plain, **changes})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", small())


# --- what works ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flavours"),
    [
        ("nemotron-h-every-option", {}),
        ("nemotron-h-every-option", {"expert_biases": "with"}),
        ("nemotron-h-aliases", {}),
        ("nemotron-h-aliases", {"names": "native"}),
    ],
)
def test_every_option_goes_there_and_back(tmp_path: Path, name: str, flavours: dict[str, str]) -> None:
    """Biases wherever the config asks for them, Mamba and dense layers within MTP, tied embeddings, other spellings."""
    source = write_hf(tmp_path / "hf", config_named(name), flavours, shards=3)
    # Biases on Mamba and shared experts are more than any Megatron-Core builds, so no provider describes the model.
    request = Request(source, run_config=False)
    done = convert(request, Output(tmp_path / "megatron"))
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings
    assert not verify(source, tmp_path / "megatron").findings
    assert open_hf(source).shard_of == open_hf(tmp_path / "back").shard_of
    assert done.prepared.plan.steps == () or name == "nemotron-h-aliases"


@pytest.mark.parametrize("norms", ["fused", "separate"])
def test_flavours_are_remembered(source: Path, tmp_path: Path, norms: str) -> None:
    convert(Request(source, flavours={"norms": norms}), Output(tmp_path / "megatron"))
    keys = open_torch_dist(tmp_path / "megatron").tensors
    assert ("decoder.layers.0.norm.weight" in keys) == (norms == "separate")
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings


def test_two_layouts_of_the_same_weights_are_equal(source: Path, tmp_path: Path) -> None:
    """Published names with one tensor per expert, and transformers' own names with the experts stacked."""
    convert(Request(source), Output(tmp_path / "megatron"))
    convert(Request(tmp_path / "megatron", flavours={"names": "native"}), Output(tmp_path / "native"))
    assert "model.layers.2.mixer.experts.up_proj" in open_hf(tmp_path / "native").tensors
    assert not verify(source, tmp_path / "native").findings
    edit_tensors(lambda t: t["model.layers.2.mixer.experts.up_proj"][3, 5].neg_())(tmp_path / "native")
    (finding,) = verify(source, tmp_path / "native").findings
    assert "`decoder.layers.2.mlp.experts.experts.linear_fc1.weight` differs first at [3, 5, 0]" in finding.message


def test_older_spellings_are_read(source: Path, tmp_path: Path) -> None:
    """The singular `embedding` of some transformers releases, and the `final_layernorm` of GPT stacks."""
    edit_tensors(lambda t: t.update({"backbone.embedding.weight": t.pop(EMBEDDING)}))(source)
    convert(Request(source, flavours={"final_norm_name": "final_layernorm"}), Output(tmp_path / "megatron"))
    keys = open_torch_dist(tmp_path / "megatron").tensors
    assert "decoder.final_layernorm.weight" in keys
    assert "decoder.final_norm.weight" not in keys
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings


def test_fp32_islands_stay_fp32(source: Path, tmp_path: Path) -> None:
    """A_log and router weights that a checkpoint keeps in fp32 are not narrowed on either way."""
    islands = ("backbone.layers.0.mixer.A_log", "backbone.layers.2.mixer.gate.weight")
    edit_tensors(lambda t: t.update({name: t[name].float() + 1e-6 for name in islands}))(source)
    done = convert(Request(source), Output(tmp_path / "megatron"))
    assert done.prepared.plan.steps == ()
    assert open_torch_dist(tmp_path / "megatron").tensors["decoder.layers.0.mixer.A_log"].dtype == "float32"
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings


def test_a_flavour_that_would_fit_is_named(source: Path, tmp_path: Path) -> None:
    convert(Request(source, flavours={"norms": "separate"}), Output(tmp_path / "megatron"))
    (tmp_path / "megatron/iter_0000000/mapspec.json").unlink()
    with pytest.raises(PlanError) as caught:
        prepare(Request(tmp_path / "megatron")).require()
    assert all("--flavour norms=separate" in (d.help or "") for d in caught.value.diagnostics)


def test_shards_of_a_given_size(source: Path, tmp_path: Path) -> None:
    convert(Request(source), Output(tmp_path / "megatron"))
    shutil.rmtree(tmp_path / "megatron/iter_0000000/hf")
    request = Request(tmp_path / "megatron", reference=source / "config.json")
    convert(request, Output(tmp_path / "back", max_shard_bytes=50_000))
    back = open_hf(tmp_path / "back")
    assert len(back.files) > 3
    assert not verify(source, tmp_path / "back").findings


def test_casts_are_asked_for_listed_and_spare_the_router(source: Path, tmp_path: Path) -> None:
    done = convert(Request(source, dtype="float32"), Output(tmp_path / "megatron"))
    assert {(s.kind, s.detail) for s in done.prepared.plan.steps} == {("cast", "bfloat16 -> float32")}
    convert(Request(tmp_path / "megatron", dtype="bfloat16"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings
    narrow = convert(Request(source, dtype="float16"), Output(tmp_path / "fp16"))
    written = {t.dtype for t in open_torch_dist(tmp_path / "fp16").tensors.values()}
    assert written == {"float16", "float32"}
    assert all("expert_bias" not in n for s in narrow.prepared.plan.steps for n in s.tensors)
    record = json.loads((tmp_path / "fp16/iter_0000000/mapspec.json").read_text())
    assert record["value_steps"][0]["detail"] == "bfloat16 -> float16"


def test_a_model_without_its_mtp_blocks(tmp_path: Path) -> None:
    """transformers drops mtp.* on save and leaves the config as it was; the user has to say that this is meant."""
    config = small(num_nextn_predict_layers=1)
    source = write_hf(tmp_path / "hf", {**config, "num_nextn_predict_layers": 0})
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError) as caught:
        prepare(Request(source)).require()
    assert {d.code for d in caught.value.diagnostics} == {"MS511"}
    assert any("everything in mount `mtp_layers` is missing" in d.message for d in caught.value.diagnostics)
    convert(Request(source, sets=["num_nextn_predict_layers=0"]), Output(tmp_path / "megatron"))
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert open_hf(tmp_path / "back").config["num_nextn_predict_layers"] == 0
    assert not verify(source, tmp_path / "back").findings


def test_a_repeated_block_is_one_block(tmp_path: Path) -> None:
    config = small(num_nextn_predict_layers=2, mtp_use_repeated_layer=True)
    source = write_hf(tmp_path / "hf", config)
    convert(Request(source), Output(tmp_path / "megatron"))
    keys = open_torch_dist(tmp_path / "megatron").tensors
    assert "mtp.layers.0.eh_proj.weight" in keys
    assert "mtp.layers.1.eh_proj.weight" not in keys
    del config["mtp_use_repeated_layer"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError) as caught:
        prepare(Request(source)).require()
    assert all("mtp_use_repeated_layer=true" in (d.help or "") for d in caught.value.diagnostics)


def test_tied_copies_are_dropped_only_if_equal(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", small(tie_word_embeddings=False))
    tensors = load_file(source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(small(tie_word_embeddings=True)))
    with pytest.raises(ConvertError) as caught:
        convert(Request(source), Output(tmp_path / "megatron"))
    assert caught.value.diagnostics[0].code == "MS723"
    assert not (tmp_path / "megatron").exists()
    tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    done = convert(Request(source), Output(tmp_path / "megatron"))
    assert [s.kind for s in done.prepared.plan.steps] == ["tied"]
    assert "output_layer.weight" not in open_torch_dist(tmp_path / "megatron").tensors
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings


def test_code_travels_with_what_it_imports(source: Path, tmp_path: Path) -> None:
    (source / "modeling.py").write_text("from .parts.tower import Tower\nfrom .gone import nothing\n")
    (source / "parts").mkdir()
    (source / "parts" / "config.json").write_text("{}")  # looks like another checkpoint
    (source / "parts" / "tower.py").write_text("from .sizes import WIDTH\n")
    (source / "parts" / "sizes.py").write_text("WIDTH = 1\n")
    code = ("modeling.py", "parts/sizes.py", "parts/tower.py")
    done = convert(Request(source), Output(tmp_path / "megatron"))
    assert [name for name in done.carried if name.endswith(".py")] == list(code)
    assert "`modeling.py` imports `.gone`, but `gone.py` is not there" in done.prepared.notes
    assert "note      `modeling.py` imports `.gone`" in render_plan(done.prepared)
    back = convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert [name for name in back.carried if name.endswith(".py")] == list(code)
    for name in code:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_what_lies_in_the_result(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    (source / "code").mkdir()
    (source / "code/modeling.py").write_text("pass\n")
    convert(Request(source), Output(tmp_path / "megatron"))
    root = tmp_path / "megatron"
    assert sorted(p.name for p in root.iterdir()) == [
        "iter_0000000",
        "latest_checkpointed_iteration.txt",
        "latest_train_state.pt",
    ]
    state = torch.load(root / "latest_train_state.pt", weights_only=True)
    assert {name: (value.dtype, value.item()) for name, value in state.items()} == {
        "step": (torch.int32, 0),
        "consumed_train_samples": (torch.int32, 0),
        "skipped_train_samples": (torch.int32, 0),
        "consumed_valid_samples": (torch.int32, 0),
        "floating_point_operations_so_far": (torch.float64, 0.0),
        "do_train": (torch.bool, False),
        "do_valid": (torch.bool, False),
        "do_test": (torch.bool, False),
    }
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "0"
    home = root / "iter_0000000"
    names = {p.name for p in home.iterdir()}
    assert {
        ".metadata",
        "metadata.json",
        "common.pt",
        "run_config.yaml",
        "train_state.pt",
        "mapspec.json",
        "hf",
    } <= names
    assert json.loads((home / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    record = json.loads((home / "mapspec.json").read_text())
    assert record["mapping"]["name"] == "nemotron_h"
    assert record["value_steps"] == []
    convert(Request(root), Output(tmp_path / "back"))
    assert (tmp_path / "back/code/modeling.py").read_text() == "pass\n"
    assert (tmp_path / "back/tokenizer.json").exists()
    convert(Request(source), Output(tmp_path / "released", iteration=None))
    assert (tmp_path / "released/latest_checkpointed_iteration.txt").read_text() == "release"
    assert (tmp_path / "released/release/.metadata").exists()


def test_a_checkpoint_with_run_config_alone_finds_its_way_back(source: Path, tmp_path: Path) -> None:
    convert(Request(source), Output(tmp_path / "megatron"))
    home = tmp_path / "megatron/iter_0000000"
    shutil.rmtree(home / "hf")
    (home / "mapspec.json").unlink()
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings
    (home / "run_config.yaml").unlink()
    with pytest.raises(CheckpointError) as caught:
        prepare(Request(tmp_path / "megatron"))
    assert caught.value.diagnostics[0].code == "MS722"


def test_passthrough_travels_and_comes_back(tmp_path: Path) -> None:
    """A variant that carries a tensor Megatron has no place for, and leaves another behind."""
    spec = tmp_path / "variant.yaml"
    spec.write_text(
        "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: variant\n  version: 1.0.0\nextends: nemotron_h@1\n"
        "passthrough:\n  backbone.stats.**: statistics that only the Hugging Face side uses\n"
        'ignore_hf:\n  "backbone.layers.{layer}.junk": left over from an old training script\n'
    )
    source = write_hf(tmp_path / "hf", small())
    tensors = load_file(source / "model.safetensors")
    extra = {"backbone.stats.mean": torch.arange(6.0), "backbone.stats.count": torch.tensor(7)}
    save_file({**tensors, **extra, "backbone.layers.0.junk": torch.ones(2)}, source / "model.safetensors")
    with pytest.raises(PlanError, match="3 tensors that no rule maps"):
        prepare(Request(source)).require()
    request = Request(source, spec=str(spec))
    done = convert(request, Output(tmp_path / "megatron"))
    assert {name for name, _ in done.prepared.plan.coverage.passthrough} == set(extra)
    assert [name for name, _ in done.prepared.plan.coverage.ignored] == ["backbone.layers.0.junk"]
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    back = load_file(tmp_path / "back/model.safetensors")
    assert torch.equal(back["backbone.stats.mean"], extra["backbone.stats.mean"])
    assert back["backbone.stats.count"].item() == 7
    assert set(back) == {*tensors, *extra}


def test_a_subtree_is_taken_as_it_is(tmp_path: Path) -> None:
    """A rule that ends in `**` maps what the checkpoint holds there, but for what is passed through."""
    spec = tmp_path / "variant.yaml"
    spec.write_text(
        "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: variant\n  version: 1.0.0\nextends: nemotron_h@1\n"
        "roles:\n  anything:\n    dtype: \"'float32'\"\n    accepts: [float32, bfloat16, int64]\n"
        "    keep: the tower keeps the dtypes it was trained with\n"
        "blocks:\n  tower:\n    tensors:\n      sound_model.encoder.**:\n        hf: sound_encoder.**\n"
        "        role: anything\n"
        "mounts:\n  tower:\n    blocks: [tower]\n"
        "passthrough:\n  sound_encoder.window: a constant that only the Hugging Face side keeps\n"
    )
    source = write_hf(tmp_path / "hf", small())
    extra = {
        "sound_encoder.window": torch.ones(3),
        "sound_encoder.layers.0.conv.weight": torch.randn(4, 2, 3),
        "sound_encoder.layers.0.norm.num_batches_tracked": torch.tensor(12),
    }
    save_file({**load_file(source / "model.safetensors"), **extra}, source / "model.safetensors")
    convert(Request(source, spec=str(spec)), Output(tmp_path / "megatron"))
    keys = open_torch_dist(tmp_path / "megatron").tensors
    assert keys["sound_model.encoder.layers.0.conv.weight"].shape == (4, 2, 3)
    assert keys["sound_model.encoder.layers.0.norm.num_batches_tracked"].dtype == "int64"
    assert "sound_model.encoder.window" not in keys
    convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert not verify(source, tmp_path / "back").findings
    assert not verify(source, tmp_path / "megatron", Request(source, spec=str(spec))).findings


# --- bad input -------------------------------------------------------------------------------------------------


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def lie_about_size(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 10**9) + data[8:])


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


EMBEDDING = "backbone.embeddings.weight"
BIAS = "backbone.layers.2.mixer.gate.e_score_correction_bias"
EXPERT = "backbone.layers.2.mixer.experts.1.up_proj.weight"
Q_NORM = "backbone.layers.0.mixer.q_norm.weight"

BAD: dict[str, tuple[Callable[[Path], None], str, int, str]] = {
    "no-config": (lambda f: (f / "config.json").unlink(), "MS602", 2, "config.json"),
    "config-not-json": (lambda f: (f / "config.json").write_text("{'a'"), "MS603", 2, "config.json"),  # type: ignore[dict-item]
    "unknown-architecture": (
        edit_config(lambda c: c.update(architectures=["NemotronHForCausalLLM"])), "MS409", 2, "NemotronHForCausalLM",
    ),
    "no-architecture": (edit_config(lambda c: c.pop("architectures")), "MS409", 2, "--spec"),
    "wrong-layer-count": (edit_config(lambda c: c.update(num_hidden_layers=5)), "MS405", 2, "`num_hidden_layers` is 5"),
    "two-patterns": (
        edit_config(lambda c: c.update(layers_block_type=["mamba", "moe", "moe", "mlp"])), "MS404", 2, "at layer 1",
    ),
    "unknown-symbol": (edit_config(lambda c: c.update(hybrid_override_pattern="M*X-")), "MS403", 2, "`X` at position"),
    "no-hidden-size": (edit_config(lambda c: c.pop("hidden_size")), "MS401", 2, "`hidden_size`"),
    "heads-do-not-divide": (edit_config(lambda c: c.update(num_key_value_heads=3)), "MS402", 2, "divide evenly"),
    "missing-tensor": (edit_tensors(lambda t: t.pop(EMBEDDING)), "MS511", 1, EMBEDDING),
    "missing-expert": (edit_tensors(lambda t: t.pop(EXPERT)), "MS511", 1, "experts.1.up_proj"),
    "extra-tensor": (edit_tensors(lambda t: t.update({Q_NORM: torch.ones(4)})), "MS512", 1, "q_norm"),
    "wrong-shape": (edit_tensors(lambda t: t.update({EMBEDDING: torch.ones(250, 64)})), "MS513", 1, "[250, 64]"),
    "transposed": (
        edit_tensors(lambda t: t.update({"lm_head.weight": torch.ones(64, 251)})), "MS513", 1, "[64, 251]",
    ),
    "narrow-router-bias": (
        edit_tensors(lambda t: t.update({BIAS: t[BIAS].bfloat16()})), "MS514", 1, "--cast router_bias=float32",
    ),
    "integer-weights": (
        edit_tensors(lambda t: t.update({EMBEDDING: torch.ones(251, 64, dtype=torch.int32)})), "MS514", 1, "int32",
    ),
    "mixed-experts": (edit_tensors(lambda t: t.update({EXPERT: t[EXPERT].float()})), "MS515", 1, "different dtypes"),
    "truncated": (truncate, "MS", 2, "model.safetensors"),
    "header-lies": (lie_about_size, "MS61", 2, "model.safetensors"),
    "empty-folder": (lambda f: [p.unlink() for p in f.iterdir()], "MS601", 2, "checkpoint"),  # type: ignore[dict-item,return-value]
    "quantised": (
        edit_tensors(lambda t: t.update({EXPERT: t[EXPERT].to(torch.float8_e4m3fn)})), "MS514", 1, "BF16 release",
    ),
    "unknown-config-key": (edit_config(lambda c: c.update(moe_latent_sizes=3)), "MS4", 2, "moe_latent_sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_nothing(source: Path, tmp_path: Path, case: str) -> None:
    spoil, code, exit_code, says = BAD[case]
    spoil(source)
    before = listing(tmp_path)
    with pytest.raises(MapspecError) as caught:
        convert(Request(source), Output(tmp_path / "out"))
    assert caught.value.exit_code == exit_code
    shown = [d for d in caught.value.diagnostics if d.code.startswith(code)]
    assert shown, [d.one_line() for d in caught.value.diagnostics]
    text = " ".join(f"{d.one_line()} {d.help} {d.hint}" for d in shown)
    assert says in text
    assert listing(tmp_path) == before


def test_a_cast_settles_a_narrow_router_bias(source: Path, tmp_path: Path) -> None:
    edit_tensors(lambda t: t.update({BIAS: t[BIAS].bfloat16()}))(source)
    done = convert(Request(source, casts={"router_bias": "float32"}), Output(tmp_path / "out"))
    assert [(s.kind, s.detail) for s in done.prepared.plan.steps] == [("cast", "bfloat16 -> float32")]


def test_destination_that_exists_is_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(ConvertError) as caught:
        convert(Request(source), Output(out))
    assert caught.value.diagnostics[0].code == "MS710"
    assert (out / "precious").read_text() == "mine"
    convert(Request(source), Output(out, overwrite=True))
    assert not (out / "precious").exists()
    assert listing(tmp_path) == ["hf", "out"]


def test_no_space_left(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(usage.total, usage.total - 1000, 1000))
    with pytest.raises(ConvertError, match="MS701"):
        convert(Request(source), Output(tmp_path / "out"))
    assert listing(tmp_path) == ["hf"]


def test_source_already_on_that_side(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="already is a Hugging Face checkpoint"):
        prepare(Request(source, to="hf"))


def test_unknown_options(source: Path) -> None:
    with pytest.raises(SpecError) as caught:
        prepare(Request(source, flavours={"norm": "fused"}))
    assert caught.value.diagnostics[0].hint == "norms"
    with pytest.raises(SpecError) as caught:
        prepare(Request(source, flavours={"norms": "seperate"}))
    assert caught.value.diagnostics[0].hint == "separate"
    with pytest.raises(SpecError, match="MS411"):
        prepare(Request(source, dtype="bf16"))
    with pytest.raises(SpecError, match="MS411"):
        prepare(Request(source, sets=["hidden_size"]))


def test_padding_that_the_mapping_has_no_place_for(source: Path, tmp_path: Path) -> None:
    spec = tmp_path / "variant.yaml"
    spec.write_text(
        "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: variant\n  version: 1.0.0\nextends: nemotron_h@1\n"
        "dims:\n  vocab:\n    pad: null\n"
    )
    with pytest.raises(SpecError, match="MS406 no dimension of this mapping can be padded"):
        prepare(Request(source, spec=str(spec), padded_vocab_size=256))


class Exploit:
    """Pickles to a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_an_unexpected_pickle_is_not_executed(source: Path, tmp_path: Path) -> None:
    convert(Request(source), Output(tmp_path / "megatron"))
    metadata = tmp_path / "megatron/iter_0000000/.metadata"
    metadata.write_bytes(pickle.dumps(Exploit(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match="MS653"):
        convert(Request(tmp_path / "megatron"), Output(tmp_path / "back"))
    assert listing(tmp_path) == ["hf", "megatron"]


def test_a_flipped_bit_is_found_and_located(source: Path, tmp_path: Path) -> None:
    convert(Request(source), Output(tmp_path / "megatron"))
    home = tmp_path / "megatron/iter_0000000"
    chunk = open_torch_dist(home).tensors["decoder.layers.1.self_attention.linear_qkv.weight"].chunks[0]
    path = home / chunk.file
    data = bytearray(path.read_bytes())
    data[chunk.offset + 2 * 64 * 70] ^= 1  # row 70 of [192, 64] in bf16: the first key head
    path.write_bytes(data)
    done = verify(source, tmp_path / "megatron")
    (finding,) = done.findings
    assert finding.code == "MS803"
    assert "`backbone.layers.1.mixer.k_proj.weight` differs first at [6, 0]" in finding.message


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    run = CliRunner()
    done = run.invoke(
        app, ["convert", str(source), str(tmp_path / "megatron"), "--progress", "none", "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["format_version"] == "1.0"
    plan = json.loads(run.invoke(app, ["plan", str(source), "--format", "json"]).stdout)
    assert plan["kind"] == "plan"
    assert len(plan["targets"]) == json.loads(done.stdout)["tensors_written"]
    text = run.invoke(app, ["plan", str(source)]).stdout
    assert "every byte is copied as it is" in text
    assert "backbone.layers.2.mixer.experts.{0...3}.up_proj.weight" in text
    shown = run.invoke(app, ["show", "nemotron_h", "--config", str(source), "--format", "md"]).stdout
    assert "| Megatron | Hugging Face |" in shown
    where = run.invoke(app, ["resolve", "nemotron_h", EMBEDDING, "--checkpoint", str(tmp_path / "megatron")]).stdout
    assert "bytes" in where
    assert "nemotron_h.yaml:" in where
    equal = run.invoke(app, ["verify", str(source), str(tmp_path / "megatron")])
    assert (equal.exit_code, "equal, bit for bit" in equal.stdout) == (0, True)
    assert run.invoke(app, ["rule", "MS101"]).exit_code == 0
