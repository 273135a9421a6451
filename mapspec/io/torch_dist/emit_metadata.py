"""The `.metadata` file of a checkpoint: torch's `Metadata`, pickled.

It has a few dozen small objects per tensor. Composing them from fixed pieces takes a fraction of the time that
building torch's objects and pickling them takes, and gives the same bytes with every torch version.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from mapspec.io.torch_dist.emit import emit_int, emit_text, emit_tuple
from mapspec.io.torch_dist.metadata import Slot
from mapspec.tensors import Box, StoredTensor, box_shape

__all__ = ["metadata_pickle"]

_DCP = "torch.distributed.checkpoint"
_GLOBALS = {
    "Metadata": f"{_DCP}.metadata",
    "TensorStorageMetadata": f"{_DCP}.metadata",
    "BytesStorageMetadata": f"{_DCP}.metadata",
    "ChunkStorageMetadata": f"{_DCP}.metadata",
    "TensorProperties": f"{_DCP}.metadata",
    "_MEM_FORMAT_ENCODING": f"{_DCP}.metadata",
    "MetadataIndex": f"{_DCP}.metadata",
    "_StorageInfo": f"{_DCP}.filesystem",
    "Size": "torch",
    "_get_layout": "torch.serialization",
}


class _Memo:
    """Everything that the pickle refers to more than once: defined on first use, before the pickle's body."""

    def __init__(self) -> None:
        self.definitions: list[bytes] = []
        self._refs: dict[tuple[str, bool], bytes] = {}

    def known(self, name: str) -> bytes:
        """A class or function, by its name."""
        return self._ref(name, False) or self._define(name, False, f"c{_GLOBALS[name]}\n{name}\n".encode())

    def dtype(self, name: str) -> bytes:
        """One of torch's data types."""
        return self._ref(f"dtype {name}", False) or self._define(f"dtype {name}", False, f"ctorch\n{name}\n".encode())

    def text(self, text: str) -> bytes:
        """A text: an attribute, a key, a file name."""
        return self._ref(text, True) or self._define(text, True, emit_text(text))

    def _ref(self, name: str, text: bool) -> bytes | None:
        return self._refs.get((name, text))

    def _define(self, name: str, text: bool, value: bytes) -> bytes:
        number = len(self._refs)
        short = number < 256
        data = number.to_bytes(1 if short else 4, "little")
        self.definitions.append(value + (b"q" if short else b"r") + data + b"0")
        return self._refs.setdefault((name, text), (b"h" if short else b"j") + data)


class _Writer:
    def __init__(self) -> None:
        self.memo = memo = _Memo()

        # Opening and closing pieces. `)\x81}(` makes an empty object and starts its attributes, `ub` ends them.
        def start(name: str, attribute: str) -> bytes:
            return memo.known(name) + b")\x81}(" + memo.text(attribute)

        self.tensor = start("TensorStorageMetadata", "properties") + memo.known("TensorProperties") + b")\x81("
        layout = memo.known("_get_layout") + memo.text("torch.strided") + b"\x85R"
        contiguous = memo.known("_MEM_FORMAT_ENCODING") + b"K\x00\x85R"
        # After the data type: layout, requires_grad, memory format, pin_memory; `tb` sets them as state.
        self.properties_end = layout + b"\x89" + contiguous + b"\x89tb" + memo.text("size")
        self.chunks = memo.text("chunks") + b"]("
        self.chunk = start("ChunkStorageMetadata", "offsets")
        self.chunk_sizes = memo.text("sizes")
        size = memo.known("Size")
        # Chunks of equal shape and place are common; a tuple of numbers is looked up faster than composed.
        self.size_of = functools.lru_cache(maxsize=65536)(lambda values: size + emit_tuple(values) + b"\x85R")
        self.index = start("MetadataIndex", "index") + b"N" + memo.text("fqn")
        self.index_offset = memo.text("offset")
        self.info = start("_StorageInfo", "relative_path")
        self.info_offset = memo.text("offset")
        self.info_length = memo.text("length")

        # Files and lengths occur again and again, too, and so do the boxes of experts, in every layer.
        self.before_offset = functools.cache(lambda file: self.info + memo.text(file) + self.info_offset)
        self.after_offset = functools.cache(lambda length: self.info_length + emit_int(length) + b"ub")
        self.box = functools.cache(self._box)

    def slot(self, slot: Slot) -> bytes:
        return self.before_offset(slot.file) + emit_int(slot.offset) + self.after_offset(slot.length)

    def _box(self, box: Box) -> tuple[bytes, bytes]:
        """The chunk with that box, and the offsets that its place is found by."""
        offsets = self.size_of(tuple([start for start, _ in box]))
        chunk = self.chunk + offsets + self.chunk_sizes + self.size_of(box_shape(box)) + b"ub"
        return chunk, self.index_offset + offsets + b"ub"


def metadata_pickle(
    tensors: Sequence[tuple[StoredTensor, Sequence[Slot]]], objects: Mapping[str, Slot] | None = None
) -> bytes:
    """The `.metadata` of a checkpoint with these tensors, each with one item per chunk, and byte objects by key."""
    w = _Writer()
    memo = w.memo
    entries: list[bytes] = []
    places: list[bytes] = []
    object_entry = memo.known("BytesStorageMetadata") + b")\x81"
    for name, slot in (objects or {}).items():
        key = memo.text(name)
        entries += (key, object_entry)
        places += (w.index, key, b"ub", w.slot(slot))
    for tensor, slots in tensors:
        key = memo.text(tensor.name)
        entries += (key, w.tensor, memo.dtype(tensor.dtype), w.properties_end, w.size_of(tensor.shape), w.chunks)
        for chunk, slot in zip(tensor.chunks, slots, strict=True):
            entry, place = w.box(chunk.box)
            entries.append(entry)
            places += (w.index, key, place, w.slot(slot))
        entries.append(b"eub")
    body = [
        *(memo.known("Metadata"), b")\x81}("),
        *(memo.text("state_dict_metadata"), b"}(", *entries, b"u"),
        *(memo.text("planner_data"), b"N"),
        *(memo.text("storage_data"), b"}(", *places, b"u"),
        # Older torch has no StorageMeta class, and newer readers fill it in.
        *(memo.text("storage_meta"), b"N"),
        *(memo.text("version"), emit_text("1.0.0"), b"ub."),
    ]
    return b"\x80\x02" + b"".join(memo.definitions) + b"".join(body)
