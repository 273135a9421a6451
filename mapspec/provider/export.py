"""Provider fields -> HF config: the inverse of `resolve`, in the spelling of a reference config or of a dialect."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.expr import ExprError
from mapspec.provider.configs import evaluate
from mapspec.provider.declared import Entry, ProviderSpec
from mapspec.provider.paths import ABSENT, assign, leaves, look_up
from mapspec.provider.pattern import split_fields
from mapspec.provider.resolve import resolve_provider, with_parts
from mapspec.provider.values import NoCounterpartError, same, to_hf
from mapspec.schema import provider_v1 as v1

__all__ = ["to_hf_config"]


def to_hf_config(
    spec: ProviderSpec,
    fields: Mapping[str, Any],
    *,
    dialect: str | None = None,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The HF config of a model with these fields.

    With a reference every key keeps its place, its spelling and, where the field has not changed, its very value;
    keys without a field stay. What the reference lacks is appended only if it differs from what its absence means.

    Args:
        fields: field -> plain value; the unified pattern of a finalized provider is understood.
        dialect: entry of the spec's `dialects`; by default the reference's own, else the first. Keys of a reference
            that another dialect spells are replaced.
        reference: the config of the checkpoint that the model came from.

    Raises:
        SpecError: an unknown dialect, a field that is needed and not given, or a value that no HF config can say
            (MS446); findings of the reference.
    """
    if dialect is not None and dialect not in spec.dialects:
        known = ", ".join(spec.dialects)
        message = f"`{spec.name}` has no dialect `{dialect}`"
        hint = nearest(dialect, spec.dialects)
        raise SpecError(Diagnostic("MS446", message, where=f"dialect {dialect}", hint=hint, help=f"there are: {known}"))
    writer = _Writer(spec, split_fields(fields), dialect, reference)
    config = writer.fresh() if reference is None else writer.updated(reference)
    if writer.found:
        raise SpecError(sorted(set(writer.found), key=Diagnostic.sort_key))
    return config


class _Writer:
    def __init__(
        self, spec: ProviderSpec, fields: Mapping[str, Any], dialect: str | None, reference: Mapping[str, Any] | None
    ) -> None:
        self.spec, self.fields = spec, dict(fields)
        self.translate = dialect is not None and reference is not None
        self.dialect = dialect or _dialect_of(spec, reference or {})
        self.found: list[Diagnostic] = []
        for entry in spec.entries.values():
            if entry.section == "fields" and (derive := _decl(entry).derive) is not None:
                try:
                    self.fields[entry.name] = self.evaluate(derive, self.fields)
                except ExprError:
                    continue  # what it is computed from was not given; then it stays as it was given itself

    # --- without a reference ------------------------------------------------------------------------------------

    def fresh(self) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for path, written in _added(self.spec, self.dialect):
            assign(config, path, written.value)
        for entry in self.spec.entries.values():
            if entry.section != "fields" or not self.applies(entry.group, self.fields):
                continue
            key = self.key_for(entry)
            if key is None:
                continue
            value = self.written(entry, self.fields)
            if value is not ABSENT:
                self.put(config, entry, key, value, self.preferred())
            elif _decl(entry).default is None:
                self.report(entry, f"the fields lack `{entry.name}`, without which no config has `{key}`")
        for scope in self.spec.scopes:
            prefix = self.spec.place(scope.part, self.dialect)
            for key, waiver in scope.section.waived.items() if self.applies(scope.group, self.fields) else ():
                path = f"{prefix}{key}"
                if waiver.accepts and waiver.write and prefix is not None and look_up(config, path) is ABSENT:
                    assign(config, path, waiver.accepts[0])
        return config

    # --- with a reference ---------------------------------------------------------------------------------------

    def updated(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        base = resolve_provider(self.spec, reference, where="the reference config").values()
        whole = {name: v for name, v in self.fields.items() if name in base and not same(v, base[name])}
        config: dict[str, Any] = {}
        for key, value in self.walk(with_parts(self.spec, reference, whole)):
            if key in self.dropped:
                continue
            if key not in self.spec.keys:
                assign(config, self.moved(key), value)
                continue
            entry, spelling = self.spec.keys[key]
            moved = self.moved(key)
            mine = moved if self.belongs(_decl(entry).hf.get(moved, spelling)) else self.key_for(entry)
            changed = self.changed(entry, base)
            if mine is None:
                continue
            if mine == moved and not changed and (value is None or not self.respell(entry, moved)):
                assign(config, mine, value)
                continue
            new = self.written(entry, self.fields if changed else base)
            if new is ABSENT:
                assign(config, mine, value)
            else:
                self.put(config, entry, mine, new, self.preferred(None if self.translate else value))
        for entry in self.spec.entries.values():
            if entry.section != "fields" or _decl(entry).derive is not None:
                continue  # a computed field follows from what is written already
            if all(look_up(config, key) is ABSENT for key in _decl(entry).hf):
                own = self.key_for(entry)
                if own is not None and self.changed(entry, base):
                    self.put(config, entry, own, self.written(entry, self.fields), self.preferred())
        for key, written in self.spec.model.export.add.items():  # a part keeps to what the reference has of it
            if look_up(config, key) is ABSENT and (written.dialects is None or self.dialect in written.dialects):
                assign(config, key, written.value)
        return config

    def walk(self, config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(path, value) of a config, parts before what they hold, so that a part stays even where it is empty."""
        for key, value in config.items():
            path = f"{prefix}{key}"
            if path in self.spec.parts and isinstance(value, Mapping):
                if not self.gone(path):
                    yield from self.walk(value, f"{path}.")
                    continue
                value = None
            yield path, value

    def gone(self, part: str) -> bool:
        """Whether a part of the reference is no part of the model any more."""
        entry = self.spec.keys[part][0] if part in self.spec.keys else None
        return entry is not None and self.written(entry, self.fields) is None

    def changed(self, entry: Entry, base: Mapping[str, Any]) -> bool:
        """Whether the field says something else than the reference does."""
        if entry.name not in self.fields or not self.applies(entry.group, self.fields):
            return False
        if _decl(entry).write is None and same(self.fields[entry.name], base.get(entry.name, ABSENT)):
            return False
        return not same(self.written(entry, self.fields), self.written(entry, base))

    def respell(self, entry: Entry, key: str) -> bool:
        """Whether a list of names has to be written in another vocabulary."""
        return self.translate and _decl(entry).hf[key].names is not None

    def belongs(self, spelling: v1.Spelling) -> bool:
        """Whether a key of the reference stays under the dialect that was asked for."""
        return not self.translate or not spelling.dialects or self.dialect in spelling.dialects

    def moved(self, key: str) -> str:
        """Where a key without a field goes: with its part, which another dialect may have under another name."""
        part = max((p for p in self.places if key.startswith(f"{p}.")), key=len, default=None)
        return key if part is None else f"{self.places[part]}{key.removeprefix(part)}"

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Part of the config -> where the dialect has it, for those that it has elsewhere."""
        out: dict[str, str] = {}
        for part, include in self.spec.model.include.items():
            own = self.spec.place(part, self.dialect)
            out |= {p: own[:-1] for p in include.config if own}
        for key in self.spec.parts & self.spec.keys.keys():
            out[key] = self.key_for(self.spec.keys[key][0]) or key
        return {p: mine for p, mine in out.items() if self.translate and mine != p}

    # --- both ---------------------------------------------------------------------------------------------------

    @cached_property
    def dropped(self) -> frozenset[str]:
        """Keys that are never written."""
        return frozenset(_dropped(self.spec))

    def key_for(self, entry: Entry) -> str | None:
        """The key that the dialect writes for a field; `None` where it writes none."""
        return next((k for k, s in _decl(entry).hf.items() if s.dialects is None or self.dialect in s.dialects), None)

    def written(self, entry: Entry, fields: Mapping[str, Any]) -> Any:
        write = _decl(entry).write
        if write is None or entry.name not in fields:
            return fields.get(entry.name, ABSENT)
        try:
            return self.evaluate(write, fields)
        except ExprError as error:
            self.report(entry, f"`{entry.name}` cannot be written: {error}")
            return ABSENT

    def put(self, config: dict[str, Any], entry: Entry, key: str, value: Any, prefer: tuple[str, ...]) -> None:
        try:
            new = to_hf(_decl(entry), key, value, self.spec.maps, prefer)
        except NoCounterpartError as error:
            self.report(entry, f"`{entry.name}`: {error}", help=f"known: {', '.join(error.known)}")
            return
        assign(config, key, copy.deepcopy(dict(new)) if isinstance(new, Mapping) else new)

    def preferred(self, value: Any = None) -> tuple[str, ...]:
        """HF names to choose where several mean the same: those of the value that is replaced, then the dialect's."""
        own = tuple(str(v) for v in value) if isinstance(value, list) else (str(value),) if value is not None else ()
        return (*own, *self.spec.dialects[self.dialect].names)

    def applies(self, group: str | None, fields: Mapping[str, Any]) -> bool:
        return group is None or bool(self.evaluate(self.spec.groups[group][0].condition, fields))

    def evaluate(self, text: str, fields: Mapping[str, Any]) -> Any:
        return evaluate(self.spec, text, fields)

    def report(self, entry: Entry, message: str, *, help: str | None = None) -> None:
        self.found.append(Diagnostic("MS446", message, self.spec.span(*entry.path, of_key=True), help=help))


def _added(spec: ProviderSpec, dialect: str) -> Iterator[tuple[str, v1.Written]]:
    """(path, what is written) of the keys that a dialect always has, those of included parts too."""
    for key, written in spec.model.export.add.items():
        if written.dialects is None or dialect in written.dialects:
            yield key, written
    for part, inner in spec.included.items():
        prefix = spec.place(part, dialect)
        if prefix is not None:
            yield from ((f"{prefix}{key}", written) for key, written in _added(inner, dialect))


def _dropped(spec: ProviderSpec) -> Iterator[str]:
    yield from spec.model.export.drop
    for part, inner in spec.included.items():
        for key in _dropped(inner):
            yield from spec.moved(part, key)


def _decl(entry: Entry) -> v1.ProviderField:
    assert isinstance(entry.decl, v1.ProviderField)
    return entry.decl


def _dialect_of(spec: ProviderSpec, config: Mapping[str, Any]) -> str:
    """The dialect that the config is written in: the one that most of its keys and names belong to."""
    score = dict.fromkeys(spec.dialects, 0)
    for key, value in leaves(config, spec.parts):
        if key in spec.keys and value is not None:
            spelling = spec.keys[key][1]
            for dialect in spelling.dialects or ():
                names = spec.dialects[dialect].names
                score[dialect] += 1 + (isinstance(value, list) and any(name in names for name in value))
    return max(score, key=lambda dialect: score[dialect])
