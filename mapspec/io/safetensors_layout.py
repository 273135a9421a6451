"""Where the tensors of a Hugging Face checkpoint to be written go: shards, headers, index.

Within a file, tensors stand as the safetensors library puts them (by dtype, then by name), and the header is spelled
as the library spells it. A file with the library's usual metadata is therefore byte-identical to one from `save_file`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mapspec.io.layout import Framing, Layout, NewTensor
from mapspec.io.safetensors_header import DTYPE_CODES, METADATA_KEY
from mapspec.io.safetensors_index import INDEX_FILE, SINGLE_FILE
from mapspec.nogc import gc_paused
from mapspec.tensors import Chunk, StoredTensor, itemsize, numel, whole

__all__ = ["layout_safetensors"]

_CODE_OF = {dtype: code for code, dtype in DTYPE_CODES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_CODES.values())}


@gc_paused()
def layout_safetensors(
    tensors: Sequence[NewTensor],
    *,
    max_shard_bytes: int | None = None,
    file_of: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Layout:
    """Place tensors in safetensors files.

    Args:
        tensors: what to write, each in one piece, names distinct. Their order decides which share a shard.
        max_shard_bytes: bound for the tensors of one shard, filled in order as transformers does; a larger tensor
            gets a shard of its own. `None` puts all in one file.
        file_of: the shard of each tensor in the source, to keep its layout; then `max_shard_bytes` counts for nothing.
            A tensor it does not know joins the nearest tensor before it (in the order of `tensors`) that it does know,
            or the first known one if there is none before; so no tensor is left without a file. An empty mapping, or
            one that knows none of the tensors, is as good as `None`.
        metadata: `__metadata__` of every file, `{"format": "pt"}` if not given.

    Returns:
        The layout. The index stands in `small_files`, unless everything is in `model.safetensors`.
    """
    assert len({tensor.name for tensor in tensors}) == len(tensors), "two tensors of the same name"
    assert all(tensor.boxes == (whole(tensor.shape),) for tensor in tensors), "safetensors holds whole tensors only"
    shards = _keep(tensors, file_of) if file_of else None
    shards = shards or _split(tensors, max_shard_bytes)
    placed: dict[str, StoredTensor] = {}
    sizes: dict[str, int] = {}
    framing: dict[str, tuple[Framing, ...]] = {}
    for file, members in shards.items():
        header, stored, sizes[file] = _place(file, members, {"format": "pt"} if metadata is None else metadata)
        framing[file] = (Framing(0, header),)
        placed.update((tensor.name, tensor) for tensor in stored)
    small = {} if list(shards) == [SINGLE_FILE] else {INDEX_FILE: _index(list(placed.values()))}
    ordered = {tensor.name: placed[tensor.name] for tensor in tensors}
    return Layout(tensors=ordered, file_sizes=sizes, framing=framing, small_files=small)


def _keep(tensors: Sequence[NewTensor], file_of: Mapping[str, str]) -> dict[str, list[NewTensor]] | None:
    file = next((file_of[tensor.name] for tensor in tensors if tensor.name in file_of), None)
    if file is None:
        return None
    shards: dict[str, list[NewTensor]] = {}
    for tensor in tensors:
        file = file_of.get(tensor.name, file)
        shards.setdefault(file, []).append(tensor)
    return dict(sorted(shards.items()))


def _split(tensors: Sequence[NewTensor], bound: int | None) -> dict[str, list[NewTensor]]:
    groups: list[list[NewTensor]] = []
    current: list[NewTensor] = []
    filled = 0
    for tensor in tensors:
        nbytes = numel(tensor.shape) * itemsize(tensor.dtype)
        if bound is not None and nbytes > bound:
            groups.append([tensor])
            continue
        if bound is not None and filled + nbytes > bound:
            groups.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += nbytes
    if current or not groups:
        groups.append(current)
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{at:05d}-of-{len(groups):05d}.safetensors": group for at, group in enumerate(groups, 1)}


def _place(
    file: str, members: Sequence[NewTensor], metadata: Mapping[str, str]
) -> tuple[bytes, list[StoredTensor], int]:
    """Header with its length in front, the placed tensors, and the size of the whole file."""
    header: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offsets: list[tuple[NewTensor, int, int]] = []
    end = 0
    for tensor in sorted(members, key=lambda tensor: (-_RANK[tensor.dtype], tensor.name)):
        begin, end = end, end + numel(tensor.shape) * itemsize(tensor.dtype)
        offsets.append((tensor, begin, end))
        header[tensor.name] = {
            "dtype": _CODE_OF[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    stored = [
        StoredTensor(
            tensor.name, tensor.dtype, tensor.shape, (Chunk(tensor.boxes[0], file, data + begin, stop - begin),)
        )
        for tensor, begin, stop in offsets
    ]
    return len(text).to_bytes(8, "little") + text, stored, data + end


def _index(placed: Sequence[StoredTensor]) -> bytes:
    """The index as transformers writes it: sorted keys, two spaces, newline at the end."""
    index = {
        "metadata": {
            "total_parameters": sum(numel(tensor.shape) for tensor in placed),
            "total_size": sum(tensor.nbytes for tensor in placed),
        },
        "weight_map": {tensor.name: tensor.chunks[0].file for tensor in placed},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
