"""A page from its parts: the skeleton, the styles, the scripts (files in `assets`) and the data as JSON.

The scripts build everything visible from the data with `textContent`, so a tensor name can never become markup. What
the page may load is pinned by its Content-Security-Policy: the one style and the scripts by their hashes, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

__all__ = ["assemble"]

_STYLES = ("base.css", "report.css", "print.css")
_SCRIPTS = ("core.js", "names.js", "draw.js", "rules.js", "tree.js", "provider.js")


def assemble(data: Mapping[str, Any], scripts: Sequence[str], styles: Sequence[str] = ()) -> str:
    """The page for a report.

    Args:
        data: what the scripts show; `title` and `kind` are used here too.
        scripts: files in `assets` that lay out this kind of report, after those that all reports share.
        styles: files in `assets`, likewise.
    """
    style = "\n".join(_asset(name) for name in (*_STYLES[:-1], *styles, _STYLES[-1]))
    script = "\n".join(_asset(name) for name in (*_SCRIPTS, *scripts))
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    parts = {
        "POLICY": escape(policy),
        "TITLE": escape(f"{data['title']} - mapspec {data['kind']}"),
        "KIND": escape(str(data["kind"])),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _embed(data),
    }
    page = _asset("page.html")
    head, *rest = page.split("<!--@")
    # Not `str.replace` part by part: the data may hold whatever stands for a part.
    return head + "".join(parts[name] + tail for name, _, tail in (piece.partition("-->") for piece in rest))


def _asset(name: str) -> str:
    return resources.files("mapspec.render.html").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embed(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
