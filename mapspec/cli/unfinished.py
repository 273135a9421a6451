"""What the command line does about conversions that are cut off, and about those that several processes share."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import typer

from mapspec.cli.streams import complain, empty_buffers
from mapspec.errors import MapspecError
from mapspec.io.kernel import cores
from mapspec.render.findings import render_findings

__all__ = ["early_reading", "mention_leftovers", "say", "say_done", "spoken_once", "terminable", "threads_per_rank"]


def threads_per_rank(environment: Mapping[str, str]) -> int | None:
    """Threads for one of several processes on a host: its part of the cores. `None` for a process by itself."""
    beside = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    return None if beside == 1 else max(1, cores() // beside)


def early_reading(source: Path, resume: bool, environment: Mapping[str, str]) -> ExitStack:
    """Begin to read the source while everything else starts, where all of it will be read from here: not for one of
    several processes, and not where an earlier run may have finished a part."""
    from mapspec.copying.early import reading_early
    from mapspec.io.remote import RemotePath

    if resume or int(environment.get("WORLD_SIZE", "1")) > 1 or isinstance(source, RemotePath):
        return ExitStack()
    return reading_early(source)


def mention_leftovers(destination: Path) -> None:
    """Say on stderr what earlier conversions to the destination have left behind, or are still at work in."""
    from mapspec.publish import leftovers

    for path in leftovers(destination):
        complain(f"note: {path} is left over, or still being filled; --resume goes on there")


def say(error: MapspecError) -> None:
    """Print findings, and what was added to them on their way up: what is kept of unfinished work."""
    complain("\n".join([render_findings(error.diagnostics), *_notes(error)]))


def say_done(text: str) -> None:
    """Print what was done. It is done even where that cannot be said: to a closed pipe, to a log on a full disk."""
    try:
        typer.echo(text)
    except OSError:
        empty_buffers()
        complain("the checkpoint is in place; its summary could not be printed")


@contextmanager
def terminable(rank: int) -> Iterator[None]:
    """Take SIGTERM, which schedulers send before they kill, as an interrupt, and SIGHUP of a connection that is lost,
    unless it is ignored (`nohup`); rank 0 says what an interrupt has left."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        if rank == 0:
            complain("\n".join(["interrupted; nothing was published", *_notes(error)]))
        raise typer.Exit(130) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def spoken_once(rank: int) -> Iterator[None]:
    """All ranks end with the same findings and exit code; the first of them prints."""
    try:
        yield
    except MapspecError as error:
        if rank == getattr(error, "first", 0):
            say(error)
        raise typer.Exit(error.exit_code) from error


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))
