"""Live models: filling a Megatron-Core model from a Hugging Face checkpoint on every rank, and giving it back.

`load`, `export` and `save_hf` are called by all ranks together. The names below are imported on first use, so that
importing this package brings no torch along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapspec.live.exporting import Exporter, export
    from mapspec.live.loading import LoadReport, load
    from mapspec.live.saving import SaveReport, save_hf

__all__ = ["Exporter", "LoadReport", "SaveReport", "export", "load", "save_hf"]

_HOMES = {
    "Exporter": "mapspec.live.exporting",
    "LoadReport": "mapspec.live.loading",
    "SaveReport": "mapspec.live.saving",
    "export": "mapspec.live.exporting",
    "load": "mapspec.live.loading",
    "save_hf": "mapspec.live.saving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `mapspec.live` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
