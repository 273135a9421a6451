"""Pages in headless Chromium: the filter, the keyboard, light and dark, printing, 50,000 tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mapspec.mapping import compile_mapping

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "mapspec" / "render" / "html" / "assets"
NANO, OMNI, ULTRA = "nemotron-3-nano-30b-a3b", "nemotron-3-nano-omni-30b-a3b", "nemotron-3-ultra-550b-a55b"

type Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, page_of: Callable[[str], Path]) -> Iterator[Open]:
    """Opens a page; whatever it says on the console, and whatever it asks the network for, fails the test."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_(model: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_of(model).as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith("file://") and url.endswith(".html") for url in asked), asked


def shown_rules(page: Any) -> list[str]:
    return page.locator("tr.rule:visible .opener").all_inner_texts()


def find(page: Any, text: str, says: str) -> None:
    page.locator("#filter").fill(text)
    page.locator("#found", has_text=says).wait_for(state="attached")


def test_filter_finds_rules_tensors_and_fields(visit: Open) -> None:
    page = visit(NANO)
    every = len(shown_rules(page))
    find(page, "router", "2 of 22 rules, 46 tensors")
    assert len(shown_rules(page)) == 2
    assert any("moe_router_topk" in text for text in page.locator("#provider tr:visible").all_inner_texts())
    # One tensor, by a name that stands nowhere in the page: it is written out when somebody looks for it.
    find(page, "layers.5. EXPERTS.5.up_proj", "nothing matches")
    find(page, "layers.1. EXPERTS.5.up_proj", "1 of 22 rules, 1 tensor")
    assert page.locator("td.tensors:visible").inner_text().split() == ["1", "of", "2,944"]
    page.locator("tr.rule:visible .opener").click()
    page.locator(".tensors-list:visible summary").click()
    assert page.locator(".pair:visible .name").all_inner_texts() == [
        "backbone.layers.1.mixer.experts.5.up_proj.weight",
        "decoder.layers.1.mlp.experts.linear_fc1.weight5",
        "decoder.layers.1.mlp.experts.experts.linear_fc1.weight",
    ]
    # Trees keep what leads to it.
    leaves = page.locator("[role=tree] .node:visible").all_inner_texts()
    assert not any("in_proj" in text for text in leaves)
    page.locator("#filter").press("Escape")
    assert len(shown_rules(page)) == every == 22
    assert page.locator("#filter").input_value() == ""


def test_a_spec_line_opens_where_it_is_written(visit: Open) -> None:
    page = visit(NANO)
    page.locator("tr.rule", has_text="q_proj").locator("td.rule-at a").click()
    marked = page.locator("#viewer .marked")
    assert "self_attention.linear_qkv.weight:" in marked.inner_text()
    assert marked.is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


def test_everything_works_from_the_keyboard(visit: Open) -> None:
    page = visit(NANO)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.keyboard.type("in_proj.weight")
    page.locator("#found", has_text="1 of 22 rules").wait_for(state="attached")
    page.keyboard.press("Escape")
    rows = page.locator("[data-row]")
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert rows.nth(2).evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")
    assert rows.nth(2).get_attribute("aria-expanded") == "true"
    assert page.locator(f"#{rows.nth(2).get_attribute('aria-controls')}").is_visible()
    page.keyboard.press("End")
    assert rows.last.evaluate("e => e === document.activeElement")
    page.keyboard.press("e")  # something is open: close all
    assert page.locator("[data-row][aria-expanded=true]").count() == 0
    page.keyboard.press("e")
    assert page.locator("[data-row][aria-expanded=true]").count() == 22


def test_trees_follow_the_arrow_keys_and_each_other(visit: Open) -> None:
    page = visit(OMNI)
    label = "document.activeElement.getAttribute('aria-label')"
    page.locator("[role=tree]").first.locator("[role=treeitem][tabindex='0']").focus()
    page.keyboard.press("End")
    last = page.evaluate(label)
    page.keyboard.press("Home")
    assert page.evaluate(label) != last
    assert page.locator("[role=treeitem][tabindex='0']").count() == 2  # one stop for Tab in each tree
    first = page.locator("[role=tree]").first.locator("[role=treeitem]", has_text="mlp1").first
    first.focus()
    page.keyboard.press("ArrowLeft")
    assert first.get_attribute("aria-expanded") == "false"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(label) == "0.weight, 1 tensor"
    page.keyboard.press(" ")
    assert page.locator("[role=tree]").nth(1).locator(".chosen").all_inner_texts()[0].startswith("layer_norm_weight")
    page.keyboard.press("Enter")
    assert "mlp1.0.weight" in page.evaluate("document.activeElement.innerText")


def test_cuts_follow_the_number_of_ranks(visit: Open) -> None:
    page = visit(NANO)
    page.locator("tr.rule", has_text="mixer.in_proj.weight").locator(".opener").click()
    held = page.locator(".held:visible")
    assert held.inner_text() == "Each of 2 tensor parallel ranks holds [5,152, 2,688], its part of every segment."
    page.locator("label[for=ranks-tensor-8]").click()
    assert held.inner_text().startswith("Each of 8 tensor parallel ranks holds [1,288, 2,688]")
    lanes = page.locator(".lanes:visible .lane")
    assert lanes.count() == 8
    assert lanes.first.locator(".part").count() == 5
    assert page.locator(".lanes:visible").get_attribute("aria-label").startswith("rank 0: rows 0 to 512, 4096 to 4608")


def test_fifty_thousand_tensors(visit: Open) -> None:
    page = visit(ULTRA)
    assert page.evaluate("document.querySelectorAll('*').length") < 6000  # nothing is made before it is looked at
    find(page, "weight", "50,")
    find(page, "experts.511.", "rules, 98 tensors")
    page.locator("tr.rule:visible .opener").first.click()
    page.locator(".tensors-list:visible summary").click()
    assert page.locator(".pair:visible").count() == 48
    page.locator("#filter").fill("")
    page.locator("#found:empty").wait_for(state="attached")
    assert page.locator(".pair:visible").count() == 100  # the rest on demand
    page.locator(".more:visible").first.click()
    assert page.locator(".pair:visible").count() == 200


def test_light_and_dark(visit: Open) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(NANO, color_scheme="light"), visit(NANO, color_scheme="dark")
    colours = light.evaluate(background), dark.evaluate(background)
    assert colours[0] != colours[1]
    light.locator("#theme").click()
    assert light.evaluate(background) == colours[1]
    light.reload()
    assert light.evaluate(background) == colours[1]  # remembered


def test_printing_opens_everything(visit: Open, tmp_path: Path) -> None:
    page = visit(NANO)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("tr.below:visible").count() == 22
    assert page.locator("[role=treeitem][aria-expanded=false]").count() == 0
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator(".bar").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("tr.below:visible").count() == 0


def test_narrow_windows_scroll_down_only(visit: Open) -> None:
    page = visit(NANO, viewport={"width": 390, "height": 800})
    page.locator(".opener").nth(4).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_names_are_written_out_as_the_table_has_them(browser: Any, page_of: Callable[[str], Path]) -> None:
    page = browser.new_page()
    page.goto("about:blank")
    text = page_of(NANO).read_text()
    data = text.partition('id="data">')[2].partition("</script>")[0]
    program = f"""(data) => {{ data = JSON.parse(data); {(ASSETS / "names.js").read_text()}
        const out = {{ hf: [], megatron: [], stored: [] }};
        for (const rule of data.rules) for (const position of positions(rule)) {{
            const tensor = tensorAt(rule, position);
            for (const side in out) out[side].push(...tensor[side]);
        }}
        return out;
    }}"""
    found = page.evaluate(program, data)
    page.close()
    table = compile_mapping("nemotron_h", ROOT / "tests" / "configs" / f"{NANO}.json").table
    for side, names in found.items():
        assert set(names) == set(table.inventory(side))
    assert len(found["megatron"]) == len(set(found["megatron"]))
