"""What `verify --logits` prints."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from mapspec.logits.report import LayerLine, LogitsReport, Measured
from mapspec.render.findings import render_findings
from mapspec.render.grid import as_json, draw_grid

__all__ = ["render_logits"]


def render_logits(report: LogitsReport, format: str = "text") -> str:
    """A report as text (`text`, `concise`) or JSON (`json`, with `format_version`)."""
    if format == "json":
        return as_json("logits", _json(report))
    found = render_findings(report.findings, format) if report.findings else ""
    if format == "concise":
        return found or _verdict(report)
    return "\n".join(
        [*_head(report), *_numbers(report), "", *_layers(report), *([found, ""] if found else []), _verdict(report)]
    )


def _head(report: LogitsReport) -> list[str]:
    sequences, length = report.tokens
    return [
        f"left    {report.left}  ({report.left_model or 'not run'})",
        f"right   {report.right}  ({report.right_model or 'not run'})",
        f"tokens  {sequences} x {length} at random (seed {report.seed}), {report.dtype} on {report.device}",
        *(f"note    {note}" for note in report.notes),
    ]


def _numbers(report: LogitsReport) -> list[str]:
    if report.measured is None or report.floor is None:
        return []
    rows = [("left against right", report.measured), *((f"floor: {name}", m) for name, m in report.floor_runs.items())]
    cells = [
        (name, _sci(m.largest), _sci(m.relative), _sci(m.kl_mean), _sci(m.kl_max), f"{m.argmax:.2%}")
        for name, m in rows
    ]
    return ["", draw_grid(("logits", "largest", "of range", "KL mean", "KL max", "argmax equal"), cells, "text")]


def _layers(report: LogitsReport) -> list[str]:
    if not report.layers:
        return []
    cells = [_line(line) for line in report.layers]
    return [
        draw_grid(("after", "kind", "Hugging Face", "Megatron", "differs by", "floor", "times", ""), cells, "text"),
        "",
    ]


def _line(line: LayerLine) -> tuple[str, ...]:
    stage = line.stage
    times = line.difference / line.floor if line.floor else 0.0
    return (
        stage.key, stage.kind, stage.hf, stage.megatron, _sci(line.difference), _sci(line.floor), f"{times:.3g}",
        "diverges" if line.diverges else "",
    )  # fmt: skip


def _verdict(report: LogitsReport) -> str:
    measured, floor = report.measured, report.floor
    if measured is None or floor is None:
        return "not compared: a model could not be filled"
    times = measured.largest / floor.largest if floor.largest else math.inf
    word = "differ" if report.findings else "agree"
    return (
        f"logits {word}: largest difference {measured.largest:.2g}, {times:.3g} times the noise floor "
        f"(allowed: {report.multiple:g} times)"
    )


def _sci(value: float) -> str:
    return f"{value:.1e}"


def _json(report: LogitsReport) -> dict[str, Any]:
    first = report.first_diverging
    return {
        "left": str(report.left), "right": str(report.right),
        "models": {"left": report.left_model, "right": report.right_model},
        "tokens": list(report.tokens), "seed": report.seed, "device": report.device, "dtype": report.dtype,
        "multiple": report.multiple, "equal": not report.findings,
        "measured": _plain(report.measured), "floor": _plain(report.floor),
        "floor_runs": {name: _plain(m) for name, m in report.floor_runs.items()},
        "layers": [
            {**asdict(line.stage), "difference": _finite(line.difference), "floor": line.floor, "allowed": line.allowed,
             "scale": _finite(line.scale), "diverges": line.diverges}
            for line in report.layers
        ],
        "first_diverging": first.stage.key if first else None,
        "notes": list(report.notes),
        "findings": json.loads(render_findings(report.findings, "json"))["findings"],
    }  # fmt: skip


def _plain(measured: Measured | None) -> dict[str, float | None] | None:
    return None if measured is None else {name: _finite(value) for name, value in asdict(measured).items()}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
