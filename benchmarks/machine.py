"""What a virtual machine does to timings, and how to keep it out of them."""

from __future__ import annotations

import mmap
from pathlib import Path

__all__ = ["fetch_memory", "size_of"]


def fetch_memory(nbytes: int) -> None:
    """Make the machine hold that much free memory.

    A virtual machine may give free memory back to its host, from where it comes again page by page, at 1 to 3 seconds
    per GB. Whoever writes first after a pause pays that, most of all in large blocks, and it says nothing of a copy.
    """
    mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
