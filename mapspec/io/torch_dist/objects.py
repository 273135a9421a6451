"""Byte objects of a checkpoint as megatron-core stores them, for checkpoints that hold weights only."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping

from mapspec.io.torch_dist.frame import object_item, scalars_item
from mapspec.io.torch_dist.unpickle import load_common

__all__ = ["common_pt", "common_state_object", "extra_state_key", "extra_state_stub", "train_state_pt"]

_COUNTERS = dict.fromkeys(("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples"), 0)


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


def train_state_pt(step: int = 0) -> bytes:
    """Content of `train_state.pt`, from which Megatron-Bridge takes the iteration before it looks at the tracker file.

    Nothing has been trained yet: all counters are 0 and no phase is on. `step` is the iteration of the folder.
    """
    counters = {name: ("int32", struct.pack("<i", value)) for name, value in {"step": step, **_COUNTERS}.items()}
    operations = {"floating_point_operations_so_far": ("float64", struct.pack("<d", 0.0))}
    phases = dict.fromkeys(("do_train", "do_valid", "do_test"), ("bool", b"\x00"))
    return scalars_item({**counters, **operations, **phases})


def _plain(value: object) -> bytes:
    data = pickle.dumps(value, protocol=2)
    load_common(data)  # what is written must be readable by the same rules
    return data
