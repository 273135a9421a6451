"""Why a changed mapping is no bijection, without proving again what has not changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain

from mapspec.bound import Bound, BoundRule
from mapspec.diagnostics import Diagnostic
from mapspec.names import Pattern
from mapspec.prove import prove
from mapspec.table import SURFACES, build_table

__all__ = ["LISTS", "faults_of"]

# Sections of names that no rule takes.
LISTS = ("passthrough", "ignore_hf", "ignore_megatron")

_NUMBER = re.compile("[0-9]+")


def faults_of(
    bound: Bound,
    mine: Sequence[BoundRule],
    made: Mapping[str, frozenset[str]],
    known: Mapping[str, frozenset[str]],
    lists: bool,
    ties: bool,
) -> tuple[Diagnostic, ...]:
    """Why a binding is no bijection, as far as the other side can be one all the same: a matter of the rules that
    differ, and of those that claim names which only these make.

    Args:
        mine: the rules that differ.
        made, known: surface -> names that they make, and names that their counterparts make.
        lists, ties: whether what is ignored, or what is tied, differs.
    """
    if ties or {str(name) for tie in bound.ties for name in tie[:2]} & made["megatron"]:
        return prove(build_table(bound)).findings
    rules = list(mine)
    rest = [rule for rule in bound.rules if not any(rule is other for other in rules)]
    for surface in SURFACES:
        fresh = _by_outline(made[surface] - known[surface])
        rules += [rule for rule in rest if _claims_one_of(rule, surface, fresh)]
    if lists:
        entries = [(section, pattern) for section in LISTS for pattern, _, _ in getattr(bound, section)]
        rules += [rule for rule in rest if any(_may_meet(rule, section, p) for section, p in entries)]
    unique = tuple({id(rule): rule for rule in rules}.values())
    return prove(build_table(replace(bound, rules=unique, ties=()))).findings


def _by_outline(names: Iterable[str]) -> Mapping[str, Set[str]]:
    """Names grouped by what stands between their numbers, those in torch_dist also without a segment behind them."""
    found: dict[str, set[str]] = {}
    for name in names:
        for spelling in (name, name.rpartition(".")[0]):
            found.setdefault(_outline(spelling), set()).add(spelling)
    return found


def _outline(name: str) -> str:
    return _NUMBER.sub("#", name)


def _claims_one_of(rule: BoundRule, surface: str, names: Mapping[str, Set[str]]) -> bool:
    """Whether a rule may make one of the names.

    Other indices change nothing but the numbers of a name, so a pattern can match names of its own outline only: one
    look-up instead of every expert of every layer.
    """
    sides = {"hf": rule.hf, "stored": (rule.stored,), "megatron": (rule.megatron,)}[surface]
    for pattern in (side.pattern for side in sides):
        if pattern.rest is None:
            near: Iterable[str] = names.get(_outline(pattern.fill(dict.fromkeys(pattern.holes, 0))), ())
        else:
            near = chain.from_iterable(names.values())
        if any(pattern.match(name) for name in near):
            return True
    return False


def _may_meet(rule: BoundRule, section: str, entry: Pattern) -> bool:
    """Whether an entry of a list may match a name of the rule, by how both begin and end."""
    sides = (rule.stored,) if section == "ignore_megatron" else rule.hf
    for pattern in (side.pattern for side in sides):
        heads = [p.parts[0] if p.parts and isinstance(p.parts[0], str) else "" for p in (entry, pattern)]
        tails = [p.parts[-1] if p.parts and isinstance(p.parts[-1], str) else "" for p in (entry, pattern)]
        begins = heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])
        if begins and (section == "ignore_megatron" or tails[0].endswith(tails[1]) or tails[1].endswith(tails[0])):
            return True
    return False
