"""`diff --format html`: everything of the report is in the page, and the page shows it worst first."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mapspec.cli import app
from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.model import (
    Affected,
    Cause,
    Change,
    Earlier,
    ModelDiff,
    Part,
    Place,
    Report,
    SpecDiff,
    State,
    Through,
)
from mapspec.render.html.diff import diff_page

ROOT = Path(__file__).resolve().parents[2]


def change(code: str, message: str, **more: Any) -> Change:
    return Change(code, DIFF_CODES[code].level, f"{len(message):012x}", "acme", message, **more)


def report() -> Report:
    old, new = Place("mappings/acme.yaml", 10), Place("mappings/acme.yaml", 12)
    affected = Affected(
        "acme", "acme-7b", (), 32, ("decoder.layers.{0...31}.qkv",), ("h.{0...31}.k",), ("h.{0...31}.v",)
    )
    swap = change(
        "DC101", "`qkv` takes exchanged values",
        causes=(Cause("blocks.attention.qkv.k", "mixer.k_proj", "mixer.v_proj", old, new),),
        parts=(Part("qkv", "block `attention`", "k <- mixer.k", "k <- mixer.v", old, new, (affected,)),),
        earlier=Earlier.CORRUPT, earlier_why="they load with k and v exchanged",
        through=(Through("acme_omni", "include", Place("mappings/acme_omni.yaml", 43)),),
    )  # fmt: skip
    nasty = change("DC901", "</script><b>bold</b>", accepted="it is right")
    specs = (
        SpecDiff("mapping", "acme", "mappings/acme.yaml", State.CHANGED, ("1.0.0", "1.0.1"), "2.0.0", False, (), new),
    )
    models = (
        ModelDiff("mapping", "acme", "acme-7b", State.CHANGED, (300, 300), same=268, retargeted=32, unmapped=(0, 32)),
        ModelDiff("mapping", "acme", "acme-1b", State.IDENTICAL, (100, 100), same=100),
    )
    return Report("main", "HEAD", specs, models, (swap, nasty), ("0123456789ab",))


def test_the_page_holds_the_report() -> None:
    text = diff_page(report(), project=ROOT, output=ROOT / "out" / "diff.html", url=None)
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["verdict"] == "1 silent, 1 accepted"
    assert [c["code"] for c in data["changes"]] == ["DC101", "DC901"]
    swap = data["changes"][0]
    assert (swap["causes"][0]["before"], swap["causes"][0]["after"]) == ("mixer.k_proj", "mixer.v_proj")
    assert swap["parts"][0]["old"] == "mappings/acme.yaml:10"
    assert swap["parts"][0]["new"] == [0, 12]
    assert data["sources"][0]["href"] == "../mappings/acme.yaml"
    assert swap["earlier"] == "CORRUPT IN SILENCE"
    assert "acme_omni, through include at mappings/acme_omni.yaml:43" in swap["through"]
    assert "<b>bold" not in text
    linked = diff_page(report(), url="https://example.org/{path}#L{line}")
    assert "https://example.org/mappings/acme.yaml#L{line}" in linked


def test_the_page_shows_the_worst_first(browser: Any, tmp_path: Path) -> None:
    out = tmp_path / "diff.html"
    out.write_text(diff_page(report(), output=out))
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(out.as_uri())
    heads = page.locator(".card-head")
    assert [head.split()[0] for head in heads.all_inner_texts()] == ["silent", DIFF_CODES["DC901"].level.value]
    assert [heads.nth(i).get_attribute("aria-expanded") for i in range(2)] == ["true", "false"]
    assert page.locator("mark.was").first.inner_text() == "k"
    assert page.locator("mark.now").first.inner_text() == "v"
    assert "decoder.layers.{0...31}.qkv" in page.locator(".affected").inner_text()
    rows = page.locator("#models tbody tr").all_inner_texts()
    assert ["acme-7b" in rows[0], "acme-1b" in rows[1]] == [True, True]
    assert "0 → 32" in rows[0]
    assert "the file lags behind" in page.locator("#versions").inner_text()
    assert "0123456789ab" in page.locator("#versions").inner_text()
    page.locator("#filter").fill("bold")
    page.locator("#found", has_text="1 of 2 changes").wait_for(state="attached")
    assert page.locator(".card:visible").count() == 1
    page.keyboard.press("Escape")
    heads.first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert heads.nth(1).get_attribute("aria-expanded") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
    assert said == []


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("old", "new"):
        (tmp_path / side / "tests").mkdir(parents=True)
        (tmp_path / side / "mappings").mkdir()
        shutil.copytree(ROOT / "tests" / "configs", tmp_path / side / "tests" / "configs")
        text = (ROOT / "mappings" / "nemotron_h.yaml").read_text()
        text = re.sub(r"  references:\n(    - .*\n)+", "  references: [nemotron-h-aliases]\n", text)
        if side == "new":
            text = text.replace("k: mixer.k_proj.weight", "k: X").replace(
                "v: mixer.v_proj.weight", "v: mixer.k_proj.weight"
            )
            text = text.replace("k: X", "k: mixer.v_proj.weight")
        (tmp_path / side / "mappings" / "nemotron_h.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "diff.html"
    done = CliRunner().invoke(app, ["diff", "old", "new", "--format", "html", "-o", str(out)])
    assert done.exit_code == 1, done.output
    data = json.loads(out.read_text().partition('id="data">')[2].partition("</script>")[0])
    assert data["changes"][0]["code"] == "DC101"
    assert data["changes"][0]["parts"][0]["subject"] == "self_attention.linear_qkv.weight"
