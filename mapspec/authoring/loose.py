"""The two loose ends of a trial, in the same terms: what rules want and do not get, and what nothing takes.

Both are groups of tensors that one line of the spec would serve: names relative to a mount, the same at many positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from mapspec.authoring.trial import Evidence, Trial
from mapspec.bound import BoundRule
from mapspec.names import Pattern, parse_name
from mapspec.scope import spelled
from mapspec.table import Form, Table, TensorDecl
from mapspec.text import Path_

__all__ = ["Live", "Loose", "Place", "Wanted", "live_rules", "loose_ends"]

type Place = tuple[str, tuple[int, ...]]
"""A mount, and the indices in its prefix."""

type Shapes = dict[Place, dict[tuple[int, ...], tuple[int, ...]]]
"""Place -> indices within the relative name -> shape."""


@dataclass(frozen=True)
class Live:
    """One Hugging Face name of a rule that is in force, wherever it is mounted.

    Attributes:
        block, key, segment: where it stands in the spec.
        rest: the name relative to its mount.
        rule: the rule at one of its mounts.
        at: shapes by place, of what the rule expects.
    """

    block: str
    key: str
    segment: str | None
    rest: str
    rule: BoundRule
    at: Shapes = field(default_factory=dict)

    def path(self, trial: Trial) -> Path_:
        """Path of `hf` of the rule, where the active flavours have it spelled."""
        return _spelled_at(trial, self.block, self.key)


@dataclass(frozen=True)
class Wanted:
    """Part of a `Live` of which the checkpoint has no tensor."""

    live: Live
    at: Shapes


@dataclass(frozen=True)
class Loose:
    """Tensors that nothing takes: a name relative to mounts, and the blocks that are mounted at all of its places."""

    blocks: tuple[str, ...]
    rest: str
    at: Shapes

    @cached_property
    def count(self) -> int:
        """Number of tensors."""
        return sum(len(inner) for inner in self.at.values())

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of all of them, if it is one."""
        shapes = {shape for inner in self.at.values() for shape in inner.values()}
        return next(iter(shapes)) if len(shapes) == 1 else None


def prefixes(trial: Trial) -> Mapping[str, Pattern]:
    """Prefix of every mount of the spec itself on the Hugging Face side."""
    assert trial.linked is not None
    assert trial.table is not None
    scope = trial.linked.top
    active = scope.active(trial.table.bound.flavours)
    return {
        name: parse_name(spelled(mount, "hf", active) or "").named(mount.wildcards)
        for name, mount in scope.spec.mounts.items()
    }


@lru_cache(maxsize=4)
def live_rules(trial: Trial) -> dict[tuple[str, str, str | None], Live]:
    """Every rule of the spec itself that is in force, by block, key and segment."""
    assert trial.table is not None
    heads = prefixes(trial)
    out: dict[tuple[str, str, str | None], Live] = {}
    rests: dict[int, tuple[str, tuple[str, ...]]] = {}  # by form: there are few, and very many tensors
    for decl in trial.table.inventory("hf").values():
        for rule, form, position in _members(decl):
            head = heads[rule.mount]
            if id(form) not in rests:
                text = _relative(form.pattern, head)
                rests[id(form)] = text, parse_name(text).holes
            rest, holes = rests[id(form)]
            live = out.setdefault(
                (rule.block, rule.key, form.segment), Live(rule.block, rule.key, form.segment, rest, rule)
            )
            place = (rule.mount, tuple(int(position[h]) for h in head.holes))
            own = tuple(int(position[h]) for h in holes)
            live.at.setdefault(place, {})[own] = decl.shape
    return out


def loose_ends(trial: Trial, evidence: Evidence) -> tuple[list[Wanted], list[Loose]]:
    """What is wanted, and what is loose."""
    assert trial.table is not None
    lives = live_rules(trial)
    gone = {decl.name for decl in (*trial.missing, *trial.misshapen)}
    return _wanted(trial.table, lives, gone, prefixes(trial)), _loose(trial, evidence, lives)


def _members(decl: TensorDecl) -> Iterator[tuple[BoundRule, Form, Mapping[str, int]]]:
    for member in decl.members:
        if member.row.rule.scope == "":
            yield member.row.rule, member.form, member.row.position


def _relative(pattern: Pattern, prefix: Pattern) -> str:
    text, head = str(pattern), str(prefix)
    return text.removeprefix(head).removeprefix(".") if head else text


def _wanted(
    table: Table, lives: Mapping[tuple[str, str, str | None], Live], gone: set[str], heads: Mapping[str, Pattern]
) -> list[Wanted]:
    found: dict[tuple[str, str, str | None], Wanted] = {}
    for name in gone:
        for rule, form, position in _members(table.inventory("hf")[name]):
            key = (rule.block, rule.key, form.segment)
            live = lives[key]
            place = (rule.mount, tuple(int(position[h]) for h in heads[rule.mount].holes))
            own = tuple(int(position[h]) for h in parse_name(live.rest).holes)
            wanted = found.setdefault(key, Wanted(live, {}))
            wanted.at.setdefault(place, {})[own] = live.at[place][own]
    return [found[key] for key in lives if key in found]


def _loose(trial: Trial, evidence: Evidence, lives: Mapping[tuple[str, str, str | None], Live]) -> list[Loose]:
    blocks_at: dict[Place, dict[str, None]] = {}
    for live in lives.values():
        for place in live.at:
            blocks_at.setdefault(place, {})[live.block] = None
    heads = sorted(prefixes(trial).items(), key=lambda item: -len(str(item[1])))
    tensors = evidence.tensors or {}
    grouped: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[Place, dict[tuple[int, ...], tuple[int, ...]]]] = {}
    names = [*trial.extra, *(decl.name for decl in trial.misshapen)]
    for name in names:
        place, rest = _placed(name, heads, blocks_at)
        parts = tuple("#" if part.isdecimal() else part for part in rest.split("."))
        numbers = tuple(int(part) for part in rest.split(".") if part.isdecimal())
        blocks = tuple(blocks_at.get(place, ()))
        grouped.setdefault((blocks, parts), {}).setdefault(place, {})[numbers] = tensors[name].shape
    sizes = _own_axes(lives)
    return [
        loose
        for (blocks, parts), at in grouped.items()
        for loose in _with_holes(blocks, parts, at, {b: sizes.get(b, {}) for b in blocks})
    ]


def _placed(name: str, heads: list[tuple[str, Pattern]], blocks_at: Mapping[Place, object]) -> tuple[Place, str]:
    """Where a name lies: the mount with the longest prefix that has something at that position."""
    for mount, prefix in heads:
        found = re.match(rf"{prefix.regex.pattern}\.", name) if prefix.parts else re.match("", name)
        if found is None:
            continue
        place = (mount, tuple(int(found[hole]) for hole in prefix.holes))
        if place in blocks_at:
            return place, name[found.end() :]
    return ("", ()), name


def _own_axes(lives: Mapping[tuple[str, str, str | None], Live]) -> dict[str, dict[str, int]]:
    """Block -> axes that names in it count themselves, with their sizes."""
    out: dict[str, dict[str, int]] = {}
    for live in lives.values():
        holes = {*parse_name(live.rest).holes, *live.rule.megatron.pattern.holes} & set(live.rule.axes)
        inside = holes - {h for m, _ in live.at for h in _mount_holes(live.rule, m)}
        out.setdefault(live.block, {}).update({h: live.rule.axes[h].size for h in inside})
    return out


def _mount_holes(rule: BoundRule, mount: str) -> tuple[str, ...]:
    """Axes of the mount's prefixes: those of the rule's full name that its key has not."""
    own = parse_name(rule.key).holes
    return tuple(h for h in rule.megatron.pattern.holes if h not in own)


def _with_holes(
    blocks: tuple[str, ...], parts: tuple[str, ...], at: Shapes, axes: Mapping[str, Mapping[str, int]]
) -> Iterator[Loose]:
    """The group with a hole for every number that counts an axis; other numbers are parts of names."""
    slots = [i for i, part in enumerate(parts) if part == "#"]
    named: dict[int, str] = {}
    for slot in range(len(slots)):
        values = {frozenset(numbers[slot] for numbers in inner) for inner in at.values()}
        sizes = {axis: size for own in axes.values() for axis, size in own.items()}
        full = next((a for a, n in sizes.items() if values == {frozenset(range(n))} and n > 1), None)
        if full is not None and full not in named.values():
            named[slot] = full
    groups: dict[tuple[int, ...], Shapes] = {}
    for place, inner in at.items():
        for numbers, shape in inner.items():
            fixed = tuple(n for slot, n in enumerate(numbers) if slot not in named)
            own = tuple(n for slot, n in enumerate(numbers) if slot in named)
            groups.setdefault(fixed, {}).setdefault(place, {})[own] = shape
    for fixed, places in groups.items():
        literal = iter(fixed)
        texts = list(parts)
        for slot, i in enumerate(slots):
            texts[i] = "{" + named[slot] + "}" if slot in named else str(next(literal))
        yield Loose(blocks, ".".join(texts), places)


def _spelled_at(trial: Trial, block: str, key: str) -> Path_:
    assert trial.linked is not None
    assert trial.table is not None
    scope = trial.linked.top
    active = scope.active(trial.table.bound.flavours)
    rule = scope.spec.blocks[block].tensors[key]
    choice = next((c for c, s in rule.flavours.items() if c in active and s.hf is not None), None)
    return ("blocks", block, "tensors", key, *(() if choice is None else ("flavours", choice)), "hf")
