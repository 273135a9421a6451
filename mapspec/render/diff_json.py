"""`mapspec diff` for programs."""

from __future__ import annotations

import json

from mapspec.diff.model import FORMAT_VERSION, Report, as_data
from mapspec.render.diff_text import verdict

__all__ = ["render_diff_json"]


def render_diff_json(report: Report) -> str:
    """Everything, by the names of `mapspec.diff.model`; `format_version` says which form."""
    head = {"format_version": FORMAT_VERSION, "kind": "diff", "verdict": verdict(report)}
    counts = {level.value: n for level, n in report.counts.items()}
    return json.dumps({**head, "refactor": report.refactor, "counts": counts, **as_data(report)}, indent=2)
