"""What commands import: the guard of their start-up time, which needs no clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_convert import small, write_hf
from test_documents import BASE

from mapspec.choose import listed_architectures
from mapspec.convert import Output, convert
from mapspec.prepare import Request

RUN = """
import sys
from mapspec.cli import main
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""
MODELS = {"torch", "transformers", "megatron", "safetensors"}
SPECS = {"ruamel.yaml", "mapspec.schema", "mapspec.text", "mapspec.prepare", "mapspec.provider", "mapspec.link"}
DRAWING = {"rich", "pygments", "markdown_it"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, a small checkpoint, and `done`, what `convert` made of it."""
    folder = tmp_path_factory.mktemp("start")
    convert(Request(write_hf(folder / "hf", small())), Output(folder / "done"))
    return folder


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        (["--version"], {*MODELS, *SPECS, *DRAWING, "numpy"}),
        (["rule", "MS001"], {*MODELS, *SPECS, *DRAWING, "numpy"}),
        (["verify", "done"], {*MODELS, *SPECS, *DRAWING, "numpy", "mapspec.verify", "mapspec.plan"}),
        (["plan", "hf"], {*MODELS, "numpy", "mapspec.convert", "mapspec.live", "mapspec.diff", "mapspec.lint"}),
        (
            ["convert", "hf", "new"],
            {*MODELS, "fsspec", "mapspec.live", "mapspec.diff", "mapspec.lint", "rich.progress"},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_import_what_they_need(folder: Path, command: list[str], unneeded: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=True, cwd=folder
    )  # fmt: skip
    imported = set(done.stderr.splitlines()[-1].split())
    assert "mapspec.cli.app" in imported
    assert imported & unneeded == set()


def test_specs_that_do_not_name_an_architecture_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = BASE.read_text(encoding="utf-8").replace("metadata:\n", "metadata:\n  architectures: [Mine]\n")
    (tmp_path / "plain.yaml").write_text(text)
    (tmp_path / "escaped.yaml").write_text(text.replace("[Mine]", r'["M\x69ne"]'))
    (tmp_path / "broken.yaml").write_text("a: [b\n")
    monkeypatch.setenv("MAPSPEC_PATH", str(tmp_path))
    assert listed_architectures("mappings", ["Mine"]) == {"Mine": ["escaped", "plain"]}
    assert listed_architectures("mappings", ["NemotronHForCausalLM"])["NemotronHForCausalLM"] == ["nemotron_h"]


def test_the_collector_has_nothing_to_look_at_when_a_command_ends() -> None:
    probe = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 10_000, file=sys.stderr)); import sys"
    )
    done = subprocess.run([sys.executable, "-c", probe + RUN, "--version"], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "True"
