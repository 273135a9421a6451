"""`mapspec new`: variants as users bring them, begun without a line of Python; what it cannot know it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from variants import VARIANTS, change_checkpoint, write_variant

from mapspec.authoring.draft import Draft
from mapspec.authoring.similar import alike, words
from mapspec.mapping import compile_mapping

type Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAPSPEC_PATH", str(tmp_path))
    return tmp_path


def begin(run: Run, source: Path) -> tuple[int, str, str]:
    return run("new", "acme", "--like", "nemotron_h", "--config", str(source), "--keys", str(source))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_is_mapped_and_lint_finds_nothing(
    name: str, tiny: Callable[[str], Path], here: Path, run: Run
) -> None:
    source = write_variant(name, tiny, here / "source")
    code, out, err = begin(run, source)
    assert (code, err) == (0, ""), out + err
    assert f"all {len(load_file(source / 'model.safetensors'))} tensors of the checkpoint are mapped" in out
    assert "lint: no findings" in out
    assert run("fmt", "--check")[0] == 0
    text = (here / "mappings" / "acme.yaml").read_text(encoding="utf-8")
    assert text.count("# guess: ") >= out.count("  mappings/acme.yaml:") > 0


@pytest.mark.parametrize(
    "name", ["everything", "bias", "mtp_nested", "mtp_keys", "gate_above", "fused_qkv", "cut_in_proj"]
)
def test_variants_go_there_and_back(name: str, tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    """Found by the architecture, with run_config.yaml by the new provider, bit for bit the same on return."""
    source = write_variant(name, tiny, here / "source")
    assert begin(run, source)[0] == 0
    assert run("lint")[:2] == (0, "2 specs checked, no findings\n")
    code, out, err = run("convert", str(source), "megatron", "--progress", "none")
    assert code == 0, err
    assert list((here / "megatron").rglob("run_config.yaml"))
    assert run("convert", "megatron", "again", "--progress", "none")[0] == 0
    code, out, _ = run("verify", str(source), "again")
    assert code == 0
    assert "equal, bit for bit" in out


def test_tensors_arrive_where_they_belong(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    """A round trip would survive a swap, so: gate above up, norms and biases of queries with queries."""
    source = write_variant("everything", tiny, here / "source")
    assert begin(run, source)[0] == 0
    mapping = compile_mapping("mappings/acme.yaml", source / "config.json")
    hf = {name: tensor.float().numpy() for name, tensor in load_file(source / "model.safetensors").items()}
    layer = "transformer.blocks.1.mixer.shared_expert"
    fc1 = mapping.hf_to_megatron("decoder.layers.1.mlp.shared_experts.linear_fc1.weight", hf)
    assert np.array_equal(fc1, np.concatenate([hf[f"{layer}.gate_proj.weight"], hf[f"{layer}.up_proj.weight"]]))
    norm = mapping.hf_to_megatron("decoder.layers.2.self_attention.q_layernorm.weight", hf)
    assert np.array_equal(norm, hf["transformer.blocks.2.mixer.q_norm.weight"])
    qkv = mapping.hf_to_megatron("mtp.layers.0.mtp_model_layer.layers.0.self_attention.linear_qkv.weight", hf)
    assert np.array_equal(qkv[64:80], hf["mtp.layers.0.mixer.key.weight"][:16])
    assert np.array_equal(qkv[80:96], hf["mtp.layers.0.mixer.value.weight"][:16])


def test_what_is_written(tiny: Callable[[str], Path], here: Path, run: Run, golden: Callable[[str, str], None]) -> None:
    source = write_variant("everything", tiny, here / "source")
    _, out, _ = begin(run, source)
    golden("authoring/everything.txt", out)
    for kind in ("mappings", "providers"):
        golden(f"authoring/everything.{kind}.yaml", (here / kind / "acme.yaml").read_text(encoding="utf-8"))
    reference = here / "tests" / "configs" / "acme.json"
    assert reference.read_text(encoding="utf-8") == (source / "config.json").read_text(encoding="utf-8")


# --- what it cannot know ---------------------------------------------------------------------------------------


def test_an_unknown_tensor_is_named_with_the_line_to_write(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = here / "source"
    shutil.copytree(tiny("dense"), source)
    change_checkpoint(
        source,
        lambda t: {**t, **{f"backbone.layers.{i}.mixer.mystery.weight": torch.zeros(7, 5) for i in (0, 2)}},
        {},
    )
    code, out, _ = begin(run, source)
    assert code == 1
    assert "no rule takes 2 tensors of shape [7, 5]: `backbone.layers.{0,2}.mixer.mystery.weight`" in out
    assert "write below `blocks.mamba.tensors` here a rule with `hf: mixer.mystery.weight`" in out
    path = here / "mappings" / "acme.yaml"
    path.write_text(
        path.read_text(encoding="utf-8")
        + "dims: {five: {size: 5}, seven: {size: 7, split: tensor}}\n"
        + "blocks:\n  mamba:\n    tensors:\n"
        + "      mixer.mystery.weight: {hf: mixer.mystery.weight, shape: [seven, five]}\n",
        encoding="utf-8",
    )
    assert run("lint")[0] == 0
    assert run("plan", str(source))[0] == 0


def test_what_no_tensor_fits_is_named_with_the_line_to_write(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = here / "source"
    shutil.copytree(tiny("dense"), source)
    change_checkpoint(source, lambda t: {n: x for n, x in t.items() if not n.endswith("mixer.norm.weight")}, {})
    code, out, _ = begin(run, source)
    assert code == 1
    assert "the checkpoint has nothing for `mixer.norm.weight` of shape [96], which 2 tensors of the parent are" in out
    assert "write `blocks.mamba.tensors.mixer.norm.weight: null`" in out
    path = here / "mappings" / "acme.yaml"
    edit = "blocks:\n  mamba:\n    tensors:\n      mixer.norm.weight: null\n"
    path.write_text(path.read_text(encoding="utf-8") + edit, encoding="utf-8")
    assert run("plan", str(source))[0] == 0


def test_a_new_kind_of_layer_is_for_the_author(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = here / "source"
    shutil.copytree(tiny("moe"), source)
    change_checkpoint(source, lambda t: t, {"hybrid_override_pattern": "MG*-"})
    code, out, _ = begin(run, source)
    assert code == 1
    assert "MS403" in out
    assert "a new kind is added under `kinds`" in out


def test_ambiguous_names_are_called_so(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = write_variant("renamed", tiny, here / "source")
    assert begin(run, source)[0] == 0
    text = " ".join((here / "mappings" / "acme.yaml").read_text(encoding="utf-8").replace("#", "").split())
    assert (
        "`mixer.k_proj.weight` is gone, and this has its shape [32, 64] in the same 2 places; so has `mixer.value"
        in text
    )


def test_without_a_checkpoint_the_config_decides(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = write_variant("renamed_config", tiny, here / "source")
    code, out, _ = run("new", "acme", "--like", "nemotron_h", "--config", str(source / "config.json"))
    assert code == 0
    assert "no tensors were looked at" in out
    assert "hf.mlp_intermediate_size" in (here / "mappings" / "acme.yaml").read_text(encoding="utf-8")


def test_a_list_of_keys_does_as_well(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = write_variant("prefix", tiny, here / "source")
    (here / "keys.json").write_text(run("keys", str(source), "--full", "--format", "json")[1], encoding="utf-8")
    code, out, _ = run("new", "acme", "--like", "nemotron_h", "--config", str(source), "--keys", "keys.json")
    assert code == 0
    assert "all 95 tensors" in out


def test_unknown_config_keys_get_a_place_and_keep_their_value(
    tiny: Callable[[str], Path], here: Path, run: Run
) -> None:
    source = here / "source"
    shutil.copytree(tiny("dense"), source)
    config = {"rms_norm_epsilon": 1e-5, "norm_eps": None, "layer_norm_epsilon": None, "window": 7, "qk_clip": True}
    change_checkpoint(source, lambda t: t, config)
    assert begin(run, source)[0] == 0
    text = (here / "providers" / "acme.yaml").read_text(encoding="utf-8")
    assert "rms_norm_epsilon:\n        dialects: []" in text
    assert "  qk_clip:\n    hf: qk_clip" in text  # a field of Megatron-Core's config
    path = here / "tests" / "configs" / "acme.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "window": 8}))
    assert "MS424" in run("lint", "providers")[1]


# --- what is refused -------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    source = write_variant("prefix", tiny, here / "source")
    (here / "providers").mkdir()
    (here / "providers" / "acme.yaml").write_text("mine")
    code, _, err = begin(run, source)
    assert code == 2
    assert "MS862" in err
    assert not (here / "mappings").exists()
    assert (here / "providers" / "acme.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["nemotron_h", "a-b", "3x"])
def test_names_that_are_none_or_taken(name: str, tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    code, _, err = run("new", name, "--like", "nemotron_h", "--config", str(tiny("dense")), "-o", "fresh")
    assert code == 2
    assert "MS862" in err


def test_megatron_checkpoints_are_no_evidence(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    run("convert", str(tiny("dense")), "megatron", "--progress", "none")
    code, _, err = run("new", "acme", "--like", "nemotron_h", "--config", str(tiny("dense")), "--keys", "megatron")
    assert code == 2
    assert "MS865" in err


def test_an_architecture_of_the_parent_stays_with_it(tiny: Callable[[str], Path], here: Path, run: Run) -> None:
    """Two mappings for one architecture would leave every command undecided."""
    source = here / "source"
    shutil.copytree(tiny("dense"), source)
    change_checkpoint(source, lambda t: t, {"architectures": ["NemotronHForCausalLM"]})
    assert begin(run, source)[0] == 0
    text = (here / "mappings" / "acme.yaml").read_text(encoding="utf-8")
    assert "architectures" not in text
    assert "has to be named with --spec" in text
    assert run("plan", str(source))[0] == 0


# --- pieces ----------------------------------------------------------------------------------------------------


def test_names_are_compared_by_words() -> None:
    assert words("mixer.qProj_weight2") == ("mixer", "q", "proj", "weight2")
    assert alike("a.b", "a.b") == 1
    assert alike("mixer.o_proj.weight", "mixer.out_proj.weight") > alike("mixer.o_proj.weight", "mixer.query.weight")


def test_drafts_are_yaml_whatever_they_hold(here: Path) -> None:
    from mapspec.text import parse_yaml

    data = {
        "a": {"b: c": ["x{y}", "1.0", "0.19.2", "true", "- z", "#", "", "a #b"], "n": None, "t": True},
        "objects": [{"names": ["m" * 60, "n" * 60], "when": "a == 'b'"}, {"names": ["{x}.y"]}],
        "wide": ["w" * 70, "v" * 70],
    }
    assert parse_yaml(Draft(data, notes=("note",)).text(), "x").data == data
