"""What stands beside the weights of a checkpoint that a live model was saved to: config, side files, the record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapspec._version import __version__
from mapspec.choose import apply_sets
from mapspec.diagnostics import Diagnostic
from mapspec.documents import bundled_folder
from mapspec.errors import ConvertError
from mapspec.io.json_config import write_config
from mapspec.io.layout import Layout
from mapspec.live.matching import Live
from mapspec.manifest import FORMAT_VERSION
from mapspec.plan import ValueStep
from mapspec.sources import MANIFEST, Reference

__all__ = ["write_beside"]


def write_beside(
    live: Live,
    following: Reference,
    layout: Layout,
    folder: Path,
    steps: Sequence[ValueStep],
    *,
    dtype: str | None,
    sets: Sequence[str],
) -> None:
    """Write config.json, index, side files and the record into `folder`.

    Raises:
        ConvertError: MS724 for a side file that cannot be copied, MS704 for a file that cannot be written.
    """
    for name in following.files if following.root is not None else ():
        assert following.root is not None
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(following.root / name, target)
        except OSError as error:
            message = f"`{name}` cannot be carried along: {error.strerror}"
            raise ConvertError(Diagnostic("MS724", message, where=str(following.root))) from None
    for name, data in layout.small_files.items():
        _write(folder / name, data)
    _write(folder / "config.json", _config(following, dtype, sets))
    _write(folder / MANIFEST, _record(live, following, layout, steps, sets))


def _config(following: Reference, dtype: str | None, sets: Sequence[str]) -> bytes:
    """The reference's text, or its dialect where something was changed."""
    config: dict[str, Any] = apply_sets(following.config, sets)
    if dtype is not None and dtype != "model":
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = dtype
    if config == following.config and following.config_text is not None:
        return following.config_text.encode()
    return write_config(config, like=following.config_text)


def _record(live: Live, following: Reference, layout: Layout, steps: Sequence[ValueStep], sets: Sequence[str]) -> bytes:
    """As `mapspec.manifest` writes it, of a model instead of a checkpoint."""
    bound = live.table.bound
    document = bound.linked.top.document
    metadata = document.model.metadata
    mapping: dict[str, Any] = {"name": metadata.name, "version": metadata.version, "table_hash": live.table.hash}
    if bundled_folder("mappings") not in document.path.parents:
        mapping["path"] = str(document.path.resolve())
    shard = live.team.place.shard
    record = {
        "format_version": FORMAT_VERSION,
        "mapspec": __version__,
        "mapping": mapping,
        "included": [f"{s.id}: {s.spec.metadata.name}@{s.spec.metadata.version}" for s in bound.linked.scopes[1:]],
        "source": {
            "kind": "live",
            "ranks": live.team.world,
            "tensor": shard.tp_size,
            "expert": shard.ep_size,
            "expert_tensor": shard.etp_size,
            "pipeline": 1 + max(place.stage for place in live.places),
            "reference": following.where,
        },
        "written": "hf",
        "flavours": dict(bound.flavours),
        "padded_vocab_size": bound.choices.padded_vocab_size,
        "set": list(sets),
        "tensors": {"read": len(live.table.rows) - len(live.unheld), "written": len(layout.tensors)},
        "value_steps": [{"kind": s.kind, "detail": s.detail, "tensors": list(s.tensors)} for s in steps],
        "left_out": list(live.unheld),
    }
    return (json.dumps(record, indent=1) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        message = f"`{path.name}` cannot be written: {error.strerror}"
        raise ConvertError(Diagnostic("MS704", message, where=str(path.parent))) from None
