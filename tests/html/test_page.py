"""Pages without a browser: what is in them, and that nothing in them reaches out or breaks out."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mapspec.cli import app
from mapspec.mapping import compile_mapping
from mapspec.render.html.assemble import assemble
from mapspec.render.html.spots import Spots

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fixtures_hf import write_tiny

ROOT = Path(__file__).resolve().parents[2]
NANO = "nemotron-3-nano-30b-a3b"


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in self.raw:
            self.raw[self.open][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.raw["script"][0])


def expand(pattern: str, positions: dict[str, Any]) -> Iterator[str]:
    """The names that a pattern stands for, as the page writes them out."""
    for product in positions["sets"] or [[]]:
        ranges = [[n for first, last in runs for n in range(first, last + 1)] for runs in product]
        for values in itertools.product(*ranges):
            position = {**positions["fixed"], **dict(zip(positions["axes"], values, strict=True))}
            yield re.sub(r"\{(?:\*\*)?(\w+)\}", lambda found: str(position[found[1]]), pattern)  # noqa: B023


@pytest.mark.parametrize("model", [NANO, "nemotron-3-nano-omni-30b-a3b", "nemotron-h-every-option"])
def test_every_rule_and_every_name_is_in_the_page(model: str, page_of: Callable[[str], Path]) -> None:
    data = Elements(page_of(model).read_text()).data
    spec = "nemotron_omni" if "omni" in model else "nemotron_h"
    table = compile_mapping(spec, ROOT / "tests" / "configs" / f"{model}.json").table
    assert {rule["key"] for rule in data["rules"]} == {row.rule.key for row in table.rows}
    assert sum(rule["count"] for rule in data["rules"]) == len(table.rows)
    for surface in ("hf", "megatron", "stored"):
        patterns = [(p[0], rule["positions"]) for rule in data["rules"] if not rule["tied"] for p in rule[surface]]
        assert {name for pattern in patterns for name in expand(*pattern)} == set(table.inventory(surface))
    paths = {source["path"] for source in data["sources"]}
    for rule in data["rules"]:
        file, line = rule["at"]
        assert data["sources"][file]["text"].splitlines()[line - 1].strip().startswith((rule["key"], f'"{rule["key"]}'))
    assert any(path.endswith(f"mappings/{spec}.yaml") for path in paths)


def test_cuts_are_those_of_the_engine(page_of: Callable[[str], Path]) -> None:
    dims = {dim["name"]: dim for dim in Elements(page_of(NANO).read_text()).data["dims"]}
    z, x, b, c, dt = 4096, 4096, 1024, 1024, 64
    starts = list(itertools.accumulate((z, x, b, c, dt), initial=0))
    second = [[s + n // 2, s + n] for s, n in zip(starts, (z, x, b, c, dt), strict=False)]
    assert dims["mamba_in"]["cuts"]["2"][1] == second
    assert dims["qkv"]["cuts"]["2"] == [[[0, 2304]], [[2304, 4608]]]
    assert "hidden" not in dims  # neither made of segments nor cut: nothing to draw
    for dim in dims.values():
        for ranks in dim["cuts"].values():
            if isinstance(ranks, list):
                rows = sorted(tuple(run) for rank in ranks for run in rank)
                assert rows[0][0] == 0
                assert rows[-1][1] == (dim["padded"] or dim["size"])
                assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
            else:
                assert "does not divide" in ranks


def test_a_page_is_whole_and_keeps_to_itself(page_of: Callable[[str], Path]) -> None:
    text = page_of(NANO).read_text()
    page = Elements(text)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.found}
    # A script that builds a URL could not load it: the policy allows the page's own style and script alone.
    for tag, attributes in page.found:
        assert "src" not in attributes, tag
        assert not str(attributes.get("href") or "#").startswith(("http", "//")), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    (policy,) = [a["content"] for tag, a in page.found if tag == "meta" and a.get("http-equiv")]
    texts = (page.raw["style"][0], page.raw["script"][1])
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts}
    assert set(re.findall(r"'sha256-([^']+)'", str(policy))) == digests
    assert str(policy).startswith("default-src 'none'; ")
    assert "http" not in page.raw["style"][0]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page.raw["script"][1])
    assert "innerHTML" not in page.raw["script"][1]
    assert len({a["id"] for _, a in page.found if "id" in a}) == len([1 for _, a in page.found if "id" in a])


def test_names_cannot_become_markup() -> None:
    nasty = "</script><b onclick=x>&amp;<!-- <!--@STYLE--> \u2028"
    page = Elements(assemble({"title": nasty, "kind": "show", "rules": [nasty]}, ()))
    assert page.data["rules"] == [nasty]
    assert "b" not in {tag for tag, _ in page.found}
    assert len(page.raw["script"]) == 2


def test_plan_tells_what_happens(tmp_path: Path) -> None:
    source = write_tiny("mtp1", tmp_path / "my-model")
    out = tmp_path / "plan.html"
    changes = ["--padded-vocab-size", "512", "--dtype", "float16"]
    done = CliRunner().invoke(app, ["plan", str(source), "--format", "html", "-o", str(out), *changes])
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    data = Elements(out.read_text()).data
    assert data["title"] == "my-model"
    assert [f[:2] for f in data["facts"] if f[0] == "Tensors"] == [["Tensors", "95 → 57"]]
    assert data["coverage"] == [["mapped", 95]]
    kinds = {step["kind"]: step for step in data["steps"]}
    assert set(kinds) == {"cast", "pad"}
    padded = {data["rules"][number]["key"] for number in kinds["pad"]["rules"]}
    assert padded == {"embedding.word_embeddings.weight", "output_layer.weight"}
    dtypes = {rule["key"]: rule["dtype"] for rule in data["rules"]}
    assert dtypes["mixer.in_proj.weight"] == "bfloat16 → float16"
    assert dtypes["mlp.router.expert_bias"] == "float32"
    assert {f[0] for f in data["provider"]["fields"]} >= {"hidden_size", "num_attention_heads"}


def test_links_are_relative_or_follow_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = ROOT / "mappings" / "nemotron_h.yaml"
    spots = Spots(tmp_path)
    assert spots.file(str(spec)) == spots.file(str(spec)) == 0
    assert (tmp_path / spots.files[0]["href"]).resolve() == spec
    config = "tests/configs/nemotron-h-4b.json"
    template = "https://example.org/{path}#L{line}"
    arguments = ["show", "nemotron_h", "--config", config, "--format", "html", "--source-url", template]
    sources = Elements(CliRunner().invoke(app, arguments).stdout).data["sources"]
    assert sources[0]["href"] == "https://example.org/mappings/nemotron_h.yaml#L{line}"
    done = CliRunner().invoke(app, [*arguments[:-1], "https://example.org/"])
    assert done.exit_code == 2


def test_a_model_without_provider_says_so(page_of: Callable[[str], Path]) -> None:
    config = {**json.loads((ROOT / "tests/configs/nemotron-h-4b.json").read_text()), "architectures": ["Nobody"]}
    from mapspec.render.html.provider import provider_data

    assert provider_data(config, Spots(ROOT), where="config.json")["why"] == "No provider spec lists Nobody."
