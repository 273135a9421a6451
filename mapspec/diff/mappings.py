"""Mappings before and after: every reference model, under every flavour, joined tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mapspec.bind import Bound, Choices, bind
from mapspec.bound import BoundRule
from mapspec.diagnostics import Diagnostic
from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.edits import Edit, edits_between, reach, touching
from mapspec.diff.faults import LISTS, faults_of
from mapspec.diff.linked import Version, reference_models
from mapspec.diff.model import Earlier, ModelDiff, Place, State, Through
from mapspec.diff.parts import Found, Names, Store
from mapspec.diff.published import published_names
from mapspec.diff.sides import Side
from mapspec.diff.tables import Outcome, TableDiff, compare_tables
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.link import Scope
from mapspec.schema import v1
from mapspec.table import build_table
from mapspec.text import Path_, read_yaml

__all__ = ["MappingDiff", "Version", "compare_mapping"]

_SMALL = 2_000  # rows; larger models are bound under other flavours only for rules that no smaller one has


@dataclass(frozen=True)
class MappingDiff:
    """A mapping that both sides have."""

    old: Version
    new: Version
    identical: bool
    models: tuple[ModelDiff, ...] = ()
    edits: tuple[Edit, ...] = ()


def compare_mapping(old: Version, new: Version, store: Store, owners: Mapping[str, str]) -> MappingDiff:
    """Compare a mapping that both sides have; what is found goes to `store`.

    Args:
        owners: file -> name of the spec in it, for what is included.
    """
    if old.linked is None or new.linked is None:
        _broken(old, new, store)
        return MappingDiff(old, new, old.texts == new.texts)
    configs = reference_models(old, new)
    if old.texts == new.texts and not any(changed for _, changed in configs.values()):
        return MappingDiff(old, new, True)
    comparison = _Comparison(old, new, store, owners)
    models = tuple(comparison.model(name, path) for name, (path, _) in configs.items() if path is not None)
    comparison.under_other_flavours()
    comparison.defaults(configs)
    for name, (_, changed) in configs.items():
        if changed:
            store.add(Found("DC503", (new.file.name, name), new.file.name, name, "", "", details=[]))
    return MappingDiff(old, new, old.texts == new.texts, models, comparison.edits)


def _broken(old: Version, new: Version, store: Store) -> None:
    name = new.file.name
    if new.linked is None and old.linked is not None:
        place = new.side.place(new.findings[0].span)
        found = Found("DC209", (name,), name, name, "could be read", "cannot be read", None, place)
        found.details += new.lines(new.findings)
        store.add(found)
    elif old.linked is None and new.linked is not None:
        store.add(Found("DC401", (name,), name, name, "could not be read", "can be read"))


@dataclass
class _Comparison:
    old: Version
    new: Version
    store: Store
    owners: Mapping[str, str]
    bound: dict[str, tuple[Mapping[str, Any], set[tuple[str, str, str, str]], int]] = field(default_factory=dict)
    rules_seen: set[tuple[str, str, str, str]] = field(default_factory=set)

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What reads differently, in all files that take part on both sides."""
        files = {side.relative(p): p for side, p in self._paths(self.old)}
        news = {side.relative(p): p for side, p in self._paths(self.new)}
        out: list[Edit] = []
        for file in files.keys() & news.keys():
            out += edits_between(read_yaml(files[file]), read_yaml(news[file]), self.old.side, self.new.side, file)
        if self.old.file.path.name != self.new.file.path.name and not out:
            out += edits_between(
                read_yaml(self.old.file.path), read_yaml(self.new.file.path), self.old.side, self.new.side,
                self.new.side.relative(self.new.file.path),
            )  # fmt: skip
        return tuple(out)

    def _paths(self, version: Version) -> Iterator[tuple[Side, Path]]:
        assert version.linked is not None
        for scope in version.linked.scopes:
            for path in (scope.document.path, *scope.document.parents):
                yield version.side, path

    # --- one model ----------------------------------------------------------------------------------------------

    def model(self, name: str, path: Path) -> ModelDiff:
        """Compare a reference model under the base's defaults, then under every other choice of each flavour."""
        config = read_config(path)
        published = published_names(path)
        spec = self.new.file.name
        listed = name in self.old.references, name in self.new.references
        state, diff = self.under(name, config, {}, published)
        if listed == (False, True) and state not in (State.BROKEN, State.STILL_BROKEN):
            self.store.add(Found("DC401", (spec, name), spec, name, "no reference model", "a reference model"))
            state = State.ADDED
        elif listed == (True, False):
            self.store.add(Found("DC306", (spec, name), spec, name, "a reference model", "not looked at any more"))
        if diff is None:
            return ModelDiff("mapping", spec, name, state)
        self.bound[name] = (config, self.rules_seen, max(diff.tensors))
        return ModelDiff(
            "mapping", spec, name, state, diff.tensors, diff.same, diff.added, diff.removed, diff.retargeted,
            diff.reordered, diff.other, diff.unmapped, published is not None,
        )  # fmt: skip

    def under_other_flavours(self) -> None:
        """Every rule under every other choice of each flavour, in at least one model; small ones are taken first."""
        live: set[tuple[str, str, str, str]] = set()
        ordered = sorted(self.bound.items(), key=lambda item: (item[1][2] > _SMALL, -len(item[1][1])))
        for name, (config, rules, _) in ordered:
            if rules - live:
                live |= rules
                for choices in self.flips():
                    self.under(name, config, choices, None)

    def under(
        self, name: str, config: Mapping[str, Any], flips: Mapping[str, str], published: frozenset[str] | None
    ) -> tuple[State, TableDiff | None]:
        """Compare under some flavours; the rest as the base has them by default."""
        pinned = {**self.pinned, **flips}
        label = ", ".join(f"{flavour}={choice}" for flavour, choice in flips.items())
        old, was = self.bind(self.old, config, pinned)
        new, now = self.bind(self.new, config, pinned)
        if old is None or new is None:
            if old is not None:
                self.broken(name, label, now)
                return State.BROKEN, None
            if new is not None:
                self.mended(name, label, was)
            return (State.STILL_BROKEN if new is None else State.MENDED), None
        self.rules_seen = {(r.scope, r.mount, r.block, r.key) for r in new.rules}
        for version, bound in ((self.old, old), (self.new, new)):
            self.store.alive |= {(version.side.relative(Path(r.span.path)), r.block, r.key) for r in bound.rules}
        diff = compare_tables(old, new, published)
        lists = [[(str(p), s) for s in LISTS for p, _, _ in getattr(b, s)] for b in (old, new)]
        objects = old.objects != new.objects and self.objects(name, label, old, new)
        ties = [{(str(a), str(b)) for a, b, _ in bound.ties} for bound in (old, new)]
        if not diff.outcomes and lists[0] == lists[1] and ties[0] == ties[1]:
            return (State.CHANGED if objects else State.IDENTICAL), diff
        lists_differ, ties_differ = lists[0] != lists[1], ties[0] != ties[1]
        was, now = (
            faults_of(bound, diff.changed[side], diff.names[side], diff.names[1 - side], lists_differ, ties_differ)
            for side, bound in enumerate((old, new))
        )
        if now and not was:
            self.broken(name, label, now)
            return State.BROKEN, diff
        if was and not now:
            self.mended(name, label, was)
            return State.MENDED, diff
        for outcome in diff.outcomes:
            self.outcome(name, label, outcome)
        if ties[0] != ties[1]:
            self.tied(name, label, ties[0], ties[1])
        changed = bool(diff.outcomes) or ties[0] != ties[1] or objects
        return (State.CHANGED if changed else State.IDENTICAL), diff

    def bind(
        self, version: Version, config: Mapping[str, Any], choices: Mapping[str, str]
    ) -> tuple[Bound | None, tuple[Diagnostic, ...]]:
        assert version.linked is not None
        declared = version.linked.flavours()
        mine = {f: c for f, c in choices.items() if f in declared and c in declared[f].choices}
        try:
            return bind(version.linked, config, Choices(mine)), ()
        except SpecError as error:
            return None, error.diagnostics

    @cached_property
    def pinned(self) -> dict[str, str]:
        """The base's default of every flavour that both sides have."""
        assert self.old.linked is not None
        assert self.new.linked is not None
        now = self.new.linked.flavours()
        return {
            name: flavour.default
            for name, flavour in self.old.linked.flavours().items()
            if name in now and flavour.default in now[name].choices
        }

    def flips(self) -> Iterator[dict[str, str]]:
        """Every other choice that both sides have, one at a time."""
        assert self.old.linked is not None
        assert self.new.linked is not None
        now = self.new.linked.flavours()
        for name, flavour in self.old.linked.flavours().items():
            for choice in flavour.choices:
                if name in now and choice in now[name].choices and choice != flavour.default:
                    yield {name: choice}

    # --- findings -----------------------------------------------------------------------------------------------

    def broken(self, name: str, label: str, findings: Sequence[Diagnostic]) -> None:
        spec = self.new.file.name
        places = [self.new.side.place(d.span) for d in findings]
        identity = tuple(sorted({f"{d.code} {place}" for d, place in zip(findings, places, strict=True)}))
        owner = next((self.owners[p.path] for p in places if p and p.path in self.owners), spec)
        found = self.store.add(Found("DC208", identity, owner, owner, "", "", None, places[0]))
        found.details = found.details or self.new.lines(findings)[:5]
        found.edits.update({(edit.file, edit.cause.key): edit for edit in self.edits if _is_meant(edit)})
        names = found.models.setdefault((spec, name), Names())
        names.flavours += [label] if label else []
        self.through(found, owner)

    def mended(self, name: str, label: str, findings: Sequence[Diagnostic]) -> None:
        spec = self.new.file.name
        if not label:
            found = self.store.add(Found("DC401", (spec, name), spec, name, "does not work", "works"))
            found.details += self.old.lines(findings)[:3]

    def outcome(self, name: str, label: str, outcome: Outcome) -> None:
        old, new = outcome.old, outcome.new
        rule = new or old
        assert rule is not None
        old_place, new_place = (
            None if r is None else v.side.place(r.span) for r, v in ((old, self.old), (new, self.new))
        )
        identity = tuple(
            part
            for r, place in ((old, old_place), (new, new_place))
            for part in ((place.path, r.block, r.key) if r and place else ("", "", ""))
        )
        edits = self.edits_of(old, new)
        owner = self.owner(edits, rule, new_place or old_place)
        found = self.store.get(
            outcome.code,
            identity,
            lambda: Found(outcome.code, identity, owner, rule.key, outcome.before, outcome.after, old_place, new_place),
        )
        self.store.touched |= {(p.path, r.block, r.key) for p, r in ((old_place, old), (new_place, new)) if p and r}
        found.block = rule.block
        found.where.append(rule.mount)
        found.edits.update({(edit.file, edit.cause.key): edit for edit in edits})
        self.note(found, name, label, outcome)
        self.through(found, owner)

    def note(self, found: Found, name: str, label: str, outcome: Outcome) -> None:
        names = found.models.get((self.new.file.name, name))
        if names is None:
            names = found.models[self.new.file.name, name] = Names()
        elif label not in names.flavours and (label or names.flavours):
            # Known under the defaults already, or under other flavours: names of the first are enough.
            if names.flavours:
                names.flavours.append(label)
            return
        if label and label not in names.flavours:
            names.flavours.append(label)
        names.tensors += len(outcome.megatron)
        names.megatron += outcome.megatron
        names.hf_before += outcome.hf_before
        names.hf_after += outcome.hf_after

    def edits_of(self, old: BoundRule | None, new: BoundRule | None) -> tuple[Edit, ...]:
        reached: dict[str, frozenset[Path_]] = {}
        for version, rule in ((self.old, old), (self.new, new)):
            if rule is None:
                continue
            assert version.linked is not None
            scope = next(s for s in version.linked.scopes if s.id == rule.scope)
            below = reach(scope.spec, rule.block, rule.key, rule.mount)
            for path in (scope.document.path, *scope.document.parents):
                file = version.side.relative(path)
                reached[file] = reached.get(file, frozenset()) | below
            while scope.parent is not None:
                outer = scope.parent
                include = scope.id.rpartition(".")[2]
                above = frozenset({("include", include)})
                for path in (outer.document.path, *outer.document.parents):
                    file = version.side.relative(path)
                    reached[file] = reached.get(file, frozenset()) | above
                scope = outer
        return touching(self.edits, reached)

    def owner(self, edits: tuple[Edit, ...], rule: BoundRule, place: Place | None) -> str:
        """The spec whose file is edited; without an edit, the one that the rule stands in."""
        files = [edit.file for edit in edits] or ([place.path] if place else [])
        return next((self.owners[file] for file in files if file in self.owners), self.new.file.name)

    def through(self, found: Found, owner: str) -> None:
        """How an edit of another spec reaches this one."""
        spec = self.new.file.name
        if owner == spec or spec in found.through:
            return
        for version in (self.new, self.old):
            assert version.linked is not None
            for scope in version.linked.scopes:
                at = _way(scope, owner, version, self.owners)
                if at is not None:
                    found.through[spec] = Through(spec, at[0], at[1])
                    return

    def tied(self, name: str, label: str, was: set[tuple[str, str]], now: set[tuple[str, str]]) -> None:
        spec = self.new.file.name
        edits = [edit for edit in self.edits if edit.path[:1] in (("tied",), ("values",))]
        for pair in sorted(was ^ now):
            tied, apart = f"tied to `{pair[1]}`", "a tensor of its own"
            words = (tied, apart) if pair in was else (apart, tied)
            found = self.store.add(Found("DC212", (spec, *pair, words[0]), spec, pair[0], *words))
            found.edits.update({(edit.file, edit.cause.key): edit for edit in edits})
            names = found.models.setdefault((spec, name), Names())
            names.tensors = 1
            names.megatron = [pair[0]]
            if label and not names.flavours:
                names.flavours.append(label)

    def objects(self, name: str, label: str, old: Bound, new: Bound) -> bool:
        was, now = (set(build_table(bound).objects) for bound in (old, new))
        if was == now:
            return False
        spec = self.new.file.name
        edits = [edit for edit in self.edits if edit.path[:1] == ("blocks",) and "objects" in edit.path]
        edits = edits or [edit for edit in self.edits if _is_meant(edit)]
        owner = next((self.owners[edit.file] for edit in edits if edit.file in self.owners), spec)
        words = f"{len(was - now):,} that the new one has not", f"{len(now - was):,} that the old one has not"
        found = self.store.add(Found("DC216", (owner,), owner, "_extra_state", *words))
        found.edits.update({(edit.file, edit.cause.key): edit for edit in edits})
        self.through(found, owner)
        names = found.models.setdefault((spec, name), Names())
        if not names.tensors:
            names.tensors = len(was ^ now)
            names.megatron = [o.rpartition("/shard_")[0] for o in sorted(was ^ now)]
            names.flavours += [label] if label else []
        return True

    # --- defaults -----------------------------------------------------------------------------------------------

    def defaults(self, configs: Mapping[str, tuple[Path | None, bool]]) -> None:
        """Flavours with another default: what that changes for whoever names none."""
        assert self.old.linked is not None
        assert self.new.linked is not None
        was, now = self.old.linked.flavours(), self.new.linked.flavours()
        for name in was.keys() & now.keys():
            if (was[name].default, was[name].before) == (now[name].default, now[name].before):
                continue
            scope = next(s for s in self.new.linked.scopes if name in s.spec.flavours)
            owner = self.owners.get(self.new.side.relative(scope.document.path), self.new.file.name)
            old_scope = next(s for s in self.old.linked.scopes if name in s.spec.flavours)
            places = (
                self.old.side.place(old_scope.span("flavours", name, "default")),
                self.new.side.place(scope.span("flavours", name, "default")),
            )
            found = self.store.get(
                "DC215", (owner, name),
                lambda n=name, o=owner, p=places: Found(  # type: ignore[misc]
                    "DC215", (o, n), o, n, *_defaults(was[n], now[n]), *p
                ),
            )  # fmt: skip
            edits = [edit for edit in self.edits if edit.path[:2] == ("flavours", name)]
            found.edits.update({(edit.file, edit.cause.key): edit for edit in edits})
            if was[name].default == now[name].default:
                continue
            for model, (path, _) in configs.items():
                if path is None:
                    continue
                config = read_config(path)
                one, _ = self.bind(self.new, config, {**self.pinned, name: was[name].default})
                other, _ = self.bind(self.new, config, {**self.pinned, name: now[name].default})
                if one is None or other is None:
                    continue
                diff = compare_tables(one, other)
                names = found.models.setdefault((self.new.file.name, model), Names())
                names.megatron = [m for o in diff.outcomes for m in o.megatron]
                names.tensors = len(set(names.megatron))
                codes = {o.code for o in diff.outcomes}
                found.details = sorted({*found.details, *(f"by default: {DIFF_CODES[c].name} ({c})" for c in codes)})
                if codes - {"DC207", "DC202"}:
                    found.earlier = (
                        Earlier.REFUSED,
                        "by default; with --flavour and the old choice they are taken as before",
                    )
            if owner != self.new.file.name:
                self.through(found, owner)


def _defaults(old: v1.Flavour, new: v1.Flavour) -> tuple[str, str]:
    """The defaults of a flavour, with those of older versions of Megatron-Core where they differ."""
    if old.before == new.before:
        return old.default, new.default
    texts = [", ".join([f.default, *(f"{c} before {v}" for v, c in f.before.items())]) for f in (old, new)]
    return texts[0], texts[1]


def _is_meant(edit: Edit) -> bool:
    """Whether an edit may matter to any tensor at all."""
    return edit.path[:1] != ("metadata",) and edit.path[-1] not in ("about", "note")


def _way(scope: Scope, owner: str, version: Version, owners: Mapping[str, str]) -> tuple[str, Place] | None:
    """How the scope's document comes from the file of `owner`: by include, or by `extends`."""
    side = version.side
    if owners.get(side.relative(scope.document.path)) == owner and scope.chain:
        place = side.place(scope.chain[0])
        return None if place is None else ("include", place)
    if any(owners.get(side.relative(path)) == owner for path in scope.document.parents):
        place = side.place(scope.chain[0] if scope.chain else scope.span("extends"))
        return None if place is None else ("include" if scope.chain else "extends", place)
    return None
