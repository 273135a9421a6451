"""What stands beside the weights of a checkpoint that a live model was saved to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mapspec.beside import carry, config_bytes, record, with_dtype, write_certificate, write_file
from mapspec.certificate import FileRecord
from mapspec.choose import apply_sets
from mapspec.diagnostics import Span
from mapspec.io.layout import Layout
from mapspec.live.matching import Live
from mapspec.names import Pattern
from mapspec.plan import ValueStep
from mapspec.sources import Reference

__all__ = ["write_beside"]


def write_beside(
    live: Live,
    following: Reference,
    layout: Layout,
    folder: Path,
    steps: Sequence[ValueStep],
    records: Mapping[str, FileRecord],
    *,
    dtype: str | None,
    sets: Sequence[str],
) -> None:
    """Write config.json, index, side files and the certificate into `folder`.

    Args:
        records: of the files that hold tensors.

    Raises:
        ConvertError: MS724 for a side file that cannot be copied, MS704 for a file that cannot be written.
    """
    carry(following, folder)
    for name, data in layout.small_files.items():
        write_file(folder / name, data)
    config = with_dtype(apply_sets(following.config, sets), None if dtype == "model" else dtype)
    write_file(folder / "config.json", config_bytes(following, config))
    shard = live.team.place.shard
    source = {
        "kind": "live",
        "ranks": live.team.world,
        "tensor": shard.tp_size,
        "expert": shard.ep_size,
        "expert_tensor": shard.etp_size,
        "pipeline": 1 + max(place.stage for place in live.places),
        "reference": following.where,
    }
    counts = {"read": len(live.table.rows) - len(live.unheld), "written": len(layout.tensors)}
    bound = live.table.bound
    head = record(
        live.table,
        source=source,
        written="hf",
        sets=sets,
        tensors=counts,
        steps=steps,
        passthrough=_reasons(bound.passthrough, layout.tensors),
        ignored=_reasons(bound.ignore_hf, following.shard_of),
        left_out=list(live.unheld),
    )
    write_certificate(folder, head, records, {})


def _reasons(patterns: Sequence[tuple[Pattern, str, Span]], names: Iterable[str]) -> dict[str, str]:
    """The reason for each name that one of the patterns matches."""
    return {name: reason for name in names for pattern, reason, _ in patterns if pattern.match(name)}
