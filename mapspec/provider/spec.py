"""A provider spec as the rest of the package reads it: one flat table of fields, with names checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mapspec.choose import listed_architectures
from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.documents import Document, find_spec, read_document
from mapspec.errors import SpecError
from mapspec.expr import Expr, ExprError, parse_expr
from mapspec.schema import provider_v1 as v1
from mapspec.text import Path_

__all__ = ["Entry", "ProviderSpec", "choose_provider", "read_provider"]

type AnyField = v1.ProviderField | v1.Constant | v1.Derived
_SECTIONS = ("fields", "constants", "defaults", "derived")


@dataclass(frozen=True, slots=True)
class Entry:
    """One provider field: its declaration, the section and the group (`None`: always there) it stands in."""

    name: str
    section: str
    group: str | None
    decl: AnyField
    path: Path_


@dataclass(frozen=True)
class ProviderSpec:
    """A provider spec whose names are known to be right."""

    document: Document[v1.Provider]

    @property
    def model(self) -> v1.Provider:
        """The document itself."""
        return self.document.model

    @property
    def name(self) -> str:
        """Name of the spec."""
        return self.model.metadata.name

    def span(self, *path: str | int, of_key: bool = False) -> Span:
        """Where a part of the spec stands."""
        return self.document.tree.span(path, of_key=of_key)

    @cached_property
    def sections(self) -> Mapping[str | None, v1.Section]:
        """Group name (`None`: always) -> the fields declared there."""
        groups: dict[str | None, v1.Section] = {None: self.model}
        return groups | dict(self.model.when)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Provider field -> its entry, in the order of the file."""
        return {entry.name: entry for entry in self._walk()}

    def _walk(self) -> Iterator[Entry]:
        for group, section in self.sections.items():
            for kind in _SECTIONS:
                for name, decl in getattr(section, kind).items():
                    yield Entry(name, kind, group, decl, (*_base(group), kind, name))

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
    def waived(self) -> Mapping[str, tuple[str | None, v1.Waiver]]:
        """HF key -> (group, why it has no field)."""
        return {key: (g, waiver) for g, section in self.sections.items() for key, waiver in section.waived.items()}

    def known_keys(self) -> frozenset[str]:
        """Every HF key that the spec accounts for."""
        return frozenset(self.keys) | frozenset(self.waived)


def _base(group: str | None) -> Path_:
    return () if group is None else ("when", group)


def read_provider(name: str | Path) -> ProviderSpec:
    """Read the provider spec of that name or path.

    Raises:
        SpecError: it is not found, or has mistakes of text, schema or names (MS428), all collected.
    """
    path = name if isinstance(name, Path) else find_spec(name, "providers")
    spec = ProviderSpec(read_document(path, v1.Provider))
    found = list(_mistakes(spec))
    if found:
        raise SpecError(sorted(found, key=Diagnostic.sort_key))
    return spec


def choose_provider(config: Mapping[str, Any], *, where: str) -> ProviderSpec:
    """The provider spec that lists the config's architecture.

    Raises:
        SpecError: MS409 where none or several do.
    """
    wanted = {str(a) for a in config.get("architectures") or ()}
    listed: dict[str, set[str]] = {}
    for architecture, names in listed_architectures("providers").items():
        for name in names:
            listed.setdefault(name, set()).add(architecture)
    fitting = sorted(name for name, architectures in listed.items() if architectures & wanted)
    if len(fitting) == 1:
        return read_provider(fitting[0])
    shown = ", ".join(f"`{a}`" for a in sorted(wanted)) or "no architecture"
    message = (
        f"{'several provider specs list' if fitting else 'no provider spec lists'} {shown}, which the config names"
    )
    help_ = f"name one of: {', '.join(fitting or sorted(listed))}"
    raise SpecError(Diagnostic("MS409", message, where=where, help=help_))


def _mistakes(spec: ProviderSpec) -> Iterator[Diagnostic]:
    """Names that the spec uses and does not have, and what it declares twice."""
    yield from _repeated(spec)
    names = {*spec.entries, *spec.model.values}
    for name in spec.entries.keys() & spec.model.values.keys():
        yield _at(spec, ("values", name), f"`{name}` is a field as well as a value", of_key=True)
    for name in spec.model.values:
        yield from _expression(spec, ("values", name), spec.model.values[name], names)
    for name, conditional in spec.model.when.items():
        path = ("when", name, "if")
        wrong = list(_expression(spec, path, conditional.condition, names))
        yield from wrong
        if not wrong and parse_expr(conditional.condition).keys:
            yield _at(spec, path, "a condition reads fields, not `hf.` keys: it also has to hold on the way back")
    for entry in spec.entries.values():
        yield from _entry(spec, entry, names)
    for group, section in spec.sections.items():
        for i, check in enumerate(section.checks):
            yield from _expression(spec, (*_base(group), "checks", i, "that"), check.that, names)


def _entry(spec: ProviderSpec, entry: Entry, names: set[str]) -> Iterator[Diagnostic]:
    decl = entry.decl
    if isinstance(decl, v1.Derived):
        yield from _expression(spec, (*entry.path, "value"), decl.value, names)
        return
    if isinstance(decl, v1.Constant):
        return
    for part in ("default", "derive", "write"):
        text = getattr(decl, part)
        if text is not None:
            yield from _expression(spec, (*entry.path, part), text, names)
            if decl.reason is None:
                yield _at(spec, (*entry.path, part), f"`{part}` of `{entry.name}` needs a `reason`", of_key=True)
    used = [((*entry.path, "map"), decl.map)]
    for key, spelling in decl.hf.items():
        used += [((*entry.path, "hf", key, kind), getattr(spelling, kind)) for kind in ("symbols", "names")]
        for dialect in spelling.dialects or ():
            if dialect not in spec.model.dialects:
                path = (*entry.path, "hf", key, "dialects")
                yield _at(spec, path, f"there is no dialect `{dialect}`", hint=nearest(dialect, spec.model.dialects))
    for path, name in used:
        if name is not None and name not in spec.model.maps:
            yield _at(spec, path, f"there is no map `{name}`", hint=nearest(name, spec.model.maps))


def _repeated(spec: ProviderSpec) -> Iterator[Diagnostic]:
    """A field or an HF key that two entries declare."""
    fields: dict[str, Path_] = {}
    keys: dict[str, Path_] = {}
    for entry in spec._walk():
        if entry.name in fields:
            note = Note("also declared here", spec.span(*fields[entry.name], of_key=True))
            yield _at(spec, entry.path, f"field `{entry.name}` is declared twice", of_key=True, note=note)
        fields.setdefault(entry.name, entry.path)
        for key in getattr(entry.decl, "hf", ()):
            path = (*entry.path, "hf", key)
            if key in keys:
                note = Note("also used here", spec.span(*keys[key], of_key=True))
                yield _at(spec, path, f"HF key `{key}` spells two fields", of_key=True, note=note)
            keys.setdefault(key, path)
    for group, section in spec.sections.items():
        for key in section.waived:
            path = (*_base(group), "waived", key)
            if key in keys:
                note = Note("also used here", spec.span(*keys[key], of_key=True))
                yield _at(spec, path, f"HF key `{key}` is waived, but has a place already", of_key=True, note=note)
            keys.setdefault(key, path)


def _expression(spec: ProviderSpec, path: Path_, text: str, names: set[str]) -> Iterator[Diagnostic]:
    try:
        parsed: Expr = parse_expr(text)
    except ExprError as error:
        yield _at(spec, path, f"`{text}`: {error}")
        return
    for name in sorted(parsed.names - names):
        yield _at(spec, path, f"`{text}` uses `{name}`, which is no field and no value", hint=nearest(name, names))


def _at(
    spec: ProviderSpec, path: Path_, message: str, *, of_key: bool = False, hint: str | None = None,
    note: Note | None = None,
) -> Diagnostic:  # fmt: skip
    notes = (note,) if note else ()
    return Diagnostic("MS428", message, spec.span(*path, of_key=of_key), hint=hint, notes=notes)
