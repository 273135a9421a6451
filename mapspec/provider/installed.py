"""What the installed Megatron-Core knows, read from its source text: nothing is imported, torch stays out."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.schema.provider_v1 import MegatronRange

__all__ = ["NOT_LITERAL", "check_version", "config_fields", "megatron_version"]

NOT_LITERAL = object()
"""Default of a config field that is no literal in the source."""

_CLASSES = (
    ("model_parallel_config.py", "ModelParallelConfig"),
    ("transformer/transformer_config.py", "TransformerConfig"),
)


def megatron_version() -> str | None:
    """Version of the installed Megatron-Core, `None` without one."""
    try:
        return importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        return None


def check_version(supported: MegatronRange) -> str:
    """The installed version.

    Raises:
        SpecError: Megatron-Core is missing (MS440), or older or newer than the spec supports (MS441).
    """
    version = megatron_version()
    series = f"{supported.at_least} up to below {supported.below}"
    tested = f"tested with {', '.join(supported.tested)}"
    if version is None:
        message = f"building a model needs megatron-core ({series}; {tested}), which is not installed"
        raise SpecError(Diagnostic("MS440", message, where="megatron-core", help='pip install "mapspec[megatron]"'))
    here = _series(version)
    if not _series(supported.at_least) <= here < _series(supported.below):
        word = "old" if here < _series(supported.at_least) else "new"
        message = f"megatron-core {version} is too {word}; this provider builds with {series} ({tested})"
        help_ = f'pip install "megatron-core>={supported.at_least},<{supported.below}"'
        raise SpecError(Diagnostic("MS441", message, where="megatron-core", help=help_))
    return version


def _series(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


@cache
def config_fields() -> Mapping[str, Any]:
    """Field of Megatron-Core's TransformerConfig -> default (`NOT_LITERAL` where it has to be computed).

    Empty without an installed Megatron-Core.
    """
    if megatron_version() is None:
        return {}
    found = importlib.util.find_spec("megatron")
    folders = [Path(folder) / "core" for folder in (found.submodule_search_locations or ())] if found else []
    fields: dict[str, Any] = {}
    for file, name in _CLASSES:
        path = next((folder / file for folder in folders if (folder / file).is_file()), None)
        if path is None:
            return {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                fields.update(_declared(node))
    return fields


def _declared(node: ast.ClassDef) -> Mapping[str, Any]:
    out: dict[str, Any] = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            try:
                out[line.target.id] = NOT_LITERAL if line.value is None else ast.literal_eval(line.value)
            except ValueError:
                out[line.target.id] = NOT_LITERAL
    return out
