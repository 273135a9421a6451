"""Opening a `torch_dist` checkpoint: every tensor with the places of its raw bytes, no torch needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.boxes import tiling_fault
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.opened import OpenedFile, Stamp, opened
from mapspec.io.torch_dist.archive import ItemError, Window, first_reads
from mapspec.io.torch_dist.common import COMMON_FILE, COMMON_OBJECT, common_from_file, common_from_object
from mapspec.io.torch_dist.folder import METADATA, find_folder
from mapspec.io.torch_dist.metadata import ListedTensor, Slot, read_listing
from mapspec.io.torch_dist.run_config import read_run_config
from mapspec.io.torch_dist.zipitem import Locator, Place
from mapspec.nogc import gc_paused
from mapspec.tensors import DTYPES, Box, Chunk, StoredTensor, box_shape

__all__ = ["TorchDistCheckpoint", "open_torch_dist"]

_HELP = {
    "MS653": "nothing of it was executed; use the file only if you trust its origin",
    "MS654": "copy the checkpoint again; compare the files' sizes with the source's",
    "MS655": "copy the checkpoint again, or save it again with the program that wrote it",
    "MS656": "the files do not belong together; copy the checkpoint again",
    "MS657": "some ranks' part is missing or there twice; save the checkpoint again",
    "MS658": "load the checkpoint and save it again with megatron-core's default settings",
    "MS659": "mapspec moves bytes of the data types listed in the manual; leave this tensor out",
}


@dataclass(frozen=True, slots=True)
class TorchDistCheckpoint:
    """An opened Megatron-Core checkpoint.

    Attributes:
        root: the path that was given.
        folder: the folder with `.metadata`; chunks' files are relative to it.
        iteration: the training iteration; `None` for `release` and for folders with other names.
        stamps: of each data file, taken before anything of it was read.
        tensors: by key, with chunks that point at raw tensor bytes. Optimizer state is listed like weights.
        objects: byte objects by key, for example `x._extra_state/shard_0_1`; `read_object` reads one.
        unsupported: tensors of a data type that is not in `DTYPES`, by key, each with what to say about it.
        left_out: keys of tensors that `select` did not want; they were not looked at.
        run_config: content of `run_config.yaml`, if there is one.
    """

    root: Path
    folder: Path
    iteration: int | None
    stamps: Mapping[str, Stamp]
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, Slot]
    unsupported: Mapping[str, Diagnostic]
    left_out: tuple[str, ...]
    run_config: Mapping[str, Any] | None

    def read_object(self, name: str) -> bytes:
        """The stored bytes of an object."""
        slot = self.objects[name]
        file = self.folder / slot.file
        with opened(file) as stream:
            data = stream.read(slot.offset, slot.length)
        if len(data) != slot.length:
            raise _error("MS654", f"the file ends before the object `{name}` does", str(file))
        return data

    def read_common_state(self) -> dict[str, Any]:
        """The state that is not sharded: `iteration`, `checkpoint_version`, with Megatron-LM also `args`.

        From `common.pt` if there is one, as megatron-core does. Values are plain Python ones; data types come as
        names (`bfloat16`), arrays, tensors and megatron-core's own classes as inert stand-ins.
        """
        file = self.folder / COMMON_FILE
        if file.is_file():
            return common_from_file(file)
        if COMMON_OBJECT in self.objects:
            return common_from_object(self.folder, self.objects[COMMON_OBJECT])
        raise CheckpointError(
            Diagnostic(
                "MS661",
                f"the checkpoint holds neither `{COMMON_FILE}` nor an object `{COMMON_OBJECT}`",
                where=str(self.folder),
                help="copy the checkpoint again, or give the config by other means",
            )
        )


@gc_paused()
def open_torch_dist(path: Path, *, select: Callable[[str], bool] | None = None) -> TorchDistCheckpoint:
    """Open the checkpoint at `path`: the folder of an iteration, or the folder above it.

    Every item's framing is read and checked; tensor data is not. `select` says by key which tensors are wanted, so
    that others (optimizer state) cost no time and cannot stand in the way; `None` wants all.
    """
    found = find_folder(path)
    listing = read_listing(found.path / METADATA)
    wanted = {name: t for name, t in listing.tensors.items() if select is None or select(name)}
    unsupported = {
        name: _finding("MS659", f"the tensor `{name}` has the data type {t.dtype}", str(found.path / METADATA))
        for name, t in wanted.items()
        if t.dtype not in DTYPES
    }
    readable = [t for name, t in wanted.items() if name not in unsupported]
    for tensor in readable:
        problem = tiling_fault(tensor.shape, [box for box, _ in tensor.chunks])
        if problem:
            raise _error("MS657", f"the tensor `{tensor.name}` is not covered exactly once: {problem}", str(found.path))
    tensors, stamps = _place(found.path, readable, listing.objects)
    return TorchDistCheckpoint(
        root=path,
        folder=found.path,
        iteration=found.iteration,
        stamps=stamps,
        tensors=tensors,
        objects=listing.objects,
        unsupported=unsupported,
        left_out=tuple(name for name in listing.tensors if name not in wanted),
        run_config=read_run_config(found.path / "run_config.yaml"),
    )


def _place(
    folder: Path, listed: list[ListedTensor], objects: Mapping[str, Slot]
) -> tuple[dict[str, StoredTensor], dict[str, Stamp]]:
    items: list[_Item] = [(slot, tensor, at) for tensor in listed for at, (_, slot) in enumerate(tensor.chunks)]
    items += [(slot, name, 0) for name, slot in objects.items()]
    # File by file, each from its beginning: one open file at a time, and a cold disk reads forward.
    items.sort(key=lambda item: (item[0].file, item[0].offset))
    placed: dict[tuple[str, int], Chunk] = {}
    stamps: dict[str, Stamp] = {}
    locator = Locator()
    for name, group in itertools.groupby(items, key=lambda item: item[0].file):
        members = list(group)
        with ExitStack() as stack:
            stream = _opened(stack, folder / name, members[0])
            stamps[name] = stream.stamp
            size = stream.stamp.nbytes
            _warm(stream, members, folder / name)
            for item in members:
                slot, tensor, at = item
                end = slot.offset + slot.length
                if end > size:
                    message = f"has {size} bytes, but {_what(item)} ends at byte {end}"
                    raise _error("MS654", message, str(folder / name))
                if isinstance(tensor, str):
                    continue
                box = tensor.chunks[at][0]
                try:
                    place = _locate(locator, stream, slot)
                    _compare(place, tensor, box)
                except ItemError as problem:
                    raise _error(problem.code, f"{_what(item)}: {problem}", str(folder / name)) from problem
                placed[tensor.name, at] = Chunk(box, name, slot.offset + place.offset, place.nbytes)
    tensors = {
        t.name: StoredTensor(t.name, t.dtype, t.shape, tuple([placed[t.name, at] for at in range(len(t.chunks))]))
        for t in listed
    }
    return tensors, stamps


type _Item = tuple[Slot, ListedTensor | str, int]
"""Where it lies, the tensor with the number of the chunk, or the name of an object."""


def _what(item: _Item) -> str:
    _, tensor, at = item
    if isinstance(tensor, str):
        return f"the object `{tensor}`"
    return f"the chunk at {[start for start, _ in tensor.chunks[at][0]]} of `{tensor.name}`"


def _warm(stream: OpenedFile, members: list[_Item], path: Path) -> None:
    """Say what will be read of the file: beginning and end of each item."""
    slots = [slot for slot, tensor, _ in members if not isinstance(tensor, str)]
    try:
        stream.warm([(s.offset + at, s.offset + at + n) for s in slots for at, n in first_reads(s.length)])
    except OSError as error:
        raise _error("MS654", f"cannot be read ({error.strerror or error})", str(path)) from error


def _opened(stack: ExitStack, path: Path, item: _Item) -> OpenedFile:
    try:
        return stack.enter_context(opened(path))
    except OSError as error:
        message = f"cannot be opened ({error.strerror or error}), but {_what(item)} should lie there"
        raise _error("MS654", message, str(path)) from error


def _locate(locator: Locator, stream: OpenedFile, slot: Slot) -> Place:
    if slot.transforms:
        raise ItemError("MS658", f"was transformed when written: {', '.join(slot.transforms)}")
    if slot.file.endswith(".safetensors"):
        raise ItemError("MS658", "is stored as safetensors")
    return locator.locate(Window(lambda at, count: stream.read(slot.offset + at, count), slot.length))


def _compare(place: Place, tensor: ListedTensor, box: Box) -> None:
    if place.dtype != tensor.dtype:
        raise ItemError("MS656", f"holds {place.dtype}, `.metadata` says {tensor.dtype}")
    if place.shape != box_shape(box):
        raise ItemError("MS656", f"has the shape {list(place.shape)}, `.metadata` says {list(box_shape(box))}")


def _finding(code: str, message: str, where: str) -> Diagnostic:
    return Diagnostic(code, message, where=where, help=_HELP.get(code))


def _error(code: str, message: str, where: str) -> CheckpointError:
    return CheckpointError(_finding(code, message, where))
