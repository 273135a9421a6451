"""Where the bytes of a tensor lie inside what `torch.save` wrote for it.

Such an item is an archive with the records `data.pkl`, which describes the tensor, and `data/0`, its storage;
`byteorder` and others may be there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap

from mapspec.io.torch_dist.archive import DESCRIPTOR, ItemError, Record, Window, data_start, record, records
from mapspec.io.torch_dist.stand_ins import TensorRecord
from mapspec.io.torch_dist.unpickle import RefusedGlobalError, UnreadablePickleError, load_item
from mapspec.tensors import DTYPES, numel

__all__ = ["Locator", "Place"]

_CENTRAL_CRC = 16  # offset of the checksum in a directory entry
_MAX_FORMS = 16  # per length of item
_MAX_FORM = 1 << 14  # bytes; torch's archives have about 1600 around the data


@dataclass(frozen=True, slots=True)
class Place:
    """Raw row-major bytes of a tensor: `offset` counts from the start of the item."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Form:
    """Everything of an item around its storage that does not depend on the data, as pieces with their places."""

    pieces: tuple[tuple[int, bytes], ...]
    place: Place


class Locator:
    """Finds tensors in items. Items that differ from an earlier one in data and checksums only are found at once."""

    def __init__(self) -> None:
        self._forms: dict[int, list[_Form]] = {}

    def locate(self, window: Window) -> Place:
        """Where the item's tensor lies. It must be dense, row-major, little-endian, of a data type in `DTYPES`."""
        forms = self._forms.setdefault(window.length, [])
        for form in forms:
            if all(starmap(window.has, form.pieces)):
                return form.place
        found = records(window)
        place, storage, start = _parse(window, found)
        if len(forms) < _MAX_FORMS and window.length - storage.size < _MAX_FORM:
            forms.append(_Form(tuple(_fixed(window, found, storage, start)), place))
        return place


def _fixed(window: Window, found: dict[str, Record], storage: Record, start: int) -> Iterator[tuple[int, bytes]]:
    # Free are the data, both checksums of it, and the archive's number, which is made from checksums, with its own.
    free = [(start, storage.size)]
    ends = [(storage, start + storage.size)]
    number = found.get(".data/serialization_id")
    if number:
        number_start = data_start(window, number)
        free.append((number_start, number.size))
        ends.append((number, number_start + number.size))
    for entry, end in ends:
        free.append((entry.entry + _CENTRAL_CRC, 4))
        if window.get(end, 4) == DESCRIPTOR:
            free.append((end + 4, 4))
    at = 0
    for begin, size in sorted(free):
        yield at, window.get(at, begin - at)
        at = begin + size
    yield at, window.get(at, window.length - at)


def _parse(window: Window, found: dict[str, Record]) -> tuple[Place, Record, int]:
    order = found.get("byteorder")
    if order and record(window, order) != b"little":
        raise ItemError("MS658", "was written on a big-endian machine")
    if "data.pkl" not in found:
        raise ItemError("MS655", "the archive holds no `data.pkl`")
    tensor = _describe(record(window, found["data.pkl"]))
    if not isinstance(tensor, TensorRecord):
        raise ItemError("MS656", "holds an object where `.metadata` announces a tensor")
    if tensor.dtype not in DTYPES:
        raise ItemError("MS659", f"has the data type {tensor.dtype}")
    storage = found.get(f"data/{tensor.storage.key}")
    if storage is None or storage.size != tensor.storage.nbytes:
        size = "no storage" if storage is None else f"a storage of {storage.size} bytes"
        raise ItemError("MS655", f"the archive holds {size} for a tensor that needs {tensor.storage.nbytes}")
    if not _is_dense(tensor.shape, tensor.strides):
        raise ItemError("MS658", f"is stored with strides {list(tensor.strides)}, not row-major")
    width = DTYPES[tensor.dtype]
    offset, nbytes = tensor.offset * width, numel(tensor.shape) * width
    if tensor.offset < 0 or offset + nbytes > storage.size:
        raise ItemError("MS655", "the tensor reaches beyond its storage")
    start = data_start(window, storage)
    return Place(tensor.dtype, tensor.shape, start + offset, nbytes), storage, start


@functools.lru_cache(maxsize=4096)  # equal shapes have equal descriptions
def _describe(data: bytes) -> object:
    try:
        return load_item(data)
    except RefusedGlobalError as problem:
        raise ItemError("MS653", f"its `data.pkl` names `{problem.name}`") from problem
    except UnreadablePickleError as problem:
        raise ItemError("MS655", f"its `data.pkl` {problem}") from problem


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if len(shape) != len(strides) or any(n < 0 for n in shape):
        return False
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step and 0 not in shape:
            return False
        step *= n
    return True
