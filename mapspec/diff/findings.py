"""What changes in a mapping, as findings: with the edits behind each, and the specs that it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mapspec.bind import Bound
from mapspec.bound import BoundRule
from mapspec.diagnostics import Diagnostic
from mapspec.diff.edits import Edit, edits_between, reach, touching
from mapspec.diff.loaded import Version
from mapspec.diff.model import Place, Through
from mapspec.diff.parts import Found, Names, Store
from mapspec.diff.sides import Side
from mapspec.diff.tables import Outcome
from mapspec.link import Scope
from mapspec.table import build_table
from mapspec.text import Path_, read_yaml

__all__ = ["Findings"]


@dataclass
class Findings:
    """Findings about one mapping, by which spec is edited; equal ones of several models are one.

    Attributes:
        owners: file -> name of the spec in it, for what is included.
    """

    old: Version
    new: Version
    store: Store
    owners: Mapping[str, str]

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

    def broken(self, name: str, label: str, findings: Sequence[Diagnostic]) -> None:
        spec = self.new.file.name
        places = [self.new.side.place(d.span) for d in findings]
        identity = tuple(sorted({f"{d.code} {place}" for d, place in zip(findings, places, strict=True)}))
        owner = next((self.owners[p.path] for p in places if p and p.path in self.owners), spec)
        found = self.store.add(Found("DC208", identity, owner, owner, "", "", None, places[0]))
        found.details = found.details or self.new.side.lines(findings)[:5]
        found.edits.update({(edit.file, edit.cause.key): edit for edit in self.edits if _is_meant(edit)})
        names = found.models.setdefault((spec, name), Names())
        names.flavours += [label] if label else []
        self.through(found, owner)

    def mended(self, name: str, label: str, findings: Sequence[Diagnostic]) -> None:
        spec = self.new.file.name
        if not label:
            found = self.store.add(Found("DC401", (spec, name), spec, name, "does not work", "works"))
            found.details += self.old.side.lines(findings)[:3]

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
