"""`mapspec.json`, beside every output: what was done, with which spec, to what."""

from __future__ import annotations

import json
from typing import Any

from mapspec._version import __version__
from mapspec.documents import bundled_folder
from mapspec.io.layout import Layout
from mapspec.prepare import Prepared

__all__ = ["FORMAT_VERSION", "manifest"]

FORMAT_VERSION = "1.0"


def manifest(prepared: Prepared, layout: Layout) -> bytes:
    """The record of a conversion as JSON text.

    Readers accept equal major parts of `format_version`.
    """
    plan, bound = prepared.plan, prepared.table.bound
    document = bound.linked.top.document
    metadata = document.model.metadata
    mapping: dict[str, Any] = {"name": metadata.name, "version": metadata.version, "table_hash": prepared.table.hash}
    if bundled_folder("mappings") not in document.path.parents:
        mapping["path"] = str(document.path.resolve())
    record = {
        "format_version": FORMAT_VERSION,
        "mapspec": __version__,
        "mapping": mapping,
        "included": [f"{s.id}: {s.spec.metadata.name}@{s.spec.metadata.version}" for s in bound.linked.scopes[1:]],
        "source": {"kind": prepared.source.kind, "path": str(prepared.source.path.resolve())},
        "written": prepared.to,
        "flavours": dict(bound.flavours),
        "padded_vocab_size": bound.choices.padded_vocab_size,
        "set": list(prepared.request.sets),
        "tensors": {"read": len(plan.coverage.mapped), "written": len(layout.tensors)},
        "value_steps": [
            {"kind": step.kind, "detail": step.detail, "tensors": list(step.tensors)} for step in plan.steps
        ],
        "passthrough": dict(plan.coverage.passthrough),
        "ignored": dict(plan.coverage.ignored),
    }
    return (json.dumps(record, indent=1) + "\n").encode()
