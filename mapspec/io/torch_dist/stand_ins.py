"""What the pickles of a checkpoint are made of once read: inert classes of ours in the place of torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "BytesMeta",
    "ChunkMeta",
    "Foreign",
    "Index",
    "Metadata",
    "Properties",
    "StorageInfo",
    "StorageRef",
    "StoredObject",
    "TensorMeta",
    "TensorRecord",
]


class StoredObject:
    """An object of the pickle, of which only its state is kept: mostly the attributes that it had, by name.

    `BUILD` finds `__setstate__` on the class as well, so a pickle that tries to alter a class gets a `TypeError`.
    """

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Metadata(StoredObject):
    """torch.distributed.checkpoint.metadata.Metadata, or megatron-core's subclass of it."""


class TensorMeta(StoredObject):
    """TensorStorageMetadata: `properties`, `size`, `chunks`."""


class BytesMeta(StoredObject):
    """BytesStorageMetadata: a byte object, without attributes."""


class ChunkMeta(StoredObject):
    """ChunkStorageMetadata: `offsets`, `sizes`."""


class Properties(StoredObject):
    """TensorProperties; its state is a tuple that begins with the data type."""


class Index(StoredObject):
    """MetadataIndex: `fqn`, `offset`, `index`."""


class StorageInfo(StoredObject):
    """_StorageInfo: `relative_path`, `offset`, `length`, `transform_descriptors`."""


class Foreign(StoredObject):
    """Anything else that may occur and that nobody asks about: save plans, paths, enum members."""

    def __new__(cls, *_args: Any) -> Foreign:
        """Made with whatever arguments."""
        return object.__new__(cls)


@dataclass(frozen=True, slots=True)
class StorageRef:
    """The storage of a tensor: record name under `data/` and size in bytes. `dtype` is `None` if untyped."""

    key: str
    dtype: str | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as `torch.save` describes it; offset and strides in elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
