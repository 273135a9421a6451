"""Pieces that the reports share: tables for terminals and Markdown, byte counts, the JSON envelope."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mapspec.render.findings import FORMAT_VERSION

__all__ = ["SIDES", "as_json", "draw_grid"]

SIDES = {"hf": "Hugging Face", "megatron": "Megatron", "stored": "torch_dist"}


def as_json(kind: str, body: dict[str, Any]) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, "kind": kind, **body}, indent=2)


def draw_grid(columns: Sequence[str], rows: Iterable[Sequence[str]], format: str) -> str:
    """A table as Markdown, or drawn for a terminal of any width (long names are folded, never cut)."""
    if format == "md":
        lines = [columns, ["---"] * len(columns), *([_md_cell(cell) for cell in row] for row in rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    from rich.console import Console
    from rich.table import Table as RichTable

    grid = RichTable(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for i, name in enumerate(columns):
        grid.add_column(
            name, overflow="fold", justify="right" if i and name in ("tensors", "elements", "bytes") else "left"
        )
    for row in rows:
        grid.add_row(*(cell.replace("[", r"\[") for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=_width(), force_terminal=False).print(grid)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def _md_cell(cell: str) -> str:
    """Names as code, each on a line of the cell."""
    lines = [f"`{line}`" if ("{" in line or "." in line) and " " not in line else line for line in cell.split("\n")]
    return "<br>".join(lines)


def _width() -> int:
    """Columns to draw in: the terminal's, and as many as it takes where there is no terminal to fold lines for."""
    shown = sys.stdout is not None and sys.stdout.isatty()  # Python has none where it was started without one
    return max(100, shutil.get_terminal_size().columns) if shown else 2000
