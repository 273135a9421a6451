"""Writing one destination file, or a part of it: framing and chunks in order of offset, in few and large writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, zip_longest
from pathlib import Path

from mapspec.copying.ahead import expecting
from mapspec.copying.alignment import PAGE
from mapspec.copying.behind import Behind
from mapspec.copying.digests import Digester, FileDone
from mapspec.copying.gather import Gather, Scratch
from mapspec.copying.lane import Lane, lanes_in
from mapspec.copying.pieces import BoxIndex, pieces_of
from mapspec.copying.program import Program
from mapspec.copying.rows import collect, deal, side_by_side
from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.errors import ConvertError
from mapspec.fill import Fill
from mapspec.io.filesystem import Access
from mapspec.io.kernel import reserve
from mapspec.io.unwritable import write_problem
from mapspec.tensors import StoredTensor

__all__ = ["Setting", "Worker", "create"]

# Of a size that the cache of a core holds, or nearly; each costs some microseconds of Python.
_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)


@dataclass(frozen=True, slots=True)
class Setting:
    """What the workers of one copy have in common.

    Attributes:
        source_root, target_root: the checkpoint folders.
        sharers: number of workers.
        fsync: whether a file shall be on disk when its program is done.
        access: how to read; by default as the source's file system is read best.
        drop: whether pages of source and destination leave the cache when they have been read and are on disk.
    """

    source_root: Path
    target_root: Path
    sharers: int
    fsync: bool
    access: Access | None = None
    drop: bool = False


class Worker:
    """Carries out programs, one after the other. For one thread.

    Args:
        wrote: called with the file and the number of bytes after each write; raises `Stopped` to end the work.
    """

    def __init__(self, setting: Setting, wrote: Callable[[str, int], None]) -> None:
        self.setting = setting
        self._behind: Behind | None = None
        self._files = SourceFiles(setting.source_root, setting.sharers, setting.access)
        self._wrote = wrote
        self._scratch = Scratch()
        self._indexes: dict[int, tuple[StoredTensor, BoxIndex]] = {}
        self._fd = -1
        self._file = ""
        self._digester = Digester(())
        self._lane = Lane(self._scratch.block[: _BLOCK + PAGE], _BLOCK, self._write)

    def close(self) -> None:
        """Close the source files."""
        self._files.close()

    def write(self, program: Program) -> FileDone:
        """Create and fill the file, or fill a part of it; the digests.

        Raises:
            ConvertError: the file cannot be written.
            ReadProblem: the source cannot be read. It knows the file that was being written.
            Stopped: others have met with a failure.
        """
        path = self.setting.target_root / program.file
        self._file = program.file
        self._digester = Digester(program.spans)
        self._lane.drop()
        self._indexes.clear()  # their keys are of objects that may be gone
        try:
            self._fd = self._opened(path, program)
            try:
                self._behind = Behind(self._fd, self.setting.drop) if self.setting.fsync else None
                self._fill(program)
                self._lane.flush()
                if self.setting.fsync:
                    os.fsync(self._fd)
            finally:
                os.close(self._fd)
        except ReadProblem as problem:
            problem.wanted_by = program.file
            raise
        except OSError as error:
            raise ConvertError(write_problem(error, path)) from error
        return self._digester.done(program.file, program.size)

    def _opened(self, path: Path, program: Program) -> int:
        while True:
            try:
                return create(path, program.size) if program.whole else os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                if not self._files.make_room(error):
                    raise

    def _fill(self, program: Program) -> None:
        for step in expecting(program.steps, self._files):
            if isinstance(step, list):
                self._lane.flush()
                self._gather([(fill.chunk.offset, self._gathering(fill)) for fill in step])
            elif len(step) == 4:
                self._run(*step)
            else:
                self._put(*step)

    def _gathering(self, fill: Fill) -> Gather:
        pieces = pieces_of(fill.tensor.name, fill.chunk.box, fill.parts, self._indexes)
        return Gather(fill.chunk.box, fill.tensor.dtype, pieces)

    def _gather(self, group: Sequence[tuple[int, Gather]]) -> None:
        """Fill several chunks, a block of each in turn: blocks of the same rows share what was read for the first."""
        lanes = lanes_in(self._scratch.block, len(group), self._write)
        most = lanes[0].most
        slabs = side_by_side([gather.rows() for _, gather in group])
        if slabs is not None and len(lanes) == len(slabs) and all(rows.length <= most for rows in slabs):
            deal([(at, rows) for (at, _), rows in zip(group, slabs, strict=True)], lanes, self._files)
            return
        parts = group[0][1].slabs() if len(group) == 1 else None
        if parts is not None and sum(rows.length for _, rows in parts) <= most:
            collect(group[0][0], parts, lanes[0], self._files, self._scratch.stage)
            return
        self._scratch.held = None
        for blocks in zip_longest(*(gather.blocks(most) for _, gather in group)):
            for (start, gather), lane, ready in zip(group, cycle(lanes), blocks, strict=False):
                if ready is not None:
                    box, offset, length = ready
                    gather.read(box, lane.room(start + offset, length), self._files, self._scratch)
        for lane in lanes:
            lane.flush()

    def _run(self, at: int, file: str | None, offset: int, length: int) -> None:
        """Copy a run through the block, which is written when it is full or the next run does not follow on."""
        while length:
            take = min(length, self._lane.left(at))
            if file is None:
                self._lane.room(at, take)[:] = _ZEROS[:take]
            else:
                self._files.read_into(self._lane.room(at, take, offset), file, offset)
                if self.setting.drop:
                    self._files.forget(file, offset, take)
            at, offset, length = at + take, offset + take, length - take

    def _put(self, at: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            take = min(len(left), self._lane.left(at))
            self._lane.room(at, take)[:] = left[:take]
            at, left = at + take, left[take:]

    def _write(self, view: memoryview, at: int) -> None:
        start, length = at, len(view)
        self._digester.update(at, view)
        while view:
            written = os.pwrite(self._fd, view, at)
            at, view = at + written, view[written:]
        if self._behind is not None:
            self._behind.wrote(start, length)
        self._wrote(self._file, length)


def create(path: Path, size: int) -> int:
    """Make a new file of that size, with room on the disk where the file system can promise that; its descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        reserve(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
