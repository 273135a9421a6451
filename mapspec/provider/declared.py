"""A provider spec as the rest of the package reads it: one flat table of fields, with names checked.

The fields of an included spec are in the same table, with their HF keys moved into the part of the config that the
`include` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mapspec.diagnostics import Span
from mapspec.documents import Document
from mapspec.provider.paths import beneath, look_up
from mapspec.schema import provider_v1 as v1
from mapspec.text import Path_

__all__ = ["SECTIONS", "Entry", "ProviderSpec", "Scope"]

type AnyField = v1.ProviderField | v1.Constant | v1.Derived
SECTIONS = ("fields", "constants", "defaults", "derived")
"""Sections that declare fields."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A set of declarations that hold together.

    Attributes:
        group: name of the `when` group, `None` for what always holds.
        part: name of the `include` it comes from, `None` for the spec's own.
        section: the declarations, `path`: where they stand.
    """

    group: str | None
    part: str | None
    section: v1.Section
    path: Path_


@dataclass(frozen=True, slots=True)
class Entry:
    """One provider field: its declaration, the section and the scope it stands in. HF keys are full paths."""

    name: str
    section: str
    group: str | None
    decl: AnyField
    path: Path_
    part: str | None = None


@dataclass(frozen=True)
class ProviderSpec:
    """A provider spec whose names are known to be right.

    Attributes:
        document: the spec itself.
        included: name of an `include` -> that spec.
    """

    document: Document[v1.Provider]
    included: Mapping[str, ProviderSpec] = field(default_factory=dict)

    @property
    def model(self) -> v1.Provider:
        """The document itself."""
        return self.document.model

    @property
    def name(self) -> str:
        """Name of the spec."""
        return self.model.metadata.name

    def span(self, *path: str | int, of_key: bool = False) -> Span:
        """Where a part of the spec, or of a spec that it includes, stands."""
        if len(path) > 2 and path[0] == "include" and path[2] not in v1.IncludedProvider.model_fields:
            part = str(path[1])
            places = sorted(self.model.include[part].config, key=len, reverse=True)
            bare = [_without(p, places) if isinstance(p, str) else p for p in path[2:]]
            return self.included[part].span(*bare, of_key=of_key)
        return self.document.tree.span(path, of_key=of_key)

    # --- declarations, own and included ---------------------------------------------------------------------------

    @cached_property
    def scopes(self) -> tuple[Scope, ...]:
        """Every set of declarations: the spec's own, then those of what it includes."""
        own = [Scope(None, None, self.model, ())]
        own += [Scope(name, None, group, ("when", name)) for name, group in self.model.when.items()]
        for part, spec in self.included.items():
            for scope in spec.scopes:
                own.append(Scope(scope.group, part, scope.section, ("include", part, *scope.path)))
        return tuple(own)

    @cached_property
    def groups(self) -> Mapping[str, tuple[v1.Group, Scope]]:
        """Group -> its declaration and scope."""
        return {s.group: (s.section, s) for s in self.scopes if s.group and isinstance(s.section, v1.Group)}

    @cached_property
    def values(self) -> Mapping[str, str]:
        """Name -> expression, of this spec and of what it includes."""
        found = {name: text for spec in self.included.values() for name, text in spec.values.items()}
        return {**found, **self.model.values}

    @cached_property
    def dialects(self) -> Mapping[str, v1.Dialect]:
        """Dialects, this spec's own first."""
        found = {name: d for spec in self.included.values() for name, d in spec.dialects.items()}
        return {**self.model.dialects, **{n: d for n, d in found.items() if n not in self.model.dialects}}

    @cached_property
    def maps(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Value maps, of this spec and of what it includes."""
        found = {name: table for spec in self.included.values() for name, table in spec.maps.items()}
        return {**found, **self.model.maps}

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Provider field -> its entry, included ones first; the spec's own declaration of a name wins."""
        own = {entry.name: entry for entry in self.own_entries()}
        found = {
            e.name: self._moved(part, e) for part, spec in self.included.items() for e in spec.entries.values()
        }  # fmt: skip
        return {**{name: own.get(name, e) for name, e in found.items()}, **own}

    def own_entries(self) -> Iterator[Entry]:
        """The fields that this spec declares itself."""
        for scope in self.scopes:
            if scope.part is not None:
                continue
            for kind in SECTIONS:
                for name, decl in getattr(scope.section, kind).items():
                    yield Entry(name, kind, scope.group, decl, (*scope.path, kind, name))

    def _moved(self, part: str, entry: Entry) -> Entry:
        """An entry of an included spec, with its HF keys where this spec has them."""
        decl = entry.decl
        if isinstance(decl, v1.ProviderField):
            moved = {
                f"{place}.{key}": spelling.model_copy(update={"dialects": _both(spelling.dialects, at.dialects)})
                for key, spelling in decl.hf.items()
                for place, at in self.model.include[part].config.items()
            }
            decl = decl.model_copy(update={"hf": moved})
        return Entry(entry.name, entry.section, entry.group, decl, ("include", part, *entry.path), part)

    # --- HF keys ----------------------------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> Mapping[str, tuple[Entry, v1.Spelling]]:
        """HF key -> the field that it spells."""
        return {
            key: (entry, spelling)
            for entry in self.entries.values()
            if isinstance(entry.decl, v1.ProviderField)
            for key, spelling in entry.decl.hf.items()
        }

    @cached_property
    def waived(self) -> Mapping[str, tuple[Scope, v1.Waiver]]:
        """HF key -> (where it is declared, why it has no field)."""
        found = {}
        for scope in reversed(self.scopes):  # the spec's own declaration of a key wins
            for key, waiver in scope.section.waived.items():
                for moved in self.moved(scope.part, key):
                    found[moved] = (scope, waiver)
        return {key: found[key] for key in reversed(found)}

    def moved(self, part: str | None, key: str) -> tuple[str, ...]:
        """Where a key that a scope declares stands in the config as a whole."""
        return (key,) if part is None else tuple(f"{place}.{key}" for place in self.model.include[part].config)

    def known_keys(self) -> frozenset[str]:
        """Every HF key that the spec accounts for."""
        return frozenset(self.keys) | frozenset(self.waived)

    @cached_property
    def parts(self) -> frozenset[str]:
        """Mappings within the config that hold keys of their own."""
        places = {f"{place}." for include in self.model.include.values() for place in include.config}
        return beneath({*self.known_keys(), *places})

    def view(self, part: str | None, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `hf` means to the declarations of an included spec: its part of the config."""
        if part is None:
            return config
        for place in self.model.include[part].config:
            found = look_up(config, place)
            if isinstance(found, Mapping):
                return found
        return {}

    def place(self, part: str | None, dialect: str) -> str | None:
        """Prefix of the part in that dialect: "" for the config as a whole, `None` where the dialect has no place."""
        if part is None:
            return ""
        places = self.model.include[part].config.items()
        return next((f"{p}." for p, at in places if at.dialects is None or dialect in at.dialects), None)


def _both(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if a is None or b is None:
        return b if a is None else a
    return tuple(dialect for dialect in a if dialect in b)


def _without(key: str, places: list[str]) -> str:
    return next((key.removeprefix(f"{place}.") for place in places if key.startswith(f"{place}.")), key)
