"""What `verify` prints: a checkpoint against its certificate, or two against each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mapspec.amounts import human_bytes
from mapspec.render.findings import render_findings
from mapspec.render.grid import as_json

if TYPE_CHECKING:  # checking one folder needs nothing that comparing two does
    from mapspec.intact import Checked
    from mapspec.verify import Verified

__all__ = ["render_checked", "render_verified"]


def render_verified(done: Verified, format: str = "text") -> str:
    """How two checkpoints compare; `verify`."""
    if format == "json":
        findings = json.loads(render_findings(done.findings, "json"))["findings"]
        body = {"left": str(done.left), "right": str(done.right), "tensors": done.tensors, "bytes": done.nbytes}
        return as_json("verified", {**body, "equal": not done.findings, "findings": findings})
    noun = "tensor" if done.tensors == 1 else "tensors"
    compared = f"{done.tensors:,} {noun}, {human_bytes(done.nbytes)} compared"
    if not done.findings:
        return f"equal, bit for bit: {compared}"
    return f"{render_findings(done.findings, format)}\n{compared}"


def render_checked(done: Checked, format: str = "text") -> str:
    """How a checkpoint compares with its certificate; `verify` with one folder."""
    head = done.certificate.head
    if format == "json":
        findings = json.loads(render_findings(done.findings, "json"))["findings"]
        body = {"folder": str(done.folder), "tensors": done.tensors, "files": done.files, "bytes": done.nbytes}
        return as_json("checked", {**body, "intact": not done.findings, "findings": findings})
    noun = "tensor" if done.tensors == 1 else "tensors"
    checked = f"{done.tensors:,} {noun} and all else in {done.files:,} files, {human_bytes(done.nbytes)} read"
    if done.findings:
        return f"{render_findings(done.findings, format)}\n{checked}"
    mapping = head["mapping"]
    return f"as written by mapspec {head['mapspec']} ({mapping['name']}@{mapping['version']}): {checked}"
