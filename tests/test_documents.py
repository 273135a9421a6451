"""Specs made of specs: what `extends` merges, what `include` mounts elsewhere, and where each part is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapspec.bind import Choices, bind
from mapspec.choose import detect_flavours
from mapspec.coverage import cover
from mapspec.diagnostics import Diagnostic
from mapspec.documents import available, find_spec, merge, read_mapping
from mapspec.errors import SpecError
from mapspec.link import link, link_spec
from mapspec.prove import prove
from mapspec.table import Table, build_table
from mapspec.tensors import StoredTensor
from mapspec.text import Tree, parse_yaml

HERE = Path(__file__).parent
BASE = HERE / "lint" / "base.yaml"
TINY = json.loads((HERE / "lint" / "configs" / "tiny.json").read_text(encoding="utf-8"))
HEAD = "apiVersion: mapspec/v1\nkind: Mapping\nmetadata: {name: variant, version: 1.0.0}\n"


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((HERE / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def table(path: Path, values: dict[str, Any], choices: Choices | None = None) -> Table:
    made = build_table(bind(link(read_mapping(path)), values, choices))
    assert not prove(made).findings
    return made


# --- text ------------------------------------------------------------------------------------------------------

SCALARS = st.integers(-5, 5) | st.booleans() | st.sampled_from(["x", "hf.a * 2", "no", "1.0.0"])
TREES = st.recursive(
    SCALARS | st.lists(SCALARS, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from("abcd"), TREES, min_size=1, max_size=4)


def tree(data: dict[str, Any], path: str) -> Tree:
    """JSON is YAML; with every value on a line of its own, spans tell values apart."""
    return parse_yaml(json.dumps(data, indent=1), path)


@given(DOCUMENTS)
def test_text_becomes_the_data_it_says(data: dict[str, Any]) -> None:
    read = tree(data, "x.yaml")
    assert read.data == data
    for path, span in read.values.items():
        assert span.path == "x.yaml"
        here: Any = data
        for part in path:
            here = here[part]
        if isinstance(here, str | int):
            line = json.dumps(data, indent=1).splitlines()[span.line - 1]
            assert json.loads(line[span.col - 1 : span.end_col - 1]) == here


def by_hand(parent: Any, child: Any) -> Any:
    if not (isinstance(parent, dict) and isinstance(child, dict)):
        return child
    return {**parent, **{key: by_hand(parent.get(key), value) for key, value in child.items()}}


@given(DOCUMENTS, DOCUMENTS)
def test_the_child_wins_key_by_key(parent: dict[str, Any], child: dict[str, Any]) -> None:
    merged = merge(tree(parent, "parent.yaml"), tree(child, "child.yaml"))
    assert merged.data == by_hand(parent, child)
    for path, span in merged.values.items():
        source = json.dumps(child if span.path == "child.yaml" else parent, indent=1).splitlines()
        here: Any = merged.data
        for part in path:
            here = here[part]
        if isinstance(here, str | int):
            assert json.loads(source[span.line - 1][span.col - 1 : span.end_col - 1]) == here
    assert all(_there(merged.data, path) for path in merged.values)


def _there(data: Any, path: tuple[str | int, ...]) -> bool:
    for part in path:
        if isinstance(data, dict) and part not in data:
            return False
        data = data[part]
    return True


@given(DOCUMENTS, st.data())
def test_null_removes(parent: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(parent)))
    merged = merge(tree(parent, "parent.yaml"), tree({key: None}, "child.yaml"))
    assert merged.data == {k: v for k, v in parent.items() if k != key}
    assert not [path for path in merged.values if path[:1] == (key,)]


def test_removing_what_is_not_there_is_found_everywhere() -> None:
    parent, child = tree({"a": {"x": 1}}, "p"), tree({"b": None, "a": {"y": None}, "c": {"d": None}}, "c")
    with pytest.raises(SpecError) as caught:
        merge(parent, child)
    assert sorted(d.message.split("`")[1] for d in caught.value.diagnostics) == ["b", "d", "y"]


# --- extends ---------------------------------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return path


def test_a_variant_adds_changes_and_removes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "variant",
        f"""extends: {BASE.with_suffix("")}@1
blocks:
  output:
    tensors:
      output.weight: null
      output.head: {{hf: head.weight, shape: [vocab, hidden]}}
  attention:
    tensors:
      proj.bias: {{when: false}}
tied: null
""",
    )
    variant, base = table(path, TINY), table(BASE, TINY)
    names, before = ({row.megatron for row in t.rows} for t in (variant, base))
    assert names - before == {"output.head"}
    assert before - names == {"output.weight", *(f"decoder.layers.{i}.proj.bias" for i in (0, 2))}
    spans = {row.rule.key: row.rule.span.path for row in variant.rows}
    assert spans["output.head"] == str(path)
    assert spans["qkv.weight"] == str(BASE)


def test_what_a_variant_does_not_inherit(tmp_path: Path) -> None:
    document = read_mapping(write(tmp_path, "variant", f"extends: {BASE.with_suffix('')}@1\n"))
    assert document.model.metadata.name == "variant"
    assert document.model.metadata.references == ()
    assert document.parents == (BASE,)


def found(path: Path, values: dict[str, Any] | None = None) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        bind(link(read_mapping(path)), values or TINY)
    return caught.value.diagnostics


def test_a_mistake_in_the_parent_names_both_files(tmp_path: Path) -> None:
    parent = write(tmp_path, "parent", "dims: {a: 1, a: 2}\n")
    child = write(tmp_path, "child", "extends: parent@1\n")
    [finding] = found(child)
    assert finding.span is not None
    assert finding.span.path == str(parent)
    assert [(note.message, note.span.path) for note in finding.notes if note.span][-1] == ("extended here", str(child))


def test_a_circle_of_three(tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        write(tmp_path, name, f"extends: {parent}@1\n")
    [finding] = found(tmp_path / "a.yaml")
    assert finding.code == "MS302"
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in finding.message


def test_specs_are_found_by_name_in_the_user_s_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSPEC_PATH", str(tmp_path))
    own = write(tmp_path, "variant", "")
    assert find_spec("variant") == own
    assert available("mappings")["variant"] == own
    assert "nemotron_h" in available("mappings")
    with pytest.raises(SpecError) as caught:
        find_spec("varient")
    assert caught.value.diagnostics[0].hint == "variant"


# --- include: NemotronH as the language model of a larger one ----------------------------------------------------

WRAPPER = """
include:
  language:
    mapping: nemotron_h@1
    config: hf.llm_config
    megatron: language_model
    hf: language_model
    remount:
      mtp_layers: {hf: ""}
      mtp_first: {hf: ""}
      mtp_last: {hf: ""}
dims:
  hidden: {size: hf.llm_config.hidden_size}
  patch: {size: hf.patch}
roles:
  weight: {dtype: hf.llm_config.dtype, accepts: [bfloat16]}
blocks:
  projector:
    tensors:
      projector.weight: {hf: mlp1.weight, shape: [hidden, patch]}
mounts:
  top: {blocks: [projector]}
"""
OUTER = {"architectures": ["Wrapped"], "patch": 12, "llm_config": config("nemotron-h-every-option")}


def test_an_included_mapping_lives_under_its_prefixes(tmp_path: Path) -> None:
    outer = table(write(tmp_path, "wrapper", WRAPPER), OUTER)
    inner = table(find_spec("nemotron_h"), OUTER["llm_config"])
    assert {row.megatron for row in outer.rows} == {
        "projector.weight",
        *(f"language_model.{row.megatron}" for row in inner.rows),
    }
    moved = {name if name.startswith("mtp.") else f"language_model.{name}" for name in inner.inventory("hf")}
    assert set(outer.inventory("hf")) == {"mlp1.weight", *moved}
    assert outer.inventory("hf")["language_model.backbone.layers.0.mixer.in_proj.weight"].shape == (
        inner.inventory("hf")["backbone.layers.0.mixer.in_proj.weight"].shape
    )
    assert all(name.startswith("language_model.") for name in outer.objects)


def test_flavours_of_an_included_mapping_are_chosen_and_detected_under_its_prefix(tmp_path: Path) -> None:
    linked = link(read_mapping(write(tmp_path, "wrapper", WRAPPER)))
    names = ["language_model.model.layers.0.norm.weight", "mlp1.weight"]
    flavours = detect_flavours(linked, names, {})
    assert flavours == {"names": "native"}
    made = build_table(bind(linked, OUTER, Choices({**flavours, "norms": "separate"})))
    assert "language_model.model.layers.0.mixer.in_proj.weight" in made.inventory("hf")
    assert "language_model.decoder.layers.0.norm.weight" in made.inventory("megatron")


def test_tied_words_of_an_included_mapping(tmp_path: Path) -> None:
    values = {**OUTER, "llm_config": {**OUTER["llm_config"], "tie_word_embeddings": True}}
    made = table(write(tmp_path, "wrapper", WRAPPER), values)
    assert made.tied == {"language_model.output_layer.weight": "language_model.embedding.word_embeddings.weight"}


def test_a_missing_part_of_the_config_is_one_finding(tmp_path: Path) -> None:
    path = write(tmp_path, "wrapper", WRAPPER.replace("hf.llm_config\n", "hf.text_config\n"))
    [finding] = found(path, OUTER)
    assert (finding.code, finding.message) == ("MS401", "the config has no `text_config`")
    assert finding.span is not None
    assert finding.span.path == str(path)


def test_the_first_part_of_the_config_that_is_there_counts(tmp_path: Path) -> None:
    text = WRAPPER.replace("hf.llm_config\n", "[hf.text_config, hf.llm_config]\n")
    outer = table(write(tmp_path, "wrapper", text), OUTER)
    assert outer.hash == table(write(tmp_path, "plain", WRAPPER), OUTER).hash
    path = write(tmp_path, "neither", WRAPPER.replace("hf.llm_config\n", "[hf.text_config, hf.words]\n"))
    [finding] = found(path, OUTER)
    assert (finding.code, finding.message) == ("MS401", "the config has none of `text_config`, `words`")


def test_prefixes_of_an_include_follow_the_flavours_of_the_including_mapping(tmp_path: Path) -> None:
    text = WRAPPER.replace(
        "    remount:", "    flavours: {wide: {megatron: whole.language_model, hf: lm}}\n    remount:"
    )
    text = text.replace('mtp_layers: {hf: ""}', 'mtp_layers: {hf: "", flavours: {wide: {hf: lm.extra}}}')
    text += "flavours:\n  width: {about: another switch, choices: [slim, wide], default: slim}\n"
    linked = link(read_mapping(write(tmp_path, "wrapper", text)))
    assert build_table(bind(linked, OUTER)).hash == table(write(tmp_path, "plain", WRAPPER), OUTER).hash
    made = build_table(bind(linked, OUTER, Choices({"width": "wide"})))
    names = set(made.inventory("hf"))
    assert "lm.backbone.layers.0.mixer.in_proj.weight" in names
    assert "lm.extra.mtp.layers.0.norm.weight" in names
    assert "mtp.layers.0.eh_proj.weight" in names
    assert not any(name.startswith("language_model.") for name in names)
    assert all(row.megatron.startswith("whole.language_model.") for row in made.rows if "projector" not in row.megatron)
    # A prefix that is chosen by the user is the one below which marks are looked for.
    marks = ["lm.model.layers.0.norm.weight"]
    assert detect_flavours(linked, marks, {"width": "wide"}) == {"width": "wide", "names": "native"}
    assert detect_flavours(linked, marks, {}) == {}


def test_findings_within_an_include_name_the_including_line(tmp_path: Path) -> None:
    values = {**OUTER, "llm_config": {**OUTER["llm_config"], "hybrid_override_pattern": "MX"}}
    path = write(tmp_path, "wrapper", WRAPPER)
    finding = next(d for d in found(path, values) if d.code == "MS403")
    assert [(n.message, n.span.path) for n in finding.notes if n.span] == [("included here", str(path))]


def test_an_include_without_its_part_of_the_config_is_switched_off(tmp_path: Path) -> None:
    text = WRAPPER.replace("    remount:", "    when: present(hf.llm_config)\n    remount:")
    text = text.replace("hf.llm_config.hidden_size", "8").replace("hf.llm_config.dtype", "\"'bfloat16'\"")
    made = table(write(tmp_path, "wrapper", text), {"patch": 3})
    assert [row.megatron for row in made.rows] == ["projector.weight"]


def test_one_mapping_included_twice(tmp_path: Path) -> None:
    other = (HERE / "lint" / "parts" / "other").as_posix()
    text = f"""include:
  a: {{mapping: {other}@1, megatron: a, hf: x.a}}
  b: {{mapping: {other}@1, megatron: b, hf: x.b}}
"""
    made = table(write(tmp_path, "twice", text), TINY)
    assert {row.megatron: row.names("hf") for row in made.rows} == {
        "a.extra_norm.weight": ("x.a.extra_norm.weight",),
        "b.extra_norm.weight": ("x.b.extra_norm.weight",),
    }
    [finding] = prove(
        build_table(bind(link(read_mapping(write(tmp_path, "same", text.replace("x.b", "x.a")))), TINY))
    ).findings
    assert finding.code == "MS501"


def test_a_flavour_of_the_wrapper_does_not_reach_into_what_it_includes(tmp_path: Path) -> None:
    text = WRAPPER + "flavours:\n  layout: {about: another switch, choices: [fused, native], default: native}\n"
    text = text.replace("shape: [hidden, patch]}", "shape: [hidden, patch], flavours: {fused: {hf: mlp.weight}}}")
    made = table(write(tmp_path, "wrapper", text), OUTER)
    assert "language_model.backbone.layers.0.mixer.in_proj.weight" in made.inventory("hf")
    assert "mlp1.weight" in made.inventory("hf")


# --- choosing --------------------------------------------------------------------------------------------------


def test_marks_of_two_choices_contradict() -> None:
    names = ["backbone.layers.0.norm.weight", "model.layers.0.norm.weight"]
    with pytest.raises(SpecError) as caught:
        detect_flavours(link_spec("nemotron_h"), names, {})
    assert caught.value.diagnostics[0].code == "MS410"
    assert detect_flavours(link_spec("nemotron_h"), names, {"names": "native"}) == {"names": "native"}


def test_a_plain_name_that_is_passed_through_is_accounted_for(tmp_path: Path) -> None:
    """A pattern without holes captures nothing, and matches all the same."""
    text = f"""extends: {BASE.with_suffix("")}@1
passthrough: {{vision.scale: Megatron-Core has no place for it}}
ignore_hf: {{"rope.**": tables that are computed from the config}}
"""
    made = table(write(tmp_path, "variant", text), TINY)
    tensors = {n: StoredTensor(n, d.dtype, d.shape, ()) for n, d in made.inventory("hf").items()}
    for name in ("vision.scale", "rope.inv_freq"):
        tensors[name] = StoredTensor(name, "float32", (2,), ())
    covered = cover(made, "hf", tensors)
    assert not covered.findings
    assert [name for name, _ in covered.passthrough] == ["vision.scale"]
    assert [name for name, _ in covered.ignored] == ["rope.inv_freq"]
    tensors["stray"] = StoredTensor("stray", "float32", (2,), ())
    assert [d.code for d in cover(made, "hf", tensors).findings] == ["MS512"]
