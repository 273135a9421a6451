"""Which rank writes which file."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

__all__ = ["shares"]


def shares(sizes: Mapping[str, int], world: int) -> list[list[str]]:
    """Split files over ranks by their bytes: the largest first, each to the rank that has the least so far.

    No rank gets more than 4/3 of what the best split would give the fullest one (Graham, 1969), and far less where
    files are many or alike. Ranks that call this with equal sizes get equal answers.

    Args:
        sizes: bytes of each file, by name.
        world: number of ranks.

    Returns:
        The files of each rank, largest first.
    """
    out: list[list[str]] = [[] for _ in range(world)]
    heap = [(0, rank) for rank in range(world)]
    for size, name in sorted(((size, name) for name, size in sizes.items()), key=lambda item: (-item[0], item[1])):
        held, rank = heap[0]
        out[rank].append(name)
        heapq.heapreplace(heap, (held + size, rank))
    return out
