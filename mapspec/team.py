"""Processes that do one job together, and how they agree on errors. One process is a team of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mapspec import errors
from mapspec.diagnostics import Diagnostic, Note
from mapspec.errors import ConvertError, MapspecError
from mapspec.progress import Progress

__all__ = ["LostRankError", "OtherRankError", "SharedProgress", "Team"]


class LostRankError(ConvertError):
    """A rank is gone, or a collective broke off. No more can be agreed on.

    `first` is the lowest rank that is known to be there to say so.
    """

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic], first: int = 0) -> None:
        super().__init__(diagnostics)
        self.first = first


class OtherRankError(Exception):
    """Another rank has met with an error, and this one ends what it does to hear of it."""


class Team:
    """The processes of a job, seen from one of them; this class is a process by itself.

    Attributes:
        rank: number of this process.
        world: how many there are.
        while_waiting: called now and then while this rank waits for others that are at work.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.while_waiting: Callable[[], None] | None = None

    def exchange(self, value: object) -> list[Any]:
        """What every rank has to say, by rank."""
        return [value]

    def alarm(self) -> None:
        """Let the other ranks know that this one has met with an error, so that they need not work to the end."""

    def check(self) -> None:
        """Look whether to go on. Raises `OtherRankError` after another rank's alarm, `LostRankError` if one is gone."""

    def report(self, nbytes: int) -> None:
        """Let the other ranks know how many bytes this one has written so far."""

    def reported(self) -> int:
        """Bytes that the other ranks have written so far, on rank 0."""
        return 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the block on all ranks; if it raises on any of them, raise that on all.

        Raises:
            MapspecError: the findings of the ranks that raised one. Other exceptions go on as they are where they
                were raised, and are MS754 elsewhere.
        """
        error: Exception | None = None
        try:
            yield
        except LostRankError:
            raise  # the others cannot be told
        except OtherRankError:
            pass  # the others tell
        except Exception as caught:
            if self.world == 1:
                raise
            error = caught
            self.alarm()
        answers = self.exchange(None if error is None else _message(error, self.rank))
        told = [(rank, answer) for rank, answer in enumerate(answers) if answer is not None]
        if error is not None and not isinstance(error, MapspecError):
            raise error
        if told:
            raise _merged(told, self.world) from error


class SharedProgress:
    """Progress of a team: rank 0 shows the bytes of all. Ends the copy of a rank when another one has failed."""

    def __init__(self, team: Team, inner: Progress, total: int) -> None:
        self._team, self._inner, self._total = team, inner, total
        self._mine = self._others = 0

    def __enter__(self) -> SharedProgress:
        self._inner.start(self._total)
        self._team.while_waiting = self._catch_up
        return self

    def __exit__(self, *_: object) -> None:
        self._team.while_waiting = None
        self._inner.finish()

    def start(self, total_bytes: int) -> None:
        """This rank's copy begins."""

    def advance(self, nbytes: int, label: str) -> None:
        """Count for all to see. Raises what `Team.check` does."""
        self._team.check()
        self._mine += nbytes
        self._team.report(self._mine)
        self._inner.advance(nbytes, label)
        self._catch_up()

    def _catch_up(self) -> None:
        others = self._team.reported()
        if others > self._others:
            self._inner.advance(others - self._others, "(on other ranks)")
            self._others = others

    def finish(self) -> None:
        """This rank's copy is over; others may still be at work."""

    def all_done(self) -> None:
        """Everybody has come to the end."""
        self._inner.advance(self._total - self._mine - self._others, "(on other ranks)")


def _message(error: Exception, rank: int) -> tuple[str, tuple[Diagnostic, ...]]:
    if isinstance(error, MapspecError):
        return type(error).__name__, error.diagnostics
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    help_ = "the log of that rank has the whole traceback"
    return "ConvertError", (Diagnostic("MS754", f"rank {rank} stopped with {text}", where=f"rank {rank}", help=help_),)


def _merged(told: Sequence[tuple[int, tuple[str, tuple[Diagnostic, ...]]]], world: int) -> MapspecError:
    """One error out of those of several ranks; equal findings once, with the ranks that met with them."""
    found: dict[Diagnostic, list[int]] = {}
    for rank, (_, diagnostics) in told:
        for diagnostic in diagnostics:
            found.setdefault(diagnostic, []).append(rank)
    kind = getattr(errors, told[0][1][0], ConvertError)
    out = []
    for diagnostic, ranks in found.items():
        if len(ranks) < world and Note(_on(ranks)) not in diagnostic.notes and diagnostic.code != "MS754":
            diagnostic = diagnostic.with_note(_on(ranks))
        out.append(diagnostic)
    error: MapspecError = kind(out)
    return error


def _on(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"seen on rank{'s' if len(ranks) > 1 else ''} {shown}"
