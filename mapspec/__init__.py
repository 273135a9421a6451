"""Moving model weights between Hugging Face and Megatron-Core, with the mapping as data.

The names below are imported on first use, so that `import mapspec` costs nothing and brings no torch along. What a
command does stands in the module of its name: `from mapspec.convert import convert`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mapspec._version import __version__

if TYPE_CHECKING:
    from mapspec.bind import Choices
    from mapspec.convert import Converted, Output
    from mapspec.errors import MapspecError
    from mapspec.live.exporting import Exporter, export
    from mapspec.live.loading import load
    from mapspec.live.saving import save_hf
    from mapspec.mapping import CompiledMapping, compile_mapping
    from mapspec.prepare import Prepared, Request
    from mapspec.provider.provider import Provider
    from mapspec.ranks import Shard
    from mapspec.verify import Verified

__all__ = [
    "Choices",
    "CompiledMapping",
    "Converted",
    "Exporter",
    "MapspecError",
    "Output",
    "Prepared",
    "Provider",
    "Request",
    "Shard",
    "Verified",
    "__version__",
    "compile_mapping",
    "export",
    "load",
    "save_hf",
]

_HOMES = {
    "Choices": "mapspec.bind",
    "CompiledMapping": "mapspec.mapping",
    "Converted": "mapspec.convert",
    "Exporter": "mapspec.live.exporting",
    "MapspecError": "mapspec.errors",
    "Output": "mapspec.convert",
    "Prepared": "mapspec.prepare",
    "Provider": "mapspec.provider.provider",
    "Request": "mapspec.prepare",
    "Shard": "mapspec.ranks",
    "Verified": "mapspec.verify",
    "compile_mapping": "mapspec.mapping",
    "export": "mapspec.live.exporting",
    "load": "mapspec.live.loading",
    "save_hf": "mapspec.live.saving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `mapspec` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
