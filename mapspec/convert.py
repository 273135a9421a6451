"""`mapspec convert`: a prepared plan becomes files, published as a whole or not at all.

One process or many run the same steps; a rank copies its share of the data files, and rank 0 does what is done once.
What is finished is journaled, so that an error, a signal or a lost machine costs no more than the files in progress.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mapspec.amounts import human_bytes
from mapspec.beside import carry, check_tie, record, write_certificate, write_file
from mapspec.certificate import file_records, record_of
from mapspec.copy import CopyReport, Task, check_room, execute
from mapspec.copying.digests import FileDone
from mapspec.crew import Crew
from mapspec.diagnostics import Diagnostic, Note
from mapspec.errors import ConvertError
from mapspec.io.opened import changed
from mapspec.io.remote import RemotePath
from mapspec.io.unwritable import write_problem
from mapspec.journal import Journal, Leftover, finished_in
from mapspec.memory import workers_within
from mapspec.outputs import Copy, Output, Work, file_count, lay_out
from mapspec.prepare import Prepared, Request, prepare
from mapspec.progress import NoProgress, Progress
from mapspec.publish import publishing
from mapspec.recruit import recruited
from mapspec.resume import conversion_identity, differences, find, remove_others, require_same, settle
from mapspec.shares import shares
from mapspec.sources import identity_of as source_identity
from mapspec.team import LostRankError, SharedProgress, Team
from mapspec.upload import Upload, uploading

__all__ = ["Converted", "Output", "convert"]

_SHOWS_UP_S = 60.0


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        prepared: what was decided.
        destination: the folder that was made.
        copied: files, tensors, bytes and seconds of the copy, over all ranks; `done` lists every data file.
        carried: side files that travelled along, relative to the Hugging Face folder.
        seconds: wall time from opening the source to the published result.
        kept: data files that an earlier run had finished.
    """

    prepared: Prepared
    destination: Path
    copied: CopyReport
    carried: tuple[str, ...]
    seconds: float
    kept: int = 0


@dataclass(frozen=True, slots=True)
class _Begun:
    """What rank 0 has set up: the folder that is filled, how often this was begun before, what is finished in it."""

    folder: Path
    run: int
    finished: Mapping[str, FileDone]
    upload: Upload | None = None


def convert(request: Request, output: Output, progress: Progress | None = None, team: Team | None = None) -> Converted:
    """Convert a checkpoint.

    Args:
        team: the processes that share the work; each calls this with equal arguments.

    Raises:
        MapspecError: nothing was published; the destination is as it was before. Finished files may have been kept
            for `output.resume`; the finding says so.
    """
    team = team or Team()
    with ExitStack() as stack:
        with team.together():
            crew = stack.enter_context(recruited(request, output))
        return _convert(request, output, progress, team, crew)


def _convert(
    request: Request, output: Output, progress: Progress | None, team: Team, crew: Crew[Task] | None
) -> Converted:
    began = time.monotonic()
    with team.together():
        prepared = prepare(request).require()
        _check_store(output, team)
        threads = output.threads
        if output.max_memory is not None:
            threads = workers_within(prepared, threads, output.max_memory)
        identity = conversion_identity(prepared, output)
    _agree(team, identity)
    prepared.table.forget_inventories()
    with ExitStack() as stack:
        with team.together():
            found = find(output, identity) if output.resume and team.rank == 0 else None
            if found is not None:
                stack.callback(found.release)
            files = file_count(prepared, output.threads, team.world)
            if found is not None and found.header is not None:
                files = int(found.header["files"])
        files = team.exchange(files)[0]
        with team.together():
            work = lay_out(prepared, output, files)
            identity["work"] = work.digest()
        _agree(team, identity)
        with team.together():
            begun = _begin(stack, prepared, output, work, identity, found) if team.rank == 0 else None
        begun = team.exchange(begun)[0]
        assert begun is not None
        with team.together():
            _see(begun.folder, team)
            header = {"identity": identity, "files": files}
            journal = Journal(begun.folder.parent, begun.run, team.rank, header, fsync=output.fsync)
            stack.callback(journal.close)
            if team.rank == 0:
                _clear(found, begun, work, journal)
        fill = _Filler(prepared, replace(output, threads=threads), work, begun, journal, crew)
        copied = _copy(team, fill, progress)
        carried: tuple[str, ...] = ()
        with team.together():
            if team.rank != 0:
                stack.close()  # rank 0 removes the journals when the result is in place
            else:
                carried = _finish(prepared, work, begun.folder, copied.done)
        # What raises from here on raises on rank 0 while the folder is put in place.
        with team.together():
            stack.close()
    return Converted(prepared, output.destination, copied, carried, time.monotonic() - began, len(begun.finished))


def _agree(team: Team, identity: Mapping[str, Any]) -> None:
    """Make sure that all ranks are about to do the same.

    Raises:
        ConvertError: MS756, with the ranks that differ from rank 0 and in what.
    """
    mine = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    said = team.exchange(mine)
    other = [rank for rank, theirs in enumerate(said) if theirs != said[0]]
    if other:
        full = team.exchange(identity)
        notes = tuple(Note(text) for text in differences(full[0], full[other[0]]))
        shown = ", ".join(map(str, other[:8])) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
        message = f"ranks {shown} are about to do something else than rank 0"
        help_ = (
            "start all ranks with the same command, version and files; `then` is rank 0, `now` the first that differs"
        )
        raise ConvertError(Diagnostic("MS756", message, where=f"rank {other[0]}", notes=notes, help=help_))


def _see(folder: Path, team: Team) -> None:
    """Wait until the folder that rank 0 has made shows up on a shared file system.

    Raises:
        ConvertError: MS758.
    """
    deadline = time.monotonic() + _SHOWS_UP_S
    while not folder.is_dir():
        if time.monotonic() > deadline:
            message = f"rank {team.rank} does not see the folder that rank 0 has made"
            help_ = "all ranks write into one folder: choose a destination on a file system that they share"
            raise ConvertError(Diagnostic("MS758", message, where=str(folder), help=help_))
        time.sleep(0.1)


def _check_store(output: Output, team: Team) -> None:
    """An object store takes whole files from one process, and keeps none of them after an error."""
    if isinstance(output.destination, RemotePath) and (output.resume or team.world > 1):
        what = "cannot be resumed" if output.resume else f"is not done by {team.world} processes"
        help_ = "convert to a folder of this machine or of a shared file system, then copy it to the store"
        message = f"a conversion to an object store {what}"
        raise ConvertError(Diagnostic("MS794", message, where=str(output.destination), help=help_))


def _begin(
    stack: ExitStack, prepared: Prepared, output: Output, work: Work, identity: Mapping[str, Any],
    found: Leftover | None,
) -> _Begun:  # fmt: skip
    """On rank 0: check what is checked once, and make the folder, or take over the one of an earlier run."""
    for copy, original in prepared.plan.equal:
        check_tie(copy, original, prepared.source.root)
    if found is not None and found.header is not None:
        require_same(found, identity)
    sources = [prepared.source.path, *([prepared.reference.root] if prepared.reference.root else [])]
    if isinstance(output.destination, RemotePath):
        place = uploading(output.destination, overwrite=output.overwrite, sources=sources, last=tuple(work.last))
        upload = stack.enter_context(place)
        return _Begun(upload.folder, 0, {}, upload)
    keeper = _Keeper(output, work)
    folder = stack.enter_context(
        publishing(
            output.destination,
            overwrite=output.overwrite,
            sources=sources,
            fsync=output.fsync,
            resume=None if found is None else found.path,
            keep=keeper.keep,
        )
    )
    keeper.partial = folder.parent
    if found is None:
        return _Begun(folder, 0, {})
    return _Begun(folder, found.runs, settle(folder, found, work, recheck=output.recheck))


type _Part = tuple[list[CopyReport], list[FileDone]]
"""What one rank has copied: a report for each of `Work.copies`, and the files."""


def _clear(found: Leftover | None, begun: _Begun, work: Work, journal: Journal) -> None:
    """Make an empty place for every file that is not finished. What is written again stops being finished before."""
    for name in sorted(found.finished.keys() - begun.finished.keys() if found is not None else ()):
        journal.again(name)
    try:
        remove_others(begun.folder, begun.finished)
        for name in (work.carried, *(copy.folder for copy in work.copies)):
            (begun.folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvertError(write_problem(error, begun.folder)) from error


class _Keeper:
    """Decides whether an unfinished conversion stays, and says so: it does if any of its files is finished."""

    def __init__(self, output: Output, work: Work) -> None:
        self._wanted, self._files = output.keep, len(work.sizes)
        self.partial: Path | None = None

    def keep(self, error: BaseException) -> bool:
        if self.partial is None:
            return False
        if isinstance(error, LostRankError):
            error.add_note(f"{self.partial} stays: ranks may still be at work in it. --resume goes on from there")
            return True
        mixed = isinstance(error, ConvertError) and any(found.code == "MS707" for found in error.diagnostics)
        finished = finished_in(self.partial) if self._wanted and not mixed else {}
        if finished:
            size = human_bytes(sum(done.size for done in finished.values()))
            error.add_note(
                f"{len(finished)} of {self._files} data files ({size}) are finished and kept in {self.partial}\n"
                "the same command with --resume goes on from there"
            )
        return bool(finished)


def _copy(team: Team, fill: _Filler, progress: Progress | None) -> CopyReport:
    """Fill this rank's share of the data files; the report is about those of all ranks."""
    work, begun = fill.work, fill.begun
    waiting = {file: size for file, size in work.sizes.items() if file not in begun.finished}
    if team.world > 1:  # each has room for its own share, but there is one disk
        with team.together():
            if team.rank == 0:
                check_room(begun.folder, sum(waiting.values()))
    mine = set(shares(waiting, team.world)[team.rank])
    if team.world == 1:
        parts = [fill(mine, progress)]
    else:
        with SharedProgress(team, progress or NoProgress(), sum(waiting.values())) as shown:
            part: _Part = ([], [])
            with team.together():
                part = fill(mine, shown)
            parts = team.exchange(part)
            shown.all_done()
    files = {**begun.finished, **{file.file: file for _, part in parts for file in part}}
    planned = [part[0] for part, _ in parts]  # without what is passed through
    return CopyReport(
        files=sum(report.files for report in planned),
        tensors=work.tensors,
        nbytes=sum(report.nbytes for report in planned),
        seconds=max(report.seconds for report in planned),
        threads=sum(report.threads for report in planned),
        done=tuple(files[name] for name in sorted(files)),
    )


@dataclass(frozen=True, slots=True)
class _Filler:
    """Writes data files, and names each in the journal when it is finished."""

    prepared: Prepared
    output: Output
    work: Work
    begun: _Begun
    journal: Journal
    crew: Crew[Task] | None

    def __call__(self, mine: Container[str], progress: Progress | None) -> _Part:
        """Write those of the files `mine` that are not finished."""
        reports: list[CopyReport] = []
        done: list[FileDone] = []
        for copy in self.work.copies:

            def finished(file: FileDone, copy: Copy = copy) -> None:
                done.append(replace(file, file=copy.path(file.file)))
                self.journal.add(done[-1])
                if self.begun.upload is not None:
                    self.begun.upload.ship(done[-1].file)

            report = execute(
                copy.fills,
                replace(copy.layout, small_files={}),
                source_root=self.prepared.source.root,
                target_root=self.begun.folder / copy.folder,
                threads=self.output.threads,
                progress=progress if not reports else None,
                fsync=self.output.fsync,
                done=finished,
                only={file for file in copy.layout.file_sizes if copy.path(file) in mine},
                access=self.prepared.access,
                staged=self.begun.upload is not None,
                crew=self.crew,
            )
            reports.append(report)
        return reports, done


def _finish(prepared: Prepared, work: Work, folder: Path, done: Sequence[FileDone]) -> tuple[str, ...]:
    """On rank 0: everything beside the data, the files that make it a checkpoint last."""
    if (finding := changed(prepared.source.root, prepared.source.stamps)) is not None:
        raise ConvertError(finding)
    carried = carry(prepared.reference, folder / work.carried)
    for name, data in work.beside.items():
        write_file(folder / name, data)
    _certify(prepared, work, folder, {file.file: file for file in done})
    for name, data in work.last.items():
        write_file(folder / name, data)
    return carried


def _certify(prepared: Prepared, work: Work, folder: Path, done: Mapping[str, FileDone]) -> None:
    plan = prepared.plan
    home = PurePosixPath(work.manifest).parent
    records = {name: record_of(data) for name, data in (*work.beside.items(), *work.last.items())}
    for copy in work.copies:
        files = [replace(done[copy.path(file)], file=file) for file in copy.layout.file_sizes]
        records |= file_records(files, copy.layout.tensors, copy.path(""))
    below = {name for name in records if home in PurePosixPath(name).parents}
    head = record(
        prepared.table,
        source=source_identity(prepared.source),
        written=prepared.to,
        sets=prepared.request.sets,
        tensors={"read": len(plan.coverage.mapped), "written": work.tensors},
        steps=plan.steps,
        passthrough=dict(plan.coverage.passthrough),
        ignored=dict(plan.coverage.ignored),
    )
    inside = {PurePosixPath(name).relative_to(home).as_posix(): records[name] for name in below}
    write_certificate(folder / home, head, inside, {n: r for n, r in records.items() if n not in below})
