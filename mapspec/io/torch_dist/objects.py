"""Byte objects of a checkpoint as megatron-core stores them, for checkpoints that hold weights only."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

from mapspec.io.torch_dist.frame import object_item
from mapspec.io.torch_dist.unpickle import load_common

__all__ = ["common_pt", "common_state_object", "extra_state_key", "extra_state_stub"]


def extra_state_key(module: str, index: int = 0, count: int = 1) -> str:
    """Key of the extra state of a module; experts share a module name and have `index` and `count`."""
    return f"{module}._extra_state/shard_{index}_{count}"


def extra_state_stub() -> bytes:
    """An `_extra_state` object that says "nothing": megatron-core stores each as a list of one value."""
    return object_item(pickle.dumps([None], protocol=2))


def common_state_object(state: Mapping[str, object]) -> bytes:
    """The object `common_state/shard_0_1`, in which megatron-core 0.19 and later keep common state."""
    return object_item(_plain([dict(state)]))


def common_pt(state: Mapping[str, object]) -> bytes:
    """Content of `common.pt`, in which megatron-core up to 0.18 keeps common state; later ones read it first."""
    return object_item(_plain(dict(state)))


def _plain(value: object) -> bytes:
    data = pickle.dumps(value, protocol=2)
    load_common(data)  # what is written must be readable by the same rules
    return data
