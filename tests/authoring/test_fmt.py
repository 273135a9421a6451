"""`mapspec fmt`: canonical text, the same meaning, the same comments, and nothing left to do the second time."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mapspec.authoring import fmt
from mapspec.authoring.edits import Edit, apply_edits, removal
from mapspec.authoring.fmt import format_files, format_text
from mapspec.authoring.layout import lay_out
from mapspec.authoring.order import key_order
from mapspec.choose import spec_files
from mapspec.documents import read_mapping
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.link import link
from mapspec.mapping import compile_mapping
from mapspec.schema import KINDS
from mapspec.text import parse_nodes, parse_yaml

ROOT = Path(__file__).resolve().parents[2]
LINT = ROOT / "tests" / "lint"
HERE = Path(__file__).parent / "fmt"
SHIPPED = spec_files([ROOT / "mappings", ROOT / "providers"])


def comments(text: str) -> list[str]:
    """Words of all comments, in any order: those of moved keys move."""
    return sorted(re.sub(r"^#\s*", "", c).strip() for c in re.findall(r"(?:(?<=\s)|^)#.*$", text, re.MULTILINE))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_formatted(path: Path) -> None:
    assert [file.diff for file in format_files([path])] == [""]


@pytest.mark.parametrize("name", sorted(p.name.removesuffix(".in.yaml") for p in HERE.glob("*.in.yaml")))
def test_cases(name: str) -> None:
    text, wanted = ((HERE / f"{name}.{side}.yaml").read_text(encoding="utf-8") for side in ("in", "out"))
    path = HERE / f"{name}.in.yaml"
    assert format_text(text, path) == wanted
    assert format_text(wanted, path) == wanted
    assert comments(text) == comments(wanted)


def _readable() -> list[Path]:
    def is_yaml(path: Path) -> bool:
        try:
            parse_yaml(path.read_text(encoding="utf-8"), str(path))
        except SpecError:
            return False
        return True

    return [path for path in sorted(LINT.glob("*.yaml")) if is_yaml(path)]


@pytest.mark.parametrize("path", _readable(), ids=lambda path: path.stem)
def test_any_spec_that_is_yaml_can_be_formatted(path: Path) -> None:
    """Fixtures of lint, wrong as they are: comments stay, data stays, a second time changes nothing."""
    text = path.read_text(encoding="utf-8")
    once = format_text(text, path)
    assert format_text(once, path) == once
    assert comments(once) == comments(text)
    if "*" not in text:
        assert parse_yaml(once, "x").data == parse_yaml(text, "x").data


def test_named_holes_leave_the_table_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(LINT / "configs", tmp_path / "configs")
    shutil.copy(LINT / "base.yaml", tmp_path)
    config = read_config(LINT / "configs" / "tiny.json")
    path = tmp_path / "wild.yaml"
    path.write_text((LINT / "good_wildcards.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = compile_mapping(link(read_mapping(path)), config).table.hash
    path.write_text(format_files([path])[0].after, encoding="utf-8")
    assert "layers.*" not in path.read_text(encoding="utf-8")
    assert compile_mapping(link(read_mapping(path)), config).table.hash == before


def test_wildcards_that_the_parent_needs_stay(tmp_path: Path) -> None:
    head = "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: {}\n  version: 1.0.0\n"
    rule = "blocks:\n  moe:\n    tensors:\n      fc1.weight*:\n        hf: up.*.weight\n"
    (tmp_path / "old.yaml").write_text(head.format("old") + rule)
    child = head.format("new") + "extends: old@1\nblocks:\n  moe:\n    wildcards: [expert]\n"
    path = tmp_path / "new.yaml"
    assert format_text(child, path) == child
    own = child + "    tensors:\n      fc2.weight*:\n        hf: down.*.weight\n"
    assert "wildcards: [expert]" in format_text(own, path)
    assert "fc2.weight{expert}:\n        hf: down.{expert}.weight" in format_text(own, path)


# --- noise that means nothing is removed -----------------------------------------------------------------------


def _noisy(text: str, random: Random) -> str:
    lines = []
    for line in text.splitlines():
        if random.random() < 0.5 and re.search(r": [\[{].*[\]}]$", line) and '"' not in line:
            line = re.sub(r"(?<=[\[{])(?=\w)", " ", line.replace(", ", " ,  "))
        if random.random() < 0.5:
            line = re.sub(r"^( *(?:- )?[\w.{}*]+): (?=[\w\[{])", r"\1:   ", line)
        lines.append(line + " " * random.randint(0, 2))
        lines += [""] * (random.randint(0, 2) if not line else 0)
    if random.random() < 0.5:
        lines = [re.sub(r"^ +", lambda m: m[0] * 2, line) for line in lines]
    return "\n".join(lines) + "\n" * random.randint(0, 3)


BASE = re.sub(r"(?m)(^|  +)#.*$", "", (LINT / "base.yaml").read_text(encoding="utf-8")).lstrip()


@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_noise_is_removed(random: Random) -> None:
    noisy = _noisy(BASE, random)
    assert parse_yaml(noisy, "x").data == parse_yaml(BASE, "x").data
    assert format_text(noisy, LINT / "base.yaml") == BASE


texts = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=12)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), texts, st.sampled_from(["true", "0.19", "- a", "a: b", "#"])
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(texts, trees, min_size=1, max_size=4), st.sampled_from([None, False, True]), st.integers(20, 90))
@settings(max_examples=60, deadline=None)
def test_any_yaml_keeps_its_data(data: dict[str, Any], flow: bool | None, width: int) -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = flow
    yaml.width = width
    stream = io.StringIO()
    yaml.dump(data, stream)
    text = stream.getvalue()
    try:
        before = parse_yaml(text, "x").data
    except SpecError:
        return  # what is no part of the language
    once = lay_out(text, "x")
    assert parse_yaml(once, "x").data == before
    assert lay_out(once, "x") == once


# --- pieces ----------------------------------------------------------------------------------------------------


def test_the_order_is_that_of_the_grammar() -> None:
    """Of every model, also where a list of its own says the order: no key forgotten, none made up."""
    for kind, model in KINDS.items():
        assert set(key_order(kind, ())) == set(model.model_fields)
    assert key_order("Mapping", ("blocks", "moe", "tensors", "up", "flavours", "x")) == ("megatron", "hf", "stored")
    assert key_order("Mapping", ("blocks", "moe", "objects", 0)) == ("names", "each", "when")
    assert key_order("Mapping", ("blocks", "moe", "tensors", "up", "hf")) == ()
    assert set(key_order("Provider", ("when", "moe"))) == {
        "if", "about", "fields", "constants", "defaults", "derived", "waived", "checks",
    }  # fmt: skip


def test_a_change_of_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmt, "lay_out", lambda text, path: text.replace("1.0.0", "1.0.1"))
    with pytest.raises(SpecError) as caught:
        format_text("apiVersion: mapspec/v1\nkind: Mapping\nmetadata: {name: a, version: 1.0.0}\n", Path("a.yaml"))
    assert [d.code for d in caught.value.diagnostics] == ["MS860"]


@pytest.mark.parametrize(
    ("text", "key", "left"),
    [
        ("a: 1\nb: 2   # two\nc: 3\n", "b", "a: 1\nc: 3\n"),
        ("a: 1\nb:\n  x: 2\n", "b", "a: 1\n"),
        ("{a: 1, b: 2, c: 3}\n", "b", "{a: 1, c: 3}\n"),
        ("{a: 1, b: 2}\n", "b", "{a: 1}\n"),
        ("{b: 2}\n", "b", "{}\n"),
        ("b: 2\n", "b", "{}\n"),
        ("a: 1\n", "b", "a: 1\n"),
    ],
)
def test_removing_a_key(text: str, key: str, left: str) -> None:
    assert apply_edits(text, removal(text, parse_nodes(text, "x"), key)) == left


def test_edits_do_not_overlap() -> None:
    assert apply_edits("abc", [Edit(2, 3, "x"), Edit(0, 1, "y")]) == "ybx"
    with pytest.raises(AssertionError):
        apply_edits("abc", [Edit(0, 2, "x"), Edit(1, 3, "y")])


# --- the command -----------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        (HERE / "order.in.yaml").read_text(encoding="utf-8").replace("base@1", "nemotron_h@1"), encoding="utf-8"
    )
    before = path.read_text(encoding="utf-8")
    code, out, _ = run("fmt", "--check", str(path))
    assert code == 1
    assert "MS861" in out
    assert "+apiVersion: mapspec/v1" in out
    code, out, _ = run("fmt", "--diff", str(path))
    assert code == 0
    assert "+apiVersion: mapspec/v1" in out
    assert path.read_text(encoding="utf-8") == before
    code, out, _ = run("fmt", str(path))
    assert code == 0
    assert out.startswith("formatted ")
    assert run("fmt", "--check", str(path))[:2] == (0, "1 spec in canonical form\n")


def test_nothing_is_written_where_one_file_is_no_yaml(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    shutil.copy(HERE / "layout.in.yaml", tmp_path / "good.yaml")
    shutil.copy(LINT / "MS001_tab.yaml", tmp_path / "bad.yaml")
    before = (tmp_path / "good.yaml").read_text(encoding="utf-8")
    code, _, err = run("fmt", str(tmp_path))
    assert code == 2
    assert "MS001" in err
    assert (tmp_path / "good.yaml").read_text(encoding="utf-8") == before
