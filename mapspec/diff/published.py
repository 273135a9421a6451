"""Names of published checkpoints, where the project keeps them: `keys/NAME.json` beside `configs/NAME.json`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

__all__ = ["published_names"]


def published_names(config: Path) -> frozenset[str] | None:
    """Names of the Hugging Face tensors of a reference model, `None` where the project does not list them.

    The file holds `keys`: [name with {L} and {E}, shape, dtype, number of experts, layers].
    """
    path = config.parent.parent / "keys" / config.name
    if config.parent.name != "configs" or not path.is_file():
        return None
    return _read(path.read_text(encoding="utf-8"))


@cache
def _read(text: str) -> frozenset[str] | None:
    keys = json.loads(text).get("keys")
    if not isinstance(keys, list):
        return None
    return frozenset(
        name.replace("{L}", str(layer)).replace("{E}", str(expert))
        for name, _, _, experts, layers in keys
        for layer in layers or ("",)
        for expert in range(experts)
    )
