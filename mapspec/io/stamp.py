"""What tells whether a file is still the one that was read."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Stamp"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written or replaced.

    Attributes:
        nbytes: size of the file.
        version: time of the last change in nanoseconds; of an object in a store, its ETag or what stands for one.
        inode: device and number of the file, which another file of the same name does not have; zeros for an object.
    """

    nbytes: int
    version: int | str
    inode: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """The stamp of a local file."""
        return cls(stat.st_size, stat.st_mtime_ns, (stat.st_dev, stat.st_ino))
