"""The command line as its users meet it: help texts in one hand, and completion in the shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from mapspec import cli
from mapspec.documents import available

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = GROUP.commands


def _parameters(command: Any) -> Iterator[Any]:
    yield from (p for p in command.params if p.name != "help")


def _line(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    name = (parameter.metavar or parameter.name.upper()) if parameter.param_type_name == "argument" else names
    return f"    {name}: {parameter.help}"


def test_help_texts(golden: Callable[[str, str], None]) -> None:
    lines = [GROUP.help, ""]
    for name, command in COMMANDS.items():
        lines += [f"{name}: {command.help}", *(_line(p) for p in _parameters(command)), ""]
    golden("help.txt", "\n".join(lines))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_written_in_one_hand(name: str) -> None:
    """Sentences: a capital, a full stop, no exclamation; a command begins with what it does."""
    command = COMMANDS[name]
    for text in (command.help, *(p.help for p in _parameters(command))):
        assert text, name
        assert text[0].isupper() or text.startswith(("config.json", "`")), text
        assert re.search(r"[.)]$", text.strip()), text
        assert "!" not in text, text
        assert not re.search(r"\b(please|simply|just|easily)\b", text, re.IGNORECASE), text


def complete(line: str) -> tuple[list[str], str]:
    """What bash is offered behind `line`, and the modules of the packages that were loaded for it."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr))\n"
        "from mapspec.cli import app\n"
        "app(prog_name='mapspec')\n"
    )
    environment = {
        **os.environ, "_MAPSPEC_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mapspec pl", ["plan"]),
        ("mapspec plan x --to ", ["hf", "megatron"]),
        ("mapspec keys x --format ", ["text", "json", "md"]),
        ("mapspec show nemotron_", sorted(n for n in available("mappings") if n.startswith("nemotron_"))),
        ("mapspec new acme --like nemotron_h", ["nemotron_h"]),
        ("mapspec plan x --flavour names=", ["names=native", "names=published"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_completion_for_bash(line: str, offered: list[str]) -> None:
    found, said = complete(line)
    assert found == offered
    loaded = said.split("LOADED", 1)[1].split()
    assert not {"torch", "transformers", "megatron", "numpy"} & set(loaded)
