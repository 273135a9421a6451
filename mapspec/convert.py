"""`mapspec convert`: a prepared plan becomes files, published as a whole or not at all.

One process or many run the same steps; a rank copies its share of the data files, and rank 0 does what is done once.
What is finished is journaled, so that an error, a signal or a lost machine costs no more than the files in progress.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from mapspec.amounts import human_bytes
from mapspec.beside import carry, check_tie, record, write_certificate, write_file
from mapspec.certificate import file_records, record_of
from mapspec.copy import CopyReport, execute
from mapspec.copying.digests import FileDone
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.io.opened import changed
from mapspec.journal import Journal, Leftover, finished_in
from mapspec.outputs import Copy, Output, Work, lay_out
from mapspec.prepare import Prepared, Request, prepare
from mapspec.progress import Progress
from mapspec.publish import publishing
from mapspec.resume import conversion_identity, find, remove_others, require_same, settle
from mapspec.sources import identity_of as source_identity
from mapspec.team import LostRankError, Team

__all__ = ["Converted", "Output", "convert"]


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


def convert(request: Request, output: Output, progress: Progress | None = None, team: Team | None = None) -> Converted:
    """Convert a checkpoint.

    Args:
        team: the processes that share the work; each calls this with equal arguments.

    Raises:
        MapspecError: nothing was published; the destination is as it was before. Finished files may have been kept
            for `output.resume`; the finding says so.
    """
    began = time.monotonic()
    team = team or Team()
    with team.together():
        prepared = prepare(request).require()
        _check_packages(prepared)
        identity = conversion_identity(prepared, output)
    with ExitStack() as stack:
        with team.together():
            found = find(output, identity) if output.resume and team.rank == 0 else None
            if found is not None:
                stack.callback(found.release)
            files = _files(output) if found is None or found.header is None else int(found.header["files"])
        files = team.exchange(files)[0]
        with team.together():
            work = lay_out(prepared, output, files)
            identity["work"] = work.digest()
        with team.together():
            begun = _begin(stack, prepared, output, work, identity, found) if team.rank == 0 else None
        begun = team.exchange(begun)[0]
        assert begun is not None
        with team.together():
            header = {"identity": identity, "files": files}
            journal = Journal(begun.folder.parent, begun.run, team.rank, header, fsync=output.fsync)
            stack.callback(journal.close)
            if team.rank == 0:
                # What is written again stops being finished before it is touched.
                for name in sorted(found.finished.keys() - begun.finished.keys() if found is not None else ()):
                    journal.again(name)
                remove_others(begun.folder, begun.finished)
                for name in (work.carried, *(copy.folder for copy in work.copies)):
                    (begun.folder / name).mkdir(parents=True, exist_ok=True)
        copied = _copy(team, prepared, output, work, begun, journal, progress)
        carried: tuple[str, ...] = ()
        with team.together():
            if team.rank == 0:
                carried = _finish(prepared, work, begun.folder, copied.done)
        # What raises from here on raises on rank 0 while the folder is put in place.
        with team.together():
            stack.close()
    return Converted(prepared, output.destination, copied, carried, time.monotonic() - began, len(begun.finished))


def _check_packages(prepared: Prepared) -> None:
    casts = [step for step in prepared.plan.steps if step.kind == "cast"]
    if casts and find_spec("torch") is None:
        help_ = 'pip install "mapspec[convert]", or leave --dtype and --cast out'
        message = f"casting {casts[0].detail} is done by torch, which is not installed"
        raise ConvertError(Diagnostic("MS725", message, where=str(prepared.source.path), help=help_))


def _files(output: Output) -> int:
    return max(4, output.threads or 0)


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


def _copy(
    team: Team, prepared: Prepared, output: Output, work: Work, begun: _Begun, journal: Journal,
    progress: Progress | None,
) -> CopyReport:  # fmt: skip
    """Fill this rank's share of the data files; the report is about those of all ranks."""
    mine = [file for file in work.sizes if file not in begun.finished]
    reports: list[CopyReport] = []
    done: list[FileDone] = []
    with team.together():
        for copy in work.copies:
            only = {file for file in copy.layout.file_sizes if copy.path(file) in mine}

            def finished(file: FileDone, copy: Copy = copy) -> None:
                done.append(replace(file, file=copy.path(file.file)))
                journal.add(done[-1])

            report = execute(
                copy.fills,
                replace(copy.layout, small_files={}),
                source_root=prepared.source.root,
                target_root=begun.folder / copy.folder,
                threads=output.threads,
                progress=progress,
                fsync=output.fsync,
                done=finished,
                only=only,
                access=prepared.access,
            )
            reports.append(report)
    parts = team.exchange((reports, done))
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
