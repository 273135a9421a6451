"""The tensors of a checkpoint as a list: names, shapes and dtypes from headers, alike ones under one pattern."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.collapse import collapse
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.hf_folder import open_hf
from mapspec.io.safetensors_header import Header, read_header
from mapspec.io.torch_dist.read import open_torch_dist
from mapspec.nogc import gc_paused
from mapspec.sources import Kind, is_model_key, source_kind
from mapspec.tensors import DTYPES, StoredTensor

__all__ = ["KeyList", "Keys", "group_keys", "read_keys"]

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class KeyList:
    """What a checkpoint holds.

    Attributes:
        kind: `hf` or `megatron`.
        tensors: by name, in natural order of the names.
        left_out: how many keys of optimizer state were not looked at.
    """

    kind: Kind
    tensors: Mapping[str, StoredTensor]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Keys:
    """Tensors of one shape and dtype whose names differ in numbers only; `nbytes` is the size of all of them."""

    pattern: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    nbytes: int


@gc_paused()
def read_keys(path: Path) -> KeyList:
    """List a checkpoint of either kind, a single safetensors file, or what `mapspec keys --full --format json` wrote.

    Raises:
        CheckpointError: MS601 where there is nothing of the kind; what is wrong with headers and indexes.
    """
    if path.is_file() and path.suffix == ".safetensors":
        header = read_header(path, path.name)
        if not isinstance(header, Header):
            raise CheckpointError(header)
        return KeyList("hf", _sorted({tensor.name: tensor for tensor in header.tensors}))
    if path.is_file() and path.suffix == ".json" and path.name != "config.json":
        return _from_listing(path)
    if source_kind(path) == "hf":
        return KeyList("hf", _sorted(open_hf(path, config=False).tensors))
    found = open_torch_dist(path, select=is_model_key)
    if found.unsupported:
        raise CheckpointError(found.unsupported.values())
    return KeyList("megatron", _sorted(found.tensors), len(found.left_out))


def group_keys(tensors: Mapping[str, StoredTensor], *, full: bool = False) -> list[Keys]:
    """The tensors, alike ones under one pattern such as `layers.{0...51}.norm.weight`; with `full` one by one."""
    if full:
        return [Keys(t.name, t.shape, t.dtype, 1, t.nbytes) for t in tensors.values()]
    alike: dict[tuple[tuple[str, ...], tuple[int, ...], str], list[StoredTensor]] = {}
    for name, tensor in tensors.items():
        key = (tuple(_NUMBER.split(name)[::2]), tensor.shape, tensor.dtype)
        alike.setdefault(key, []).append(tensor)
    return [
        Keys(pattern, shape, dtype, count, count * members[0].nbytes)
        for (_, shape, dtype), members in alike.items()
        for pattern, count in collapse(t.name for t in members)
    ]


def _sorted(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return dict(sorted(tensors.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> tuple[tuple[str, int], ...]:
    """Sorts `layers.10` behind `layers.9`."""
    return tuple(("", int(part)) if part.isdecimal() else (part, 0) for part in _NUMBER.split(name))


def _from_listing(path: Path) -> KeyList:
    try:
        listing: Any = json.loads(path.read_text(encoding="utf-8"))
        kind = {"hf": "hf", "megatron": "megatron"}[listing["checkpoint"]]
        tensors = {}
        for entry in listing["tensors"]:
            name, shape, dtype = str(entry["name"]), tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
            if entry["count"] != 1 or dtype not in DTYPES or math.prod(shape) < 0:
                raise ValueError(name)
            tensors[name] = StoredTensor(name, dtype, shape, ())
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        message = "this is no full list of tensors"
        help_ = "make one beside the checkpoint: mapspec keys DIR --full --format json"
        raise CheckpointError(Diagnostic("MS864", message, where=str(path), help=help_)) from None
    return KeyList("hf" if kind == "hf" else "megatron", tensors, int(listing.get("left_out", 0)))
