"""The forms in which a comparison is written, by the name that `--format` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mapspec.diff.model import Report
from mapspec.render.diff_github import render_diff_github
from mapspec.render.diff_json import render_diff_json
from mapspec.render.diff_md import render_diff_md
from mapspec.render.diff_text import render_diff_text

__all__ = ["FORMATS"]

FORMATS: Mapping[str, Callable[[Report], str]] = {
    "text": render_diff_text,
    "md": render_diff_md,
    "json": render_diff_json,
    "github": render_diff_github,
}
