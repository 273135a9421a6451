"""The `torch_dist` format: Megatron-Core checkpoints, read and laid out without torch or megatron-core."""

from mapspec.io.torch_dist.folder import (
    METADATA,
    TRACKER,
    common_state_for_weights,
    find_folder,
    is_torch_dist,
    iteration_folder,
    metadata_json,
    tracker_text,
)
from mapspec.io.torch_dist.objects import (
    common_pt,
    common_state_object,
    extra_state_key,
    extra_state_stub,
    train_state_pt,
)
from mapspec.io.torch_dist.read import TorchDistCheckpoint, open_torch_dist
from mapspec.io.torch_dist.write import layout_torch_dist

__all__ = [
    "METADATA",
    "TRACKER",
    "TorchDistCheckpoint",
    "common_pt",
    "common_state_for_weights",
    "common_state_object",
    "extra_state_key",
    "extra_state_stub",
    "find_folder",
    "is_torch_dist",
    "iteration_folder",
    "layout_torch_dist",
    "metadata_json",
    "open_torch_dist",
    "tracker_text",
    "train_state_pt",
]
