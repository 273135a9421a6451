"""What a `.metadata` file says, before any data file is opened."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.frozen import frozen
from mapspec.io.torch_dist.stand_ins import (
    BytesMeta,
    ChunkMeta,
    Index,
    Metadata,
    Properties,
    StorageInfo,
    TensorMeta,
)
from mapspec.io.torch_dist.unpickle import RefusedGlobalError, UnreadablePickleError, load_metadata
from mapspec.tensors import Box

__all__ = ["ListedTensor", "Listing", "Slot", "read_listing"]

_DAMAGED_HELP = "copy the checkpoint again, or save it again with the program that wrote it"


@frozen
class Slot:
    """An item's bytes: `length` bytes from `offset` on in `file`, relative to the checkpoint's folder.

    `transforms` names what the writer did to the bytes, for example compression; mostly empty.
    """

    file: str
    offset: int
    length: int
    transforms: tuple[str, ...] = ()


@frozen
class ListedTensor:
    """A tensor as `.metadata` lists it: data type, global shape, and the box and the place of each chunk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[Box, Slot], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything that `.metadata` lists, by key in its order."""

    tensors: dict[str, ListedTensor]
    objects: dict[str, Slot]


def read_listing(file: Path) -> Listing:
    """Read a `.metadata` file."""
    try:
        return _listing(_content(file), str(file))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # The classes are ours, the fields in them are whatever the file held.
        raise _damaged(str(file), f"a field of it is not as torch writes it ({error})") from error


def _content(file: Path) -> Metadata:
    try:
        content = load_metadata(file.read_bytes())
    except RefusedGlobalError as problem:
        raise CheckpointError(
            Diagnostic(
                "MS653",
                f"`.metadata` names `{problem.name}`, which no checkpoint needs",
                where=str(file),
                help="nothing of it was executed; use the file only if you trust its origin, "
                "and load and save it again with megatron-core to be rid of the name",
            )
        ) from problem
    except UnreadablePickleError as problem:
        raise _damaged(str(file), str(problem)) from problem
    except OSError as error:
        raise _damaged(str(file), f"cannot be opened: {error.strerror or error}") from error
    if not isinstance(content, Metadata):
        raise _damaged(str(file), "holds something else than checkpoint metadata")
    return content


def _listing(content: Metadata, where: str) -> Listing:
    slots: dict[tuple[str, tuple[int, ...] | None], Slot] = {}
    for index, info in content.state["storage_data"].items():
        if not isinstance(index, Index) or not isinstance(info, StorageInfo):
            raise _damaged(where, "its storage table holds something else than places of items")
        offset = index.state.get("offset")  # objects have none
        slots[index.state["fqn"], None if offset is None else _ints(offset)] = _slot(info.state, where)
    tensors: dict[str, ListedTensor] = {}
    objects: dict[str, Slot] = {}
    for name, entry in content.state["state_dict_metadata"].items():
        if isinstance(entry, BytesMeta):
            slot = slots.get((name, None))
            if slot is None:
                raise _damaged(where, f"lists the object `{name}` without a place")
            objects[name] = slot
        elif isinstance(entry, TensorMeta):
            tensors[name] = _tensor(name, entry, slots, where)
        else:
            raise _damaged(where, f"lists `{name}` as neither tensor nor object")
    return Listing(tensors, objects)


def _tensor(
    name: str, entry: TensorMeta, slots: dict[tuple[str, tuple[int, ...] | None], Slot], where: str
) -> ListedTensor:
    properties = entry.state["properties"]
    if not isinstance(properties, Properties) or not isinstance(properties.state[0], str):
        raise _damaged(where, f"lists `{name}` without a data type")
    chunks: dict[Box, Slot] = {}  # a replica listed twice has the same box and the same place
    for chunk in entry.state["chunks"]:
        if not isinstance(chunk, ChunkMeta):
            raise _damaged(where, f"lists `{name}` with something else than chunks")
        offsets, sizes = _ints(chunk.state["offsets"]), _ints(chunk.state["sizes"])
        slot = slots.get((name, offsets))
        if slot is None:
            raise _damaged(where, f"lists the chunk at {list(offsets)} of `{name}` without a place")
        chunks[tuple([(a, a + n) for a, n in zip(offsets, sizes, strict=True)])] = slot
    return ListedTensor(name, properties.state[0], _ints(entry.state["size"]), tuple(chunks.items()))


def _slot(info: Mapping[str, Any], where: str) -> Slot:
    file = info["relative_path"]
    offset, length = _ints((info["offset"], info["length"]))
    if not _is_inside(file):
        raise _damaged(where, f"points outside the checkpoint's folder: `{file}`")
    if offset < 0 or length < 0:
        raise _damaged(where, f"lists a negative place in `{file}`")
    return Slot(file, offset, length, tuple(map(str, info.get("transform_descriptors") or ())))


@functools.lru_cache(maxsize=65536)
def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in file


def _ints(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if not {int}.issuperset(map(type, found)):
        raise TypeError(f"{next(n for n in found if type(n) is not int)!r} is no whole number")
    return found


def _damaged(where: str, what: str) -> CheckpointError:
    return CheckpointError(Diagnostic("MS652", f"`.metadata` {what}", where=where, help=_DAMAGED_HELP))
