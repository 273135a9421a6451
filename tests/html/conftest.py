"""Pages to look at, and a browser to look at them with where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mapspec.mapping import compile_mapping
from mapspec.render.html.reports import show_page

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The `show` page of a model of tests/configs, written once."""
    home, made = tmp_path_factory.mktemp("pages"), dict[str, Path]()

    def get(model: str) -> Path:
        if model not in made:
            config = ROOT / "tests" / "configs" / f"{model}.json"
            spec = "nemotron_omni" if "omni" in model or model.endswith("-vl") else "nemotron_h"
            made[model] = home / f"{model}.html"
            text = show_page(compile_mapping(spec, config), config, output=made[model])
            made[model].write_text(text, encoding="utf-8")
        return made[model]

    return get


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the pages are driven by playwright: not installed")
    found = os.environ.get("MAPSPEC_TEST_BROWSER") or next((p for p in map(shutil.which, BROWSERS) if p), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium on this machine (apt install chromium, or playwright install chromium)")
        # Chromium refuses to run as root inside its own sandbox, as in most containers.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
