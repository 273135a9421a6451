"""From evidence to a variant: guess, try each guess by binding and covering for real, keep what explains more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mapspec.authoring.beyond import (
    addition_changes,
    alias_changes,
    bias_changes,
    drop_changes,
    switched_off_changes,
    unknown_keys,
)
from mapspec.authoring.draft import Change, Draft
from mapspec.authoring.layouts import layout_changes
from mapspec.authoring.loose import Loose, Wanted, loose_ends
from mapspec.authoring.prefixes import flavour_changes, prefix_changes
from mapspec.authoring.renames import rename_changes
from mapspec.authoring.trial import Evidence, Trial, try_draft

__all__ = ["search"]

type Bundle = tuple[Change, ...]

_MOST_STEPS = 40


def search(draft: Draft, evidence: Evidence, known: set[str]) -> Trial:
    """Add changes to the draft as long as one makes it explain more.

    Args:
        draft: the beginning.
        evidence: config and tensors.
        known: config keys that the parent's provider accounts for.
    """
    trial = try_draft(draft, evidence).proven()
    for _ in range(_MOST_STEPS):
        if trial.fits or trial.linked is None:
            break
        better = _step(trial, evidence, known)
        if better is None:
            break
        trial = better
    return trial


def _step(trial: Trial, evidence: Evidence, known: set[str]) -> Trial | None:
    """The first kind of guess that helps, and of its kind the one that helps most."""
    for together, guesses in _guesses(trial, evidence, known):
        bundles = [guess if isinstance(guess, tuple) else (guess,) for guess in guesses()]
        if together and len(bundles) > 1:
            bundles.insert(0, tuple(change for bundle in bundles for change in bundle))
        tried = []
        for bundle in bundles:
            other = try_draft(trial.draft.but(*bundle), evidence)
            if other.cost < trial.cost:
                tried.append(other)
                if together or other.fits:
                    break
        for other in sorted(tried, key=lambda t: t.cost):
            proven = other.proven()
            if proven.cost < trial.cost:
                return proven
    return None


def _aliases(trial: Trial, evidence: Evidence, known: set[str]) -> Iterator[Bundle]:
    """Renamed config keys; where one alone asks for more than there is, with another."""
    assert trial.linked is not None
    for first in alias_changes(trial, unknown_keys(evidence.config, known, trial.linked.top.spec), evidence):
        yield (first,)
        tried = try_draft(trial.draft.but(first), evidence)
        if tried.table is None and tried.linked is not None:
            keys = unknown_keys(evidence.config, known, tried.linked.top.spec)
            for second in alias_changes(tried, keys, evidence):
                yield first, second


def _guesses(
    trial: Trial, evidence: Evidence, known: set[str]
) -> Iterator[tuple[bool, Callable[[], Iterator[Bundle | Change]]]]:
    """(whether they are independent of each other, guesses) by kind, in the order in which they are tried."""
    assert trial.linked is not None
    keys = unknown_keys(evidence.config, known, trial.linked.top.spec)
    if trial.table is None:
        yield False, lambda: _aliases(trial, evidence, known)
        return
    yield False, lambda: prefix_changes(trial)
    yield False, lambda: flavour_changes(trial)
    wanted: Sequence[Wanted]
    loose: Sequence[Loose]
    wanted, loose = loose_ends(trial, evidence)
    yield False, lambda: layout_changes(trial, wanted, loose)
    yield True, lambda: rename_changes(trial, wanted, loose)
    yield False, lambda: switched_off_changes(trial, loose, keys, evidence)
    yield False, lambda: bias_changes(trial, loose, keys, evidence)
    yield False, lambda: addition_changes(trial, loose, keys, evidence)
    yield False, lambda: _aliases(trial, evidence, known)
    yield True, lambda: drop_changes(trial, wanted)
