"""Guesses about names: a rule whose tensors are gone, and tensors of its shape in its places under another name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mapspec.authoring.draft import Change
from mapspec.authoring.loose import Loose, Shapes, Wanted
from mapspec.authoring.prefixes import nested
from mapspec.authoring.similar import alike
from mapspec.authoring.trial import Trial

__all__ = ["fit", "rename_changes"]

_CLOSE = 0.1  # second-best names that near are named in the comment


def fit(want: Shapes, have: Shapes) -> bool:
    """Whether the tensors of a group are, place by place, what another group wants, by themselves or stacked."""
    if want == have:
        return True
    return want.keys() == have.keys() and all(_stacks(want[place], inner) for place, inner in have.items())


def _stacks(want: Mapping[tuple[int, ...], Any], have: Mapping[tuple[int, ...], Any]) -> bool:
    """Whether one tensor holds all positions of an axis."""
    shapes = set(want.values())
    return have.keys() == {()} and len(shapes) == 1 and have[()] == (len(want), *next(iter(shapes))) and () not in want


def rename_changes(trial: Trial, wanted: Sequence[Wanted], loose: Sequence[Loose]) -> Iterator[Change]:
    """The likeliest new name of every rule, each name given away once."""
    pairs = [
        (alike(want.live.rest, have.rest), i, j)
        for i, want in enumerate(wanted)
        for j, have in enumerate(loose)
        if want.live.block in have.blocks and fit(want.at, have.at) and want.live.rest != have.rest
    ]
    taken_wants: set[int] = set()
    taken_names: set[int] = set()
    for score, i, j in sorted(pairs, key=lambda p: (-p[0], p[1], p[2])):
        if i in taken_wants or j in taken_names:
            continue
        taken_wants.add(i)
        taken_names.add(j)
        rivals = [
            loose[k].rest for s, n, k in pairs
            if n == i and k != j and abs(s - score) < _CLOSE and s > score - _CLOSE
        ]  # fmt: skip
        yield _renamed(trial, wanted[i], loose[j], rivals)


def _renamed(trial: Trial, want: Wanted, have: Loose, rivals: Sequence[str]) -> Change:
    live = want.live
    path = live.path(trial)
    what = "its shape" if want.at == have.at else "the shape of all of it stacked,"
    why = f"`{live.rest}` is gone, and this has {what} {_shape(have)} in the same {_places(have)}"
    if rivals:
        why += f"; so {'has' if len(rivals) == 1 else 'have'} {', '.join(f'`{r}`' for r in rivals[:3])}"
    value_path = path if live.segment is None else (*path, live.segment)
    return Change(f"`{live.rest}` is called `{have.rest}`", nested(value_path, have.rest), why, path)


def _shape(have: Loose) -> str:
    return str(list(have.shape)) if have.shape is not None else "shapes"


def _places(have: Loose) -> str:
    return f"{len(have.at)} places" if len(have.at) != 1 else "place"
