"""Executing a copy plan: every byte of the destination is written once, from source bytes that are read in long runs.

No tensor is ever in memory as a whole. A few workers each own one destination file at a time and fill it in the order
of its bytes through a small buffer; more files than workers wait in a queue, the largest first, and the last ones are
divided so that nobody waits for the others (`mapspec.copying.jobs`). Which bytes go where has been decided before
(`mapspec.fill`, `mapspec.io.layout`); how a fill is read is in `mapspec.copying`.

Every byte is hashed on its way, so the result comes with a digest of each of its chunks; see `mapspec.copying.digests`.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapspec.copying.behind import crowded
from mapspec.copying.compare import first_difference, read_tensor
from mapspec.copying.digests import Digest, FileDone, digest_of
from mapspec.copying.jobs import Job, divided, put_together
from mapspec.copying.worker import Worker, create
from mapspec.crew import Crew, Stopped
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.fill import Fill
from mapspec.io.filesystem import Access, access_to
from mapspec.io.layout import Layout
from mapspec.io.unwritable import write_problem
from mapspec.progress import NoProgress, Progress

__all__ = ["CopyReport", "Digest", "FileDone", "check_room", "execute", "first_difference", "jobs_of", "read_tensor"]


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was done.

    Attributes:
        files, tensors: data files written, and tensors of the layout.
        nbytes: written to data files.
        seconds: wall time.
        threads: workers.
        done: every file that was written, data files and small ones, with their digests; by name.
    """

    files: int
    tensors: int
    nbytes: int
    seconds: float
    threads: int
    done: tuple[FileDone, ...] = ()


def execute(
    fills: Sequence[Fill],
    layout: Layout,
    *,
    source_root: Path,
    target_root: Path,
    threads: int | None = None,
    progress: Progress | None = None,
    fsync: bool = True,
    done: Callable[[FileDone], None] | None = None,
    skip: Container[str] = (),
    only: Container[str] | None = None,
    access: Access | None = None,
    staged: bool = False,
) -> CopyReport:
    """Write the files of `layout`.

    Args:
        fills: one for each chunk in `layout.tensors`, in any order.
        layout: what to write. None of its files may exist yet.
        source_root: folder to which the chunks of the parts' sources are relative.
        target_root: an existing folder, usually one that `mapspec.publish` has made.
        threads: workers; by default as many as source and destination are used best with. Never more than
            files, and parts of large ones.
        progress: told after every write.
        fsync: whether everything shall be on disk on return.
        done: told of each file, data files and then small ones, when it is complete (and on disk, with `fsync`). Calls
            come one at a time, but from different threads; what it raises ends the copy.
        skip: files that are not written, because they are there already.
        only: files that are written; `None` for all.
        access: how the source is read; by default as its file system is read best.
        staged: whether `done` takes files away, so that there has to be room for a few of them only.

    Raises:
        ConvertError: no room (MS701, MS702), a source that cannot be read (MS703) or has holes (MS706), a destination
            that cannot be written (MS704). The first failure stops all workers; files written so far stay.
    """
    began = time.monotonic()
    jobs = [job for job in jobs_of(fills, layout) if _chosen(job.file, skip, only)]
    small = {name: data for name, data in layout.small_files.items() if _chosen(name, skip, only)}
    total = sum(job.size for job in jobs)
    access = access or access_to(source_root)
    count = max(1, threads or max(access.threads, access_to(target_root).threads))
    parts = divided(jobs, count)
    count = max(1, min(count, len(parts)))
    sizes = sorted((job.size for job in jobs), reverse=True)
    check_room(target_root, sum(sizes[: 4 + count] if staged else sizes) + sum(map(len, small.values())))
    copy = _Copy(parts, progress or NoProgress(), source_root, target_root, count, fsync, done, access)
    copy.run(total)
    for name, data in small.items():
        _write_small(target_root / name, data, fsync)
        copy.finished(FileDone(name, len(data), (), digest_of(data)))
    written = tuple(sorted(copy.done, key=lambda file: file.file))
    return CopyReport(len(jobs), len(layout.tensors), total, time.monotonic() - began, count, written)


def _chosen(file: str, skip: Container[str], only: Container[str] | None) -> bool:
    return file not in skip and (only is None or file in only)


class _Copy:
    """What the workers of one copy share: the queue, the progress, what is done."""

    def __init__(
        self, jobs: Collection[Job], progress: Progress, source_root: Path, target_root: Path, count: int, fsync: bool,
        done: Callable[[FileDone], None] | None, access: Access,
    ) -> None:  # fmt: skip
        self._access, self._drop = access, False
        self._crew, self._progress, self._count = Crew(jobs, "mapspec-copy"), progress, count
        self._tell = done
        self.done: list[FileDone] = []
        self._parts: dict[str, list[Job]] = {}  # of the files that are divided
        for job in jobs:
            if not job.whole:
                self._parts.setdefault(job.file, []).append(job)
        self._written: dict[str, list[FileDone]] = {}  # parts of a file that has been made
        self._making = threading.Lock()
        self._source_root, self._target_root, self._fsync = source_root, target_root, fsync

    def run(self, total: int) -> None:
        # As many bytes are read as written.
        self._drop = self._fsync and crowded(2 * total)
        self._progress.start(total)
        try:
            self._crew.run(self._count, self._work)
        finally:
            self._progress.finish()

    def _work(self) -> None:
        worker = Worker(
            self._source_root, self._target_root, sharers=self._count, fsync=self._fsync, wrote=self._wrote,
            access=self._access, drop=self._drop,
        )  # fmt: skip
        try:
            for job in self._crew.jobs():
                self._make(job)
                finished = worker.write(job)
                with self._crew.lock:
                    if job.whole:
                        self.finished(finished)
                    else:
                        self._part_of(finished)
        finally:
            worker.close()

    def _make(self, job: Job) -> None:
        """See to it that the file is there which the job is a part of."""
        if job.whole:
            return
        with self._making:
            if job.file not in self._written:
                path = self._target_root / job.file
                try:
                    os.close(create(path, job.size))
                except OSError as error:
                    raise ConvertError(write_problem(error, path)) from error
                self._written[job.file] = []

    def _part_of(self, part: FileDone) -> None:
        written, parts = self._written[part.file], self._parts[part.file]
        written.append(part)
        if len(written) == len(parts):
            self.finished(put_together(written, (one for job in parts for one in job.framing)))

    def finished(self, file: FileDone) -> None:
        """Keep the digests of a file, and tell whoever asked for them."""
        self.done.append(file)
        if self._tell is not None:
            self._tell(file)

    def _wrote(self, file: str, nbytes: int) -> None:
        if self._crew.stopped:
            raise Stopped
        with self._crew.lock:
            self._progress.advance(nbytes, file)


def jobs_of(fills: Sequence[Fill], layout: Layout) -> tuple[Job, ...]:
    """One job per data file, largest first. Checks that the fills are those of the layout, no fewer and no more."""
    by_file: dict[str, list[Fill]] = {file: [] for file in layout.file_sizes}
    wanted = {(chunk.file, chunk.offset, name) for name, t in layout.tensors.items() for chunk in t.chunks}
    given = set()
    for fill in fills:
        by_file[fill.chunk.file].append(fill)
        given.add((fill.chunk.file, fill.chunk.offset, fill.tensor.name))
    if given != wanted or len(fills) != len(given):
        odd = sorted(given ^ wanted)
        raise AssertionError(f"fills and layout disagree about {odd[0] if odd else 'a chunk that is filled twice'}")
    return tuple(
        Job(
            file,
            size,
            tuple(sorted((f for f in layout.framing.get(file, ()) if f.data), key=lambda f: f.offset)),
            tuple(sorted((f for f in by_file[file] if f.chunk.nbytes), key=lambda f: f.chunk.offset)),
        )
        for file, size in sorted(layout.file_sizes.items(), key=lambda item: (-item[1], item[0]))
    )


def check_room(target_root: Path, needed: int) -> None:
    """Make sure that the disk of `target_root` has room for `needed` bytes.

    Raises:
        ConvertError: MS701.
    """
    free = shutil.disk_usage(target_root).free
    if free < needed:
        raise ConvertError(
            Diagnostic(
                "MS701",
                f"the checkpoint needs {needed / 1e9:.1f} GB, the destination's disk has {free / 1e9:.1f} GB left",
                where=str(target_root),
                help="free some space or choose another destination; folders named `.*.mapspec-partial-*` beside it "
                "are left over from conversions that were killed and can go",
            )
        )


def _write_small(path: Path, data: bytes, fsync: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
    except OSError as error:
        raise ConvertError(write_problem(error, path)) from error
