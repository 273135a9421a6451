"""What `load`, `export` and `save_hf` begin with: config, mapping and flavours, from arguments that users give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapspec.bind import Choices
from mapspec.choose import apply_sets, choose_mapping, detect_flavours
from mapspec.link import Linked
from mapspec.sources import Reference, open_reference

__all__ = ["choose", "reference_of"]


def choose(
    config: Mapping[str, Any],
    names: Sequence[str],
    *,
    where: str,
    spec: str | None,
    flavours: Mapping[str, str] | None,
    sets: Sequence[str],
) -> tuple[Linked, dict[str, Any], Choices]:
    """Mapping, config with `sets` applied, and the flavours that the user or the Hugging Face names decide.

    Raises:
        SpecError: no mapping for the architecture, or one that cannot be read.
    """
    changed = apply_sets(config, sets)
    linked = choose_mapping(changed, where=where, spec=spec)
    return linked, changed, Choices(detect_flavours(linked, names, flavours or {}))


def reference_of(reference: str | Path | Mapping[str, Any]) -> Reference:
    """The Hugging Face side to follow: a checkpoint folder, a config.json, or the contents of one.

    Raises:
        CheckpointError: it cannot be read.
    """
    if isinstance(reference, Mapping):
        return Reference("config", dict(reference), None)
    return open_reference(reference)
