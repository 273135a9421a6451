"""What `export` and `save_hf` begin with: the model against the mapping, and the reference that it is to look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.live.matching import Live, match
from mapspec.live.names import unwrap
from mapspec.live.opening import choose, reference_of
from mapspec.live.team import Team
from mapspec.live.units import Unit, units_of
from mapspec.sources import Reference
from mapspec.tensors import FLOATS

__all__ = ["Followed", "follow"]


@dataclass(frozen=True)
class Followed:
    """A model, the reference that it follows, and what it gives out, in the mapping's order."""

    live: Live
    reference: Reference
    units: tuple[Unit, ...]


def follow(
    model: Any,
    reference: str | Path | Mapping[str, Any],
    *,
    spec: str | None,
    flavours: Mapping[str, str] | None,
    sets: Sequence[str],
    dtype: str | None,
    strict: bool,
    timeout_s: float | None,
    options: tuple[object, ...],
) -> Followed:
    """Read the reference and hold the model against the mapping. All ranks call it together.

    Args:
        options: what else has to be the same on all ranks; the others are as for `export`.

    Raises:
        MapspecError: the same on all ranks.
    """
    models = unwrap(model)
    team = Team(models[0], timeout_s)
    with team.together():
        if dtype not in (None, "model", *FLOATS):
            help_ = f"one of {', '.join(('model', *FLOATS))}"
            raise SpecError(Diagnostic("MS411", f"`{dtype}` is no floating dtype", where="dtype", help=help_))
        following = reference_of(reference)
        names = list(following.shard_of)
        linked, config, choices = choose(
            following.config, names, where=following.where, spec=spec, flavours=flavours, sets=sets
        )
    live = match(team, models, linked, config, choices, strict=strict, options=(dtype, *options))
    with team.together():
        units = tuple(units_of(live, following, dtype))
    return Followed(live, following, units)
