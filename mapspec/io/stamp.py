"""What tells whether a file is still the one that was read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

__all__ = ["Stamp"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written or replaced.

    Attributes:
        nbytes: size of the file.
        version: time of the last change in nanoseconds; of an object in a store, its ETag or what stands for one.
        inode: device and number of the file, which another file of the same name does not have; zeros for an object.
        status: when anything of the file was changed last, in nanoseconds, and what can be changed beside its bytes:
            mode, owner, group, number of links; empty for an object. Not compared by `==`.
    """

    nbytes: int
    version: int | str
    inode: tuple[int, int] = (0, 0)
    status: tuple[int, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """The stamp of a local file."""
        status = (stat.st_ctime_ns, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink)
        return cls(stat.st_size, stat.st_mtime_ns, (stat.st_dev, stat.st_ino), status)

    def difference(self, now: Stamp) -> str | None:
        """What has happened to the file since this stamp was taken; `None` if nothing has.

        A time of change that was put back shows in that of the status, for which nothing else accounts then; chmod,
        chown and a link more or fewer do.
        """
        if self.nbytes != now.nbytes:
            return f"had {self.nbytes:,} bytes, has {now.nbytes:,}"
        if self.inode != now.inode:
            return "was replaced by another file"
        if self.version != now.version:
            return "was written to"
        if self.status != now.status and self.status[1:] == now.status[1:]:
            return "was touched, perhaps written to, and its time of change put back"
        return None

    def loosely(self, other: Stamp) -> Stamp:
        """This one with what file systems in user space make up as they go: numbers of files, and times of status."""
        return replace(self, inode=other.inode, status=other.status)
