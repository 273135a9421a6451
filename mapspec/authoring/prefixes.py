"""Guesses about where things are: prefixes of mounts, and flavours that spell names otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mapspec.authoring.draft import Change
from mapspec.authoring.loose import live_rules, prefixes
from mapspec.authoring.trial import Trial
from mapspec.names import Pattern, parse_name
from mapspec.text import Path_

__all__ = ["flavour_changes", "nested", "prefix_changes"]

_TRIED = 4  # prefixes per mount, the likeliest first


def nested(path: Path_, value: Any) -> dict[str, Any]:
    """`value` at `path`, as a patch."""
    for part in reversed(path):
        value = {str(part): value}
    assert isinstance(value, dict)
    return value


def flavour_changes(trial: Trial) -> Iterator[Change]:
    """Every other choice of a flavour as its default."""
    assert trial.linked is not None
    assert trial.table is not None
    current = trial.table.bound.flavours
    for name, flavour in trial.linked.top.spec.flavours.items():
        for choice in flavour.choices:
            if choice != current[name]:
                yield Change(
                    f"flavour {name}={choice}",
                    nested(("flavours", name, "default"), choice),
                    f"the names are spelled as under `{choice}`, though no mark of it was found",
                    ("flavours", name),
                )


def prefix_changes(trial: Trial) -> Iterator[Change]:
    """Other prefixes of mounts: what stands before the relative names of their rules in names that nothing takes."""
    heads = prefixes(trial)
    lives = live_rules(trial)
    samples = _samples(trial.extra)
    for group in _mounts_by_prefix(trial, heads):
        rests: dict[str, re.Pattern[str]] = {}
        for live in lives.values():
            if any(mount in group for mount, _ in live.at):
                rests[live.rest] = re.compile(rf"(?:(?P<head>.+)\.)?{parse_name(live.rest).regex.pattern}")
        votes: dict[tuple[str, ...], dict[str, int]] = {}
        numbers: dict[tuple[str, ...], set[tuple[int, ...]]] = {}
        for name, found_numbers in samples.items():
            for rest, pattern in rests.items():
                found = pattern.fullmatch(name)
                if found is None:
                    continue
                parts = tuple((found["head"] or "").split(".")) if found["head"] else ()
                template = tuple("#" if p.isdecimal() else p for p in parts)
                votes.setdefault(template, {}).setdefault(rest, 0)
                votes[template][rest] += len(found_numbers)
                depth = template.count("#")
                numbers.setdefault(template, set()).update(n[:depth] for n in found_numbers)
        ranked = sorted(votes, key=lambda t: (-len(votes[t]), -sum(votes[t].values())))
        for template in ranked[:_TRIED]:
            count = sum(votes[template].values())
            for text in _spelled(trial, heads[group[0]], template, numbers[template]):
                if text != str(heads[group[0]]):
                    yield _moved(trial, group, str(heads[group[0]]), text, count)


def _samples(names: Sequence[str]) -> dict[str, list[tuple[int, ...]]]:
    """One name of all that differ in numbers only, with the numbers of each."""
    alike: dict[tuple[str, ...], tuple[str, list[tuple[int, ...]]]] = {}
    for name in names:
        parts = name.split(".")
        numbers = tuple(int(part) for part in parts if part.isdecimal())
        key = tuple("#" if part.isdecimal() else part for part in parts)
        alike.setdefault(key, (name, []))[1].append(numbers)
    return dict(alike.values())


def _mounts_by_prefix(trial: Trial, heads: dict[str, Pattern] | Any) -> list[tuple[str, ...]]:
    """Live mounts that share a prefix, together and then each by itself."""
    assert trial.table is not None
    live = dict.fromkeys(rule.mount for rule in trial.table.bound.rules if rule.scope == "")
    shared: dict[str, list[str]] = {}
    for mount in live:
        shared.setdefault(str(heads[mount]), []).append(mount)
    groups = [tuple(mounts) for mounts in shared.values()]
    return groups + [(mount,) for mounts in groups if len(mounts) > 1 for mount in mounts]


def _spelled(trial: Trial, old: Pattern, template: Sequence[str], numbers: set[tuple[int, ...]]) -> Iterator[str]:
    """The prefix with holes for its numbers: those of the old one, or the axes that an old one is made of."""
    assert trial.table is not None
    rule = next(r for r in trial.table.bound.rules if r.scope == "")
    slots = [i for i, part in enumerate(template) if part == "#"]
    ways: list[tuple[str, ...]] = [old.holes]
    for hole in old.holes:
        axis = rule.axes.get(hole)
        if axis is not None and axis.ravel is not None:
            at = old.holes.index(hole)
            outer, inner = axis.ravel
            ways += [(*old.holes[:at], *pair, *old.holes[at + 1 :]) for pair in ((outer, inner), (outer,), (inner,))]
    for raveled in rule.axes.values():
        if raveled.ravel is not None and raveled.ravel == old.holes:
            ways.append((raveled.name,))
    for holes in ways:
        free = len(slots) - len(holes)
        constant = [s for s in range(len(slots)) if len({n[s] for n in numbers}) == 1]
        if free < 0 or free > len(constant):
            continue
        fixed = constant[:free]
        names = iter(holes)
        parts = list(template)
        for s, i in enumerate(slots):
            parts[i] = str(next(iter(numbers))[s]) if s in fixed else "{" + next(names) + "}"
        yield ".".join(parts)


def _moved(trial: Trial, mounts: tuple[str, ...], old: str, new: str, count: int) -> Change:
    assert trial.linked is not None
    assert trial.table is not None
    spec = trial.linked.top.spec
    active = trial.linked.top.active(trial.table.bound.flavours)
    patch: dict[str, Any] = {}
    at: Path_ = ("mounts", mounts[0])
    for name in mounts:
        mount = spec.mounts[name]
        choice = next((c for c, s in mount.flavours.items() if c in active and s.hf is not None), None)
        here: dict[str, Any] = {"hf": new} if choice is None else {"flavours": {choice: {"hf": new}}}
        lost = [axis for axis in mount.pin if axis not in parse_name(new).holes and not _made_of(trial, new, axis)]
        if lost:
            here["pin"] = dict.fromkeys(lost)  # the new prefix does not count that axis at all
        patch.setdefault("mounts", {})[name] = here
    marks = {
        flavour: {
            choice: (new + mark[len(old) :]).lstrip(".")
            for choice, mark in declared.detect.items()
            if mark.startswith(old + ".")
        }
        for flavour, declared in spec.flavours.items()
    }
    detect = {flavour: {"detect": marked} for flavour, marked in marks.items() if marked and old}
    if detect:
        patch["flavours"] = detect
    listed = " and ".join(f"`{mount}`" for mount in mounts)
    names = "1 name that no rule takes" if count == 1 else f"{count:,} names that no rule takes"
    where = f"below `{new}`" if new else "at the top"
    why = f"{names}, {where}, go{'es' if count == 1 else ''} on like those of {listed}"
    return Change(f"prefix of {listed}: `{old}` -> `{new}`", patch, why, at)


def _made_of(trial: Trial, prefix: str, axis: str) -> bool:
    """Whether a hole of the prefix counts the axis together with another."""
    assert trial.table is not None
    rule = next(r for r in trial.table.bound.rules if r.scope == "")
    return any(axis in (rule.axes[hole].ravel or ()) for hole in parse_name(prefix).holes if hole in rule.axes)
