"""Mappings before and after: every reference model, under every flavour, joined tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mapspec.bind import Bound, Choices, bind
from mapspec.diagnostics import Diagnostic
from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.edits import Edit
from mapspec.diff.faults import LISTS, faults_of
from mapspec.diff.findings import Findings
from mapspec.diff.loaded import Version, reference_models
from mapspec.diff.model import Earlier, ModelDiff, State
from mapspec.diff.parts import Found, Names, Store
from mapspec.diff.published import published_names
from mapspec.diff.tables import TableDiff, compare_tables
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.schema import v1

__all__ = ["MappingDiff", "compare_mapping"]

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
    comparison = _Comparison(old, new, Findings(old, new, store, owners))
    models = tuple(comparison.model(name, path) for name, (path, _) in configs.items() if path is not None)
    comparison.under_other_flavours()
    comparison.defaults(configs)
    for name, (_, changed) in configs.items():
        if changed:
            store.add(Found("DC503", (new.file.name, name), new.file.name, name, "", "", details=[]))
    return MappingDiff(old, new, old.texts == new.texts, models, comparison.findings.edits)


def _broken(old: Version, new: Version, store: Store) -> None:
    name = new.file.name
    if new.linked is None and old.linked is not None:
        place = new.side.place(new.findings[0].span)
        found = Found("DC209", (name,), name, name, "could be read", "cannot be read", None, place)
        found.details += new.side.lines(new.findings)
        store.add(found)
    elif old.linked is None and new.linked is not None:
        store.add(Found("DC401", (name,), name, name, "could not be read", "can be read"))


@dataclass
class _Comparison:
    old: Version
    new: Version
    findings: Findings
    bound: dict[str, tuple[Mapping[str, Any], set[tuple[str, str, str, str]], int]] = field(default_factory=dict)
    rules_seen: set[tuple[str, str, str, str]] = field(default_factory=set)

    # --- one model ----------------------------------------------------------------------------------------------

    def model(self, name: str, path: Path) -> ModelDiff:
        """Compare a reference model under the base's defaults, then under every other choice of each flavour."""
        config = read_config(path)
        published = published_names(path)
        spec = self.new.file.name
        listed = name in self.old.references, name in self.new.references
        state, diff = self.under(name, config, {}, published)
        if listed == (False, True) and state not in (State.BROKEN, State.STILL_BROKEN):
            self.findings.store.add(Found("DC401", (spec, name), spec, name, "no reference model", "a reference model"))
            state = State.ADDED
        elif listed == (True, False):
            self.findings.store.add(
                Found("DC306", (spec, name), spec, name, "a reference model", "not looked at any more")
            )
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
                self.findings.broken(name, label, now)
                return State.BROKEN, None
            if new is not None:
                self.findings.mended(name, label, was)
            return (State.STILL_BROKEN if new is None else State.MENDED), None
        self.rules_seen = {(r.scope, r.mount, r.block, r.key) for r in new.rules}
        for version, bound in ((self.old, old), (self.new, new)):
            self.findings.store.alive |= {
                (version.side.relative(Path(r.span.path)), r.block, r.key) for r in bound.rules
            }
        diff = compare_tables(old, new, published)
        lists = [[(str(p), s) for s in LISTS for p, _, _ in getattr(b, s)] for b in (old, new)]
        objects = old.objects != new.objects and self.findings.objects(name, label, old, new)
        ties = [{(str(a), str(b)) for a, b, _ in bound.ties} for bound in (old, new)]
        if not diff.outcomes and lists[0] == lists[1] and ties[0] == ties[1]:
            return (State.CHANGED if objects else State.IDENTICAL), diff
        lists_differ, ties_differ = lists[0] != lists[1], ties[0] != ties[1]
        was, now = (
            faults_of(bound, diff.changed[side], diff.names[side], diff.names[1 - side], lists_differ, ties_differ)
            for side, bound in enumerate((old, new))
        )
        if now and not was:
            self.findings.broken(name, label, now)
            return State.BROKEN, diff
        if was and not now:
            self.findings.mended(name, label, was)
            return State.MENDED, diff
        for outcome in diff.outcomes:
            self.findings.outcome(name, label, outcome)
        if ties[0] != ties[1]:
            self.findings.tied(name, label, ties[0], ties[1])
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
            owner = self.findings.owners.get(self.new.side.relative(scope.document.path), self.new.file.name)
            old_scope = next(s for s in self.old.linked.scopes if name in s.spec.flavours)
            places = (
                self.old.side.place(old_scope.span("flavours", name, "default")),
                self.new.side.place(scope.span("flavours", name, "default")),
            )
            found = self.findings.store.get(
                "DC215", (owner, name),
                lambda n=name, o=owner, p=places: Found(  # type: ignore[misc]
                    "DC215", (o, n), o, n, *_defaults(was[n], now[n]), *p
                ),
            )  # fmt: skip
            edits = [edit for edit in self.findings.edits if edit.path[:2] == ("flavours", name)]
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
                self.findings.through(found, owner)


def _defaults(old: v1.Flavour, new: v1.Flavour) -> tuple[str, str]:
    """The defaults of a flavour, with those of older versions of Megatron-Core where they differ."""
    if old.before == new.before:
        return old.default, new.default
    texts = [", ".join([f.default, *(f"{c} before {v}" for v, c in f.before.items())]) for f in (old, new)]
    return texts[0], texts[1]
