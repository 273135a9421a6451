"""Pickles from a checkpoint, read without importing or calling anything that they name.

A pickle may name any function and have it called. Here every name is looked up in a fixed table: a listed one stands
for an inert class of ours (or a builtin such as `tuple`), any other stops the reading. So neither torch nor
megatron-core is needed, and a prepared file can do no more than be refused.
"""

from __future__ import annotations

import argparse
import io
import pickle
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mapspec.io.torch_dist.stand_ins import (
    BytesMeta,
    ChunkMeta,
    Foreign,
    Index,
    Metadata,
    Properties,
    StorageInfo,
    StorageRef,
    TensorMeta,
    TensorRecord,
)
from mapspec.tensors import DTYPES

__all__ = ["RefusedGlobalError", "UnreadablePickleError", "load_common", "load_item", "load_metadata"]


class UnreadablePickleError(Exception):
    """The bytes are not a pickle that can be read."""


class RefusedGlobalError(UnreadablePickleError):
    """The pickle names something outside the table; `name` is that name, dotted."""

    def __init__(self, name: str) -> None:
        super().__init__(f"names `{name}`")
        self.name = name


# The classes whose name used to tell a storage's data type; newer data types come with an untyped storage.
_STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
}


@dataclass(frozen=True, slots=True)
class _StorageKind:
    dtype: str | None


def _rebuild(storage: StorageRef, offset: int, shape: Any, strides: Any, *rest: Any) -> TensorRecord:
    # v2 ends with requires_grad, hooks[, metadata]; v3 with requires_grad, hooks, dtype[, metadata].
    dtype = storage.dtype or (rest[2] if len(rest) > 2 else None)
    if not isinstance(dtype, str):
        raise UnreadablePickleError("describes a tensor without a data type")
    return TensorRecord(storage, dtype, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: TensorRecord, *_rest: Any) -> TensorRecord:
    return tensor


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


# Of torch's data types beyond DTYPES: enough to name them in a message.
_OTHER_DTYPES = (
    "complex32 complex64 complex128 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 qint8 quint8 qint32"
)
_DTYPE_NAMES = {("torch", name): name for name in (*DTYPES, *_OTHER_DTYPES.split())}

_ITEM: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "UntypedStorage"): _StorageKind(None),
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): tuple,
    **_DTYPE_NAMES,
    **{("torch", name): _StorageKind(dtype) for name, dtype in _STORAGES.items()},
}

_DCP = "torch.distributed.checkpoint"
_OLD_DCP = "torch.distributed._shard.sharded_tensor.metadata"  # home of TensorProperties before torch 2.3
_MCORE = "megatron.core.dist_checkpointing.strategies.torch"
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_PATH_CLASSES = {(module, name): Foreign for module in ("pathlib", "pathlib._local") for name in _PATHS}

_METADATA: dict[tuple[str, str], Any] = {
    (f"{_DCP}.metadata", "Metadata"): Metadata,
    (_MCORE, "MCoreMetadata"): Metadata,
    (f"{_DCP}.metadata", "TensorStorageMetadata"): TensorMeta,
    (f"{_DCP}.metadata", "BytesStorageMetadata"): BytesMeta,
    (f"{_DCP}.metadata", "ChunkStorageMetadata"): ChunkMeta,
    (f"{_DCP}.metadata", "TensorProperties"): Properties,
    (_OLD_DCP, "TensorProperties"): Properties,
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): int,
    (_OLD_DCP, "MEM_FORMAT_ENCODING"): int,
    (f"{_DCP}.metadata", "MetadataIndex"): Index,
    (f"{_DCP}.metadata", "StorageMeta"): Foreign,
    (f"{_DCP}.filesystem", "_StorageInfo"): StorageInfo,
    (f"{_DCP}.filesystem", "_StoragePrefix"): Foreign,
    (f"{_DCP}.planner", "SavePlan"): Foreign,
    (f"{_DCP}.planner", "WriteItem"): Foreign,
    (f"{_DCP}.planner", "WriteItemType"): int,
    (f"{_DCP}.planner", "TensorWriteData"): Foreign,
    (f"{_DCP}.planner", "BytesIOWriteData"): Foreign,
    (_MCORE, "MCoreSavePlan"): Foreign,
    ("torch.serialization", "_get_layout"): str,
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): tuple,
    **_PATH_CLASSES,
    **_DTYPE_NAMES,
}

# What megatron-core itself accepts in common state (its list of safe globals), all of it inert here.
_COMMON: dict[tuple[str, str], Any] = {
    **_ITEM,
    **_PATH_CLASSES,
    ("argparse", "Namespace"): argparse.Namespace,
    ("types", "SimpleNamespace"): types.SimpleNamespace,
    ("_codecs", "encode"): _latin1,
    ("_io", "BytesIO"): Foreign,
    ("signal", "Signals"): Foreign,
    ("torch", "device"): Foreign,
    ("torch._C", "Generator"): Foreign,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Foreign for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Foreign for core in ("core", "_core")},
    ("numpy", "ndarray"): Foreign,
    ("numpy", "dtype"): Foreign,
    ("numpy.dtypes", "UInt32DType"): Foreign,
    ("megatron.core.enums", "ModelType"): Foreign,
    ("megatron.core.optimizer", "OptimizerConfig"): Foreign,
    ("megatron.core.optimizer.optimizer_config", "OptimizerConfig"): Foreign,
    **{("megatron.core.rerun_state_machine", name): Foreign for name in ("RerunDiagnostic", "RerunMode", "RerunState")},
    **{
        ("megatron.core.transformer.enums", name): Foreign
        for name in ("AttnBackend", "AttnMaskType", "CudaGraphModule", "CudaGraphScope", "InferenceCudaGraphScope")
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, table: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._table = table

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return self._table[module, name]
        except KeyError:
            raise RefusedGlobalError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        _tag, kind, key, _location, count = pid
        if not isinstance(kind, _StorageKind) or not isinstance(key, str) or not isinstance(count, int):
            raise UnreadablePickleError("refers to a storage in a way that torch.save does not")
        return StorageRef(key, kind.dtype, count * (DTYPES[kind.dtype] if kind.dtype else 1))


def _load(data: bytes, table: Mapping[tuple[str, str], Any]) -> Any:
    try:
        return _Unpickler(data, table).load()
    except UnreadablePickleError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything: EOFError, KeyError, TypeError, MemoryError
        raise UnreadablePickleError(f"cannot be read as a pickle: {type(error).__name__}: {error}") from error


def load_metadata(data: bytes) -> Any:
    """The object in a `.metadata` file, made of the classes above."""
    return _load(data, _METADATA)


def load_item(data: bytes) -> Any:
    """The object in an item's `data.pkl`: a `TensorRecord` if the item is a tensor."""
    return _load(data, _ITEM)


def load_common(data: bytes) -> Any:
    """The object in the `data.pkl` of common state. Data types become their names, tensors `TensorRecord`s."""
    return _load(data, _COMMON)
