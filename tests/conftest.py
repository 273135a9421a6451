"""What all tests share. Golden files: `pytest --update-golden` writes them, every other run compares."""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from interrupted import Interrupter

# A shell that starts the tests in the background has its children ignore interrupts, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow example on a busy machine is no wrong answer.
settings.register_profile("mapspec", deadline=None)
settings.load_profile("mapspec")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew instead of comparing")


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one, for tests that bring hundreds of tiny files to disk, one by one."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < 1 << 28:
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="mapspec-test-") as folder:
        yield Path(folder)


@pytest.fixture
def in_memory(memory: Path) -> Iterator[Path]:
    """A fresh folder in `memory`."""
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def interrupter() -> Iterator[Interrupter]:
    """Conversions that are killed at a chosen moment."""
    server = Interrupter()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny checkpoints by the name of their variant (tests/fixtures_hf.py), each written once."""
    from fixtures_hf import write_tiny

    home, made = tmp_path_factory.mktemp("tiny"), dict[str, Path]()

    def get(variant: str) -> Path:
        if variant not in made:
            made[variant] = write_tiny(variant, home / variant)
        return made[variant]

    return get


@pytest.fixture(scope="module")
def one_group() -> Iterator[None]:
    """A process group of this process alone."""
    from mapspec.backends.reference_parallel import one_process_group

    with one_process_group():
        yield


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
