"""What all tests share. Golden files: `pytest --update-golden` writes them, every other run compares."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# A slow example on a busy machine is no wrong answer.
settings.register_profile("mapspec", deadline=None)
settings.load_profile("mapspec")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/NAME`, or write it there."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"tests/golden/{name} is not there; write it with pytest --update-golden"
        wanted = path.read_text(encoding="utf-8")
        if text != wanted:
            lines = list(
                difflib.unified_diff(wanted.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=1)
            )
            shown = "\n".join(lines[:40])
            pytest.fail(f"tests/golden/{name} differs; if that is meant, --update-golden\n{shown}", pytrace=False)

    return check
