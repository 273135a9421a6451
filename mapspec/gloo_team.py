"""The processes that `torchrun` has started, as a team: torch.distributed with gloo, and a watch over who is alive.

Ranks copy for hours without a word, so a collective would tell of a lost rank far too late. Each rank therefore writes
now and then into the store of the rendezvous how far it is; rank 0 looks whether all do, the others look whether rank 0
does. A rank that met with an error says so in the store, and the others end their copy to hear what it was. Values go
over gloo, after all ranks have signed in at the store; so no collective has to wait for work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.team import LostRankError, OtherRankError, Team

__all__ = ["GlooTeam", "team_of"]

_BEAT_S = 1.0
_LOST_S = 60.0
_COLLECTIVE_S = 120.0
_FAREWELL_S = 20.0


@contextmanager
def team_of(environment: Mapping[str, str]) -> Iterator[Team]:
    """The team that the environment describes: one process, or those that `torchrun` has started.

    Args:
        environment: `WORLD_SIZE`, `RANK`, `MASTER_ADDR`, `MASTER_PORT`, as torchrun sets them.

    Raises:
        ConvertError: there is no torch (MS780), or the ranks do not find each other (MS781).
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    if find_spec("torch") is None:
        message = "several processes find each other by torch.distributed, and torch is not installed"
        raise ConvertError(Diagnostic("MS780", message, where="torchrun", help='pip install "mapspec[convert]"'))
    team = GlooTeam(_LOST_S)
    try:
        yield team
    finally:
        team.close()


class GlooTeam(Team):
    """All ranks of a job. Methods are for the main thread, but for `check` and `report`.

    Args:
        lost_s: seconds without a sign after which a rank counts as lost.
    """

    def __init__(self, lost_s: float) -> None:
        dist: Any = import_module("torch.distributed")
        try:
            timeout = timedelta(seconds=_COLLECTIVE_S)
            store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
            own = dist.PrefixStore("gloo", store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=world, timeout=timeout)
        except (RuntimeError, ValueError, StopIteration) as error:
            message = f"the ranks do not find each other: {_first_line(error)}"
            help_ = "check MASTER_ADDR and MASTER_PORT, and GLOO_SOCKET_IFNAME where a host has several networks"
            where = f"rank {os.environ.get('RANK', '?')}"
            raise ConvertError(Diagnostic("MS781", message, where=where, help=help_)) from error
        super().__init__(rank, world)
        self._dist = dist
        self._store = dist.PrefixStore("mapspec", store)
        self._lost_s = lost_s
        self._meetings = 0
        self._nbytes = self._others = 0
        self._alarmed = False
        self._lost: LostRankError | None = None
        self._stop = threading.Event()
        self._beat(0)
        self.exchange(None)  # every rank has given a sign when the watch begins
        self._watcher = threading.Thread(target=self._watch, name="mapspec-watch", daemon=True)
        self._watcher.start()

    def exchange(self, value: object) -> list[Any]:
        """What every rank has to say, by rank."""
        self._sign_in()
        answers: list[Any] = [None] * self.world
        try:
            self._dist.all_gather_object(answers, value)
        except RuntimeError as error:
            raise self._broken(error) from error
        return answers

    def _sign_in(self) -> None:
        """Wait until all ranks are here, however long they work, but not for one that is lost."""
        self._meetings += 1
        key, pause = f"meeting/{self._meetings}", 0.002
        try:
            here = self._store.add(key, 1)
            while here < self.world:
                if self._lost is not None:
                    raise self._lost
                if self.while_waiting is not None:
                    self.while_waiting()
                time.sleep(pause)
                pause = min(2 * pause, 0.25)
                here = self._store.add(key, 0)
        except RuntimeError as error:
            raise self._broken(error) from error

    def alarm(self) -> None:
        """See `Team.alarm`."""
        with suppress(RuntimeError):
            self._store.set("alarm", str(self.rank))

    def check(self) -> None:
        """See `Team.check`."""
        if self._lost is not None:
            raise self._lost
        if self._alarmed:
            raise OtherRankError

    def report(self, nbytes: int) -> None:
        """See `Team.report`."""
        self._nbytes = nbytes

    def reported(self) -> int:
        """See `Team.reported`."""
        return self._others

    def close(self) -> None:
        """Leave. Rank 0 goes first: a launcher ends everybody when one process ends badly, and rank 0 has to speak."""
        with suppress(RuntimeError):
            if self.rank == 0:
                self._store.set("farewell", "1")
            elif self._lost is None:
                self._store.wait(["farewell"], timedelta(seconds=_FAREWELL_S))
        self._stop.set()
        self._watcher.join()
        with suppress(RuntimeError):
            self._dist.destroy_process_group()

    # --- the watch ----------------------------------------------------------------------------------------------

    def _beat(self, number: int) -> None:
        self._store.set(f"beat/{self.rank}", f"{number} {self._nbytes}")

    def _watch(self) -> None:
        watched = [rank for rank in range(self.world) if rank != 0] if self.rank == 0 else [0]
        keys = [f"beat/{rank}" for rank in watched]
        last: list[bytes] = [b""] * len(keys)
        since = [time.monotonic()] * len(keys)
        number = 0
        while not self._stop.wait(_BEAT_S):
            number += 1
            try:
                self._beat(number)
                self._alarmed = self._alarmed or self._store.check(["alarm"])
                if self._store.check(["lost"]):
                    self._lost = self._lost or self._gone(int(self._store.get("lost")))
                beats = self._store.multi_get(keys)
            except RuntimeError as error:
                self._lost = self._lost or self._broken(error)
                return
            now = time.monotonic()
            for at, beat in enumerate(beats):
                if beat != last[at]:
                    last[at], since[at] = beat, now
                elif now - since[at] > self._lost_s and self._lost is None:
                    self._lost = self._gone(watched[at])
                    with suppress(RuntimeError):
                        self._store.set("lost", str(watched[at]))
            if self.rank == 0:
                self._others = sum(int(beat.split()[1]) for beat in beats if beat)

    def _gone(self, rank: int) -> LostRankError:
        message = f"rank {rank} has given no sign for {self._lost_s:g} s"
        return LostRankError(Diagnostic("MS755", message, where=f"rank {rank}", help=_LOOK), int(rank == 0))

    def _broken(self, error: RuntimeError) -> LostRankError:
        if self._lost is not None:
            return self._lost
        message = f"rank {self.rank} lost touch with the other ranks: {_first_line(error)}"
        return LostRankError(Diagnostic("MS755", message, where=f"rank {self.rank}", help=_LOOK), self.rank)


_LOOK = "a rank or its host has ended; look for the first error in the logs of the other ranks"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
