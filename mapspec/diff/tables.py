"""Two bindings of a mapping to one config -> what happens to each Megatron tensor.

Rules that have an equal on the other side are not looked into: their rows are equal. The rows of the others are
written out and joined by their Megatron names, however the rules that make them are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mapspec.bound import Bound, BoundRule
from mapspec.diff.pairs import Difference, Half, differences, differences_of_rules
from mapspec.diff.rules import Forms, Sides, Signature, rule_key, sides_of
from mapspec.diff.words import (
    made_of,
    stored_as,
)
from mapspec.names import Pattern
from mapspec.table import Row, build_table
from mapspec.tensors import Box

__all__ = ["Outcome", "TableDiff", "compare_tables"]


@dataclass(slots=True)
class Outcome:
    """What happens to some tensors of one rule (or of a pair of rules).

    `before`, `after`: in words. `megatron`, `hf_before`, `hf_after`: names, one of each per tensor or none.
    """

    code: str
    old: BoundRule | None
    new: BoundRule | None
    before: str = ""
    after: str = ""
    megatron: list[str] = field(default_factory=list)
    hf_before: list[str] = field(default_factory=list)
    hf_after: list[str] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True, slots=True)
class TableDiff:
    """The rows of two tables, joined; for the other attributes see `ModelDiff`.

    `changed`: the rules of the old and of the new side that have no equal on the other; `names`: what they make, by
    surface.
    """

    outcomes: tuple[Outcome, ...]
    changed: tuple[tuple[BoundRule, ...], tuple[BoundRule, ...]]
    names: tuple[Mapping[str, frozenset[str]], Mapping[str, frozenset[str]]]
    tensors: tuple[int, int]
    same: int
    added: int
    removed: int
    retargeted: int
    reordered: int
    other: int
    unmapped: tuple[int, int] | None


def _made_by(rows: Mapping[str, Row]) -> dict[str, frozenset[str]]:
    """Names that rows make, by surface."""
    out = {s: frozenset(name for row in rows.values() for name in row.names(s)) for s in ("hf", "stored")}
    return {**out, "megatron": frozenset(rows)}


_RETARGETED = frozenset({"DC101", "DC104", "DC202", "DC203", "DC207"})


def compare_tables(old: Bound, new: Bound, published: frozenset[str] | None = None) -> TableDiff:
    """Join the rows of two bindings.

    Args:
        old, new: the spec of the base and of the head, bound to the same config and flavours.
        published: names of the published checkpoint; `None` where they are not known.
    """
    return _Comparison(old, new, published).run()


class _Comparison:
    def __init__(self, old: Bound, new: Bound, published: frozenset[str] | None) -> None:
        self.old, self.new, self.published = old, new, published
        self.outcomes: dict[tuple[object, ...], Outcome] = {}
        self.forms: dict[int, Forms] = {}
        self.kinds: dict[tuple[int, int], Sequence[Difference]] = {}
        self.touched: dict[str, set[str]] = {}  # canonical name -> codes

    def run(self) -> TableDiff:
        left, right, same = _unmatched(self.old, self.new)
        self.changed = tuple(left), tuple(right)
        olds, news = self.rows(self.old, left), self.rows(self.new, right)
        self.names = _made_by(olds), _made_by(news)
        self.old_hf, self.new_hf = (made["hf"] for made in self.names)
        self.old_places, self.new_places = _places(olds), _places(news)
        for name, row in olds.items():
            if name in news:
                self.both(row, news[name])
        lost = {name: row for name, row in olds.items() if name not in news}
        gained = {name: row for name, row in news.items() if name not in olds}
        self.renamed(lost, gained)
        for row in lost.values():
            self.lose(row, news)
        for row in gained.values():
            self.gain(row)
        self.open_rules()
        return self.result(same, olds, news, lost, gained)

    def rows(self, bound: Bound, rules: Sequence[BoundRule]) -> dict[str, Row]:
        table = build_table(replace(bound, rules=tuple(rules), ties=()))
        return {row.megatron: row for row in table.rows}

    # --- rows that both sides have ------------------------------------------------------------------------------

    def both(self, old: Row, new: Row) -> None:
        one, other = (Half(row, sides_of(row), self.signature(row)) for row in (old, new))
        for code, before, after in (*self.compared(old, new), *differences(one, other, self.old_hf, self.new_hf)):
            self.add(code, old, new, one.sides, other.sides, before, after)

    def compared(self, old: Row, new: Row) -> Sequence[Difference]:
        """What differs but for names, the same for all rows of two rules."""
        key = (id(old.forms), id(new.forms))
        if key not in self.kinds:
            self.kinds[key] = tuple(differences_of_rules(self.signature(old), self.signature(new)))
        return self.kinds[key]

    # --- rows that one side has ---------------------------------------------------------------------------------

    def renamed(self, lost: dict[str, Row], gained: dict[str, Row]) -> None:
        """Megatron tensors that only changed their names: the same Hugging Face tensors in the same order."""
        by_source = {sides_of(row).hf: row for row in gained.values()}
        for name, row in list(lost.items()):
            one = sides_of(row)
            partner = by_source.pop(one.hf, None)
            if partner is None:
                continue
            other = sides_of(partner)
            del lost[name], gained[partner.megatron]
            stored_alike = one.stored == other.stored
            code = "DC207" if stored_alike else "DC203"
            before = str(row.rule.megatron.pattern) if stored_alike else stored_as(row, one)
            after = str(partner.rule.megatron.pattern) if stored_alike else stored_as(partner, other)
            self.add(code, row, partner, one, other, before, after)
            for more, was, now in self.compared(row, partner):
                self.add(more, row, partner, one, other, was, now)

    def lose(self, row: Row, news: Mapping[str, Row]) -> None:
        one = sides_of(row)
        names = [name for name, _ in one.hf]
        where = made_of(row)
        places = self.new_places
        if all(name in self.new_hf for name in names) and all(not lead or (n, lead) in places for n, lead in one.hf):
            self.add("DC203", row, None, one, None, str(row.rule.megatron.pattern), self.holders(names, news))
            return
        for section in ("ignore_hf", "passthrough"):
            entry = next((e for e in getattr(self.new, section) if any(e[0].match(n) for n in names)), None)
            if entry is not None:
                after = f"{'ignored' if section == 'ignore_hf' else 'passed through'} by `{entry[0]}`"
                self.add("DC103", row, None, one, None, where, f"{after}: {entry[1]}")
                return
        self.add("DC201", row, None, one, None, where, "nothing")

    def holders(self, names: Sequence[str], news: Mapping[str, Row]) -> str:
        wanted = set(names)
        found = {str(r.rule.megatron.pattern) for r in news.values() if wanted & {n for n, _ in sides_of(r).hf}}
        return ", ".join(sorted(found)[:3])

    def gain(self, row: Row) -> None:
        other = sides_of(row)
        names = [name for name, _ in other.hf]
        places = self.old_places
        if all(name in self.old_hf for name in names) and all(not lead or (n, lead) in places for n, lead in other.hf):
            return  # said with the tensors that its sources were part of
        made = made_of(row)
        for section in ("ignore_hf", "passthrough"):
            entry = next((e for e in getattr(self.old, section) if any(e[0].match(n) for n in names)), None)
            if entry is not None:
                verb = "ignored" if section == "ignore_hf" else "passed through"
                self.add("DC206", None, row, None, other, f"{verb} by `{entry[0]}`", made)
                return
        known = self.published is not None and all(name in self.published for name in names)
        self.add("DC402" if known else "DC206", None, row, None, other, "nothing", made)

    def open_rules(self) -> None:
        """Rules that end in `**`: their tensors are known with a checkpoint only, so patterns are compared."""
        olds, news = (
            {str(r.megatron.pattern): r for r in bound.rules if r.dims is None} for bound in (self.old, self.new)
        )
        for name in {*olds, *news}:
            old, new = olds.get(name), news.get(name)
            was, now = (None if r is None else [str(s.pattern) for s in r.hf] for r in (old, new))
            if was == now:
                continue
            code = "DC201" if new is None else "DC206" if old is None else "DC202"
            outcome = Outcome(code, old, new, " + ".join(was or ["nothing"]), " + ".join(now or ["nothing"]))
            outcome.megatron.append(name)
            self.outcomes[code, name] = outcome

    # --- collecting ---------------------------------------------------------------------------------------------

    def signature(self, row: Row) -> Signature:
        if id(row.forms) not in self.forms:
            self.forms[id(row.forms)] = Forms(row.rule, row.forms)
        return self.forms[id(row.forms)].signature

    def add(
        self, code: str, old: Row | None, new: Row | None, one: Sides | None, other: Sides | None, before: str,
        after: str,
    ) -> None:  # fmt: skip
        old_rule, new_rule = (None if row is None else row.rule for row in (old, new))
        key = (code, id(old_rule), id(new_rule), before, after)
        outcome = self.outcomes.setdefault(key, Outcome(code, old_rule, new_rule, before, after))
        name = (one or other).megatron  # type: ignore[union-attr]
        outcome.megatron.append(name)
        outcome.hf_before += [n for n, _ in one.hf] if one else []
        outcome.hf_after += [n for n, _ in other.hf] if other else []
        self.touched.setdefault(name, set()).add(code)

    def result(
        self, same: int, olds: Mapping[str, Row], news: Mapping[str, Row], lost: Mapping[str, Row],
        gained: Mapping[str, Row],
    ) -> TableDiff:  # fmt: skip
        common = [codes for name, codes in self.touched.items() if name not in lost and name not in gained]
        retargeted = sum(bool(codes & _RETARGETED) for codes in common)
        reordered = sum("DC102" in codes and not codes & _RETARGETED for codes in common)
        old_count, new_count = (
            sum(len(r.positions) for r in b.rules if r.dims is not None) for b in (self.old, self.new)
        )
        alike = len(olds.keys() & news.keys()) - sum(name in olds and name in news for name in self.touched)
        return TableDiff(
            outcomes=tuple(self.outcomes.values()),
            changed=self.changed,
            names=self.names,
            tensors=(old_count, new_count),
            same=same + alike,
            added=len(gained),
            removed=len(lost),
            retargeted=retargeted,
            reordered=reordered,
            other=len(common) - retargeted - reordered,
            unmapped=self.unmapped(),
        )

    def unmapped(self) -> tuple[int, int] | None:
        """Hugging Face tensors that nothing accounts for: of the published ones, or of those that the base maps."""
        lists = [{str(p) for p, _, _ in (*b.passthrough, *b.ignore_hf)} for b in (self.old, self.new)]
        if self.old_hf == self.new_hf and lists[0] == lists[1]:
            return None
        if self.published is None:
            gone = self.old_hf - self.new_hf
            accounted = _listed_by(self.new)
            return 0, sum(not accounted(name) for name in gone)
        return _unaccounted(self.published, self.old), _unaccounted(self.published, self.new)


def _unmatched(old: Bound, new: Bound) -> tuple[list[BoundRule], list[BoundRule], int]:
    """Closed rules of each side without an equal on the other, and how many rows the equal ones make."""
    waiting: dict[str, list[BoundRule]] = {}
    for rule in new.rules:
        if rule.dims is not None:
            waiting.setdefault(str(rule.megatron.pattern), []).append(rule)
    left, same = [], 0
    for rule in old.rules:
        if rule.dims is None:
            continue
        key = rule_key(rule)
        candidates = waiting.get(str(rule.megatron.pattern), [])
        for i, other in enumerate(candidates):
            if other.positions == rule.positions and rule_key(other) == key:
                del candidates[i]
                same += len(rule.positions)
                break
        else:
            left.append(rule)
    return left, [rule for rules in waiting.values() for rule in rules], same


def _places(rows: Mapping[str, Row]) -> set[tuple[str, Box]]:
    """Places within tensors that hold several rows."""
    stacked = (row for row in rows.values() if any(form.stacked for form in row.forms.surfaces["hf"]))
    return {place for row in stacked for place in sides_of(row).hf}


def _listed_by(bound: Bound) -> Callable[[str], bool]:
    patterns: list[Pattern] = [p for p, _, _ in (*bound.passthrough, *bound.ignore_hf)]
    return lambda name: any(pattern.match(name) for pattern in patterns)


def _unaccounted(published: frozenset[str], bound: Bound) -> int:
    accounted = _listed_by(bound)
    closed = build_table(bound)
    mapped = {name for row in closed.rows for name in row.names("hf")}
    open_ = [side.pattern for rule in bound.rules if rule.dims is None for side in rule.hf]
    rest = published - mapped
    return sum(not accounted(name) and not any(p.match(name) for p in open_) for name in rest)
