"""What the command line does about conversions that are cut off."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer

__all__ = ["mention_leftovers", "notes_of", "terminable"]


def mention_leftovers(destination: Path) -> None:
    """Say on stderr what earlier conversions to the destination have left behind, or are still at work in."""
    from mapspec.publish import leftovers

    for path in leftovers(destination):
        typer.echo(f"note: {path} is left over, or still being filled; --resume goes on there", err=True)


@contextmanager
def terminable() -> Iterator[None]:
    """Take SIGTERM, which schedulers send before they kill, as an interrupt; say what an interrupt has left."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo("\n".join(["interrupted; nothing was published", *notes_of(error)]), err=True)
        raise typer.Exit(130) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def notes_of(error: BaseException) -> list[str]:
    """What was added to an exception on its way up: what is kept of unfinished work."""
    return list(getattr(error, "__notes__", ()))
