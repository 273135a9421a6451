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
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapspec.copying.behind import crowded
from mapspec.copying.compare import first_difference, read_tensor
from mapspec.copying.digests import Digest, FileDone, digest_of
from mapspec.copying.jobs import Job, divided, put_together
from mapspec.copying.pieces import BoxIndex
from mapspec.copying.program import Program, compiled
from mapspec.copying.source import ReadProblem
from mapspec.copying.worker import Setting, Worker, create
from mapspec.crew import Crew, Post, Tally, Threads
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.fill import Fill
from mapspec.io.filesystem import Access, access_to
from mapspec.io.layout import Layout
from mapspec.io.unwritable import write_problem
from mapspec.nogc import gc_paused
from mapspec.progress import NoProgress, Progress
from mapspec.tensors import StoredTensor

__all__ = [
    "CopyReport", "Digest", "FileDone", "Task", "check_room", "execute", "first_difference", "jobs_of", "read_tensor",
    "work",
]  # fmt: skip


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
    crew: Crew[Task] | None = None,
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
        crew: workers that do `work`; by default threads.

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
    # As many bytes are read as written.
    drop = fsync and crowded(2 * total)
    setting = Setting(source_root, target_root, sharers=count, fsync=fsync, access=access, drop=drop)
    copy = _Copy(parts, setting, progress or NoProgress(), done)
    copy.run(crew or Threads(work, "mapspec-copy"), total)
    for name, data in small.items():
        _write_small(target_root / name, data, fsync)
        copy.finished(FileDone(name, len(data), (), digest_of(data)))
    written = tuple(sorted(copy.done, key=lambda file: file.file))
    return CopyReport(len(jobs), len(layout.tensors), total, time.monotonic() - began, count, written)


def _chosen(file: str, skip: Container[str], only: Container[str] | None) -> bool:
    return file not in skip and (only is None or file in only)


type Task = tuple[Setting, Program]


def work(post: Post[Task]) -> None:
    """What a worker of a copy does; for whoever makes the crew that `execute` is to use."""
    tally = Tally(post)
    worker: Worker | None = None
    try:
        for setting, program in post.jobs():
            if worker is None or worker.setting != setting:
                if worker is not None:
                    worker.close()
                worker = Worker(setting, tally.add)
            done = worker.write(program)
            tally.flush()
            post.tell(done)
    finally:
        if worker is not None:
            worker.close()


class _Copy:
    """One copy: what is given to the workers, and what is heard of them."""

    def __init__(
        self, jobs: Sequence[Job], setting: Setting, progress: Progress, done: Callable[[FileDone], None] | None
    ) -> None:
        self._jobs, self._setting, self._progress, self._tell = jobs, setting, progress, done
        self.done: list[FileDone] = []
        self._parts: dict[str, list[Job]] = {}  # of the files that are divided
        for job in jobs:
            if not job.whole:
                self._parts.setdefault(job.file, []).append(job)
        self._written: dict[str, list[FileDone]] = {file: [] for file in self._parts}

    def run(self, crew: Crew[Task], total: int) -> None:
        self._progress.start(total)
        try:
            self._make_divided()
            crew.run(self._tasks(), self._setting.sharers, self._hear)
        except ReadProblem as problem:
            raise ConvertError(_read_finding(problem, self._jobs)) from problem
        finally:
            self._progress.finish()

    def _tasks(self) -> Iterator[Task]:
        indexes: dict[int, tuple[StoredTensor, BoxIndex]] = {}
        for job in self._jobs:
            yield self._setting, compiled(job, indexes)

    def _make_divided(self) -> None:
        for file, parts in self._parts.items():
            path = self._setting.target_root / file
            try:
                os.close(create(path, parts[0].size))
            except OSError as error:
                raise ConvertError(write_problem(error, path)) from error

    def _hear(self, message: tuple[str, int] | FileDone) -> None:
        if isinstance(message, tuple):
            file, nbytes = message
            self._progress.advance(nbytes, file)
        elif message.file in self._parts:
            written, parts = self._written[message.file], self._parts[message.file]
            written.append(message)
            if len(written) == len(parts):
                self.finished(put_together(written, (one for job in parts for one in job.framing)))
        else:
            self.finished(message)

    def finished(self, file: FileDone) -> None:
        """Keep the digests of a file, and tell whoever asked for them."""
        self.done.append(file)
        if self._tell is not None:
            self._tell(file)


def _read_finding(problem: ReadProblem, jobs: Sequence[Job]) -> Diagnostic:
    names = ("?", "?")
    for fill in (fill for job in jobs if job.file == problem.wanted_by for fill in job.fills):
        for part in fill.parts:
            for chunk in part.source.chunks if part.source else ():
                if chunk.file == problem.file and chunk.offset <= problem.offset < chunk.offset + chunk.nbytes:
                    assert part.source is not None
                    names = (part.source.name, fill.tensor.name)
    doing = f"while reading `{names[0]}` for `{names[1]}` in `{problem.wanted_by}`"
    help_ = "the source changed or its disk has trouble; check it, then convert again"
    return problem.finding(Path(), doing, help_)


@gc_paused()
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
