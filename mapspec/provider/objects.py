"""Names in fields <-> the Python objects they stand for. A fixed table: nothing is imported because a file says so."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.schema.provider_v1 import FieldKind

__all__ = ["PATHS", "import_path", "to_name", "to_object"]

_ENUM = "megatron.core.transformer.enums.AttnBackend"

PATHS: Mapping[FieldKind, Mapping[str, str]] = {
    "activation": {
        "squared_relu": "megatron.core.activations.squared_relu",
        "quick_gelu": "megatron.core.activations.quick_gelu",
        "fast_gelu": "megatron.core.activations.fast_gelu",
        "gelu": "torch.nn.functional.gelu",
        "relu": "torch.nn.functional.relu",
        "silu": "torch.nn.functional.silu",
        "sigmoid": "torch.sigmoid",
        "tanh": "torch.tanh",
    },
    "dtype": {name: f"torch.{name}" for name in ("bfloat16", "float16", "float32")},
    "attention_backend": {name: f"{_ENUM}.{name}" for name in ("flash", "fused", "unfused", "local", "auto")},
}
"""Kind of field -> name -> import path of the object."""


def import_path(kind: FieldKind, name: str) -> str:
    """Import path of the object that `name` stands for.

    Raises:
        SpecError: MS444 with the names that exist.
    """
    table = PATHS[kind]
    if name not in table:
        what = {"activation": "activation", "dtype": "dtype", "attention_backend": "attention backend"}[kind]
        help_ = f"there are: {', '.join(table)}"
        raise SpecError(Diagnostic("MS444", f"there is no {what} `{name}`", hint=nearest(name, table), help=help_))
    return table[name]


def to_object(kind: FieldKind, value: Any) -> Any:
    """The object that a field's name stands for; everything else is returned as it is.

    Raises:
        SpecError: an unknown name (MS444), or the package that has the object is not installed (MS440).
    """
    if kind == "plain" or not isinstance(value, str):
        return value
    path = import_path(kind, value)
    folder, _, name = path.rpartition(".")
    try:
        if kind == "attention_backend":
            folder, _, enum = folder.rpartition(".")
            return getattr(getattr(import_module(folder), enum), name)
        return getattr(import_module(folder), name)
    except ImportError as error:
        message = f"`{value}` is `{path}`, but `{error.name}` is not installed"
        raise SpecError(Diagnostic("MS440", message, help='pip install "mapspec[megatron]"')) from None


def to_name(kind: FieldKind, value: Any) -> Any:
    """The name of an object of the table; names and objects outside the table are returned as they are."""
    if kind == "plain" or value is None or isinstance(value, str):
        return value
    if kind == "attention_backend":
        name = getattr(value, "name", None)
    elif kind == "dtype":
        name = str(value).removeprefix("torch.")
    else:
        # torch's functions are known under several modules: compare the bare name, then the object itself.
        name = getattr(value, "__name__", None)
        if name in PATHS[kind] and to_object(kind, name) is not value:
            name = None
    return name if name in PATHS[kind] else value
