"""Laying out a `torch_dist` checkpoint: where each chunk's raw bytes will lie, and every byte around them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from mapspec.boxes import tiling_fault
from mapspec.io.layout import Framing, Layout, NewTensor
from mapspec.io.torch_dist.emit_metadata import metadata_pickle
from mapspec.io.torch_dist.folder import METADATA, metadata_json
from mapspec.io.torch_dist.frame import Frame, tensor_frame
from mapspec.io.torch_dist.metadata import Slot
from mapspec.nogc import gc_paused
from mapspec.tensors import DTYPES, Box, Chunk, StoredTensor, box_shape

__all__ = ["layout_torch_dist"]


@gc_paused()
def layout_torch_dist(
    tensors: Sequence[NewTensor],
    *,
    objects: Mapping[str, bytes] | None = None,
    files: int = 4,
    max_file_bytes: int | None = None,
) -> Layout:
    """Lay out the `.distcp` files of a checkpoint, with `.metadata` and `metadata.json` as small files.

    Args:
        tensors: what to write; each box becomes one item. Within a file, items stand in this order.
        objects: byte objects by key (see `extra_state_stub`); their bytes are part of the framing.
        files: number of data files, about equal in size; fewer if there are fewer items. Each can be filled by a
            worker of its own. Boxes of a tensor that share rows of its first axis stand in one file: their rows are
            then read once.
        max_file_bytes: take as many files as keep the average below this; a single larger item still fits.

    The caller adds `common.pt` (see `common_pt`) to the small files: readers up to megatron-core 0.18 require it and
    later ones prefer it.
    """
    objects = objects or {}
    _check(tensors, objects, files)
    items = [(index, box, tensor_frame(t.dtype, box_shape(box))) for index, t in enumerate(tensors) for box in t.boxes]
    lengths = [frame.length for _, _, frame in items]
    lead = sum(map(len, objects.values()))  # in the first file
    if max_file_bytes:
        total = lead + sum(lengths)
        files = max(files, -(-total // max_file_bytes))
    groups = _sharing_rows(items)
    sums = [sum(lengths[position] for position in group) for group in groups]
    parts = _balanced(sums, min(files, max(len(groups), 1)), lead)
    buckets = [[position for n in part for position in groups[n]] for part in parts]

    sizes: dict[str, int] = {}
    framing: dict[str, tuple[Framing, ...]] = {}
    object_slots: dict[str, Slot] = {}
    placed: dict[int, tuple[Chunk, Slot]] = {}  # by position in `items`
    for number, bucket in enumerate(buckets):
        name = f"__0_{number}.distcp"
        around: list[Framing] = []
        at = 0
        if number == 0:
            for key, data in objects.items():
                around.append(Framing(at, data))
                object_slots[key] = Slot(name, at, len(data))
                at += len(data)
        for position in bucket:
            _, box, frame = items[position]
            start = at + len(frame.head)
            end = start + frame.nbytes
            around += (Framing(at, frame.head), Framing(end, frame.tail))
            length = end + len(frame.tail) - at
            placed[position] = Chunk(box, name, start, frame.nbytes), Slot(name, at, length)
            at += length
        sizes[name] = at
        framing[name] = tuple(around)

    stored: list[tuple[StoredTensor, Sequence[Slot]]] = []
    first = 0
    for tensor in tensors:
        own = [placed[position] for position in range(first, first + len(tensor.boxes))]
        first += len(own)
        chunks = tuple([chunk for chunk, _ in own])
        stored.append((StoredTensor(tensor.name, tensor.dtype, tensor.shape, chunks), [slot for _, slot in own]))
    return Layout(
        tensors={t.name: t for t, _ in stored},
        file_sizes=sizes,
        framing=framing,
        small_files={METADATA: metadata_pickle(stored, object_slots), "metadata.json": metadata_json()},
    )


def _sharing_rows(items: Sequence[tuple[int, Box, Frame]]) -> list[list[int]]:
    """Positions of the items, those together whose boxes lie side by side in the same rows of one tensor."""
    groups: dict[tuple[int, tuple[int, int] | None], list[int]] = {}
    for position, (index, box, _) in enumerate(items):
        groups.setdefault((index, box[0] if box else None), []).append(position)
    return list(groups.values())


def _balanced(sizes: Sequence[int], bins: int, lead: int) -> list[list[int]]:
    """Positions of `sizes` in `bins` parts of about equal sum, ascending in each; the first part begins with `lead`."""
    parts: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, n) for n in range(1, bins)]
    heapq.heappush(heap, (lead, 0))
    for position in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        filled, n = heap[0]
        parts[n].append(position)
        heapq.heapreplace(heap, (filled + sizes[position], n))
    return [sorted(part) for part in parts]


def _check(tensors: Sequence[NewTensor], objects: Mapping[str, bytes], files: int) -> None:
    # None of this can come from a user's files: it is the planner that cuts tensors.
    if files < 1:
        raise ValueError(f"files must be at least 1, not {files}")
    seen = set(objects)
    for tensor in tensors:
        if tensor.name in seen:
            raise ValueError(f"{tensor.name} is there twice")
        seen.add(tensor.name)
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{tensor.name} has the data type {tensor.dtype}, which is not in DTYPES")
        problem = tiling_fault(tensor.shape, tensor.boxes)
        if problem or not tensor.boxes:
            raise ValueError(f"{tensor.name}: {problem or 'no boxes'}")
        # Items are found by the offset of their box, so an empty box must not share one.
        starts = {tuple([start for start, _ in box]) for box in tensor.boxes}
        if len(starts) != len(tensor.boxes):
            raise ValueError(f"{tensor.name}: two boxes begin at the same place")
