"""HF config -> provider fields, each with the place it comes from; every mistake of the config in one go."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.errors import SpecError
from mapspec.expr import ExprError, MissingKeyError, parse_expr
from mapspec.provider.account import short, unknown_keys
from mapspec.provider.declared import Entry, ProviderSpec, Scope
from mapspec.provider.installed import config_fields
from mapspec.provider.paths import ABSENT, assign, leaves, look_up
from mapspec.provider.resolved import Origin, Resolved, ResolvedField
from mapspec.provider.spec_check import PLACEHOLDER
from mapspec.provider.values import NoCounterpartError, from_hf, same
from mapspec.schema import provider_v1 as v1

__all__ = ["Origin", "Resolved", "ResolvedField", "failed", "resolve_provider", "with_parts"]

_ORIGINS: Mapping[str, Origin] = {"constants": "constant", "defaults": "default", "derived": "derived"}


def resolve_provider(
    spec: ProviderSpec, config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *,
    where: str = "config.json",
) -> Resolved:  # fmt: skip
    """Translate an HF config.

    Args:
        spec: see `mapspec.provider.spec.read_provider`.
        config: contents of config.json.
        overrides: field -> value; fields that are computed from others follow.
        where: the config's path, for findings.

    Raises:
        SpecError: all findings: keys that nothing accounts for (MS420), spellings that contradict each other (MS421),
            keys that are needed (MS422), values without counterpart (MS423) or that Megatron-Core cannot do (MS424),
            contradictions (MS425, MS426), overrides that name no field (MS427).
    """
    overrides = dict(overrides or {})
    plain = _Resolver(spec, config, {}, where)
    resolved = plain.run()
    found = [*plain.found, *_unknown_overrides(spec, overrides)]
    if overrides and not found:
        again = _Resolver(spec, config, overrides, where)
        resolved = again.run()
        found = again.found
    if found:
        raise SpecError(sorted(set(found), key=Diagnostic.sort_key))
    return resolved


def _unknown_overrides(spec: ProviderSpec, overrides: Mapping[str, Any]) -> Iterator[Diagnostic]:
    installed = config_fields()
    for name in overrides:
        config, _, own = name.rpartition(".")
        if config in spec.model.configs and (not installed or own in installed or config_field(spec, config, own)):
            continue
        if name not in spec.entries and name not in installed:
            known = {*spec.entries, *installed}
            more = "" if installed else "; megatron-core is not installed, so fields that only it knows cannot be told"
            message = f"`{name}` is a field neither of `{spec.name}` nor of Megatron-Core's config"
            help_ = f"`mapspec provider {spec.name} --config ...` lists the fields{more}"
            yield Diagnostic("MS427", message, where=f"--set {name}", hint=nearest(name, known), help=help_)


def with_parts(spec: ProviderSpec, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the parts that a field as a whole was set to, so that the keys within count."""
    out: dict[str, Any] | None = None
    for entry in spec.entries.values():
        keys = [key for key in getattr(entry.decl, "hf", ()) if key in spec.parts]
        if entry.name not in overrides or not keys:
            continue
        out = copy.deepcopy(dict(config)) if out is None else out
        here = [key for key in keys if look_up(out, key) is not ABSENT] or keys[:1]
        for key in here:
            assign(out, key, overrides[entry.name] if key == here[0] else None)
    return config if out is None else out


def failed(
    spec: ProviderSpec, scope: Scope, number: int, check: v1.Check, lookup: Callable[[str], Any], code: str,
    notes: tuple[Note, ...] = (),
) -> Diagnostic:  # fmt: skip
    """The finding of a check that does not hold, with the values that its text names."""

    def told(text: str) -> str:
        return PLACEHOLDER.sub(lambda match: short(lookup(match[1])), text)

    span = spec.span(*scope.path, "checks", number, "that")
    return Diagnostic(code, told(check.message), span, help=told(check.help) or None, notes=notes)


def config_field(spec: ProviderSpec, config: str, name: str) -> bool:
    """Whether a further config declares that field, or is a mapping, which takes any."""
    declared = spec.model.configs[config]
    return declared.origin != "language" or name in declared.constants or name in declared.derived


class _Resolver:
    """Computes fields on demand, each once."""

    def __init__(self, spec: ProviderSpec, config: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> None:
        self.spec, self.overrides, self.where = spec, overrides, where
        self.given, self.config = config, with_parts(spec, config, overrides)
        self.done: dict[str, ResolvedField | None] = {}
        self.groups: dict[str, bool] = {}
        self.running: list[str] = []
        self.found: list[Diagnostic] = []

    def run(self) -> Resolved:
        spec = self.spec
        fields = {name: f for name in spec.entries if (f := self.field(name)) is not None}
        for name, value in self.overrides.items():
            if name not in spec.entries and "." not in name:
                fields[name] = ResolvedField(name, value, "override", reason="set by the user")
        for name in self.overrides:
            if name in fields:
                self.tell_part(fields, spec.entries.get(name))
        unused = dict(self.unused(fields))
        if not self.overrides:
            self.found.extend(unknown_keys(self.spec, self.config, self.where))
        if not self.found:
            self.found.extend(self.failed_checks())
        return Resolved(spec, self.given, self.where, fields, unused, self.overrides)

    def tell_part(self, fields: dict[str, ResolvedField], entry: Entry | None) -> None:
        """A field that was set may be a key of a part that is a field as well: the part then says so too."""
        for key in getattr(entry.decl if entry else None, "hf", ()):
            part, _, last = key.rpartition(".")
            whole = self.spec.keys.get(part)
            if whole is None or entry is None or whole[0].name not in fields:
                continue
            value = fields[whole[0].name].value
            if isinstance(value, Mapping) and look_up(self.given, key) is not ABSENT:
                told = replace(fields[whole[0].name], value={**value, last: fields[entry.name].value})
                fields[whole[0].name] = told

    # --- values -------------------------------------------------------------------------------------------------

    def lookup(self, name: str) -> Any:
        if name in self.spec.values:
            return self.evaluate(self.spec.values[name])
        found = self.field(name)
        return None if found is None else found.value

    def evaluate(self, text: str, part: str | None = None) -> Any:
        return parse_expr(text)(self.spec.view(part, self.config), self.lookup)

    def applies(self, group: str | None) -> bool:
        if group is None:
            return True
        if group not in self.groups:
            try:
                self.groups[group] = bool(self.evaluate(self.spec.groups[group][0].condition))
            except _MissingError:
                self.groups[group] = False  # what the condition needs is a finding already
            except ExprError as error:
                self.groups[group] = False
                path = self.spec.groups[group][1].path
                self.report("MS422", f"condition of `{group}`: {error}", self.spec.span(*path, "if"))
        return self.groups[group]

    def field(self, name: str) -> ResolvedField | None:
        """The field, or `None` where its group does not apply. A field that cannot be computed raises `_MissingError`
        to whoever needs it, and is a finding once."""
        if name not in self.done:
            if name in self.running:
                ring = " -> ".join([*self.running[self.running.index(name) :], name])
                raise ExprError(f"it is computed from itself: {ring}")
            outermost = not self.running
            self.running.append(name)
            try:
                self.done[name] = self.compute(self.spec.entries[name])
            except _MissingError:
                self.done[name] = ResolvedField(name, _BROKEN, "derived")
                if not outermost:
                    raise
            finally:
                self.running.pop()
        found = self.done[name]
        if found is not None and found.value is _BROKEN and self.running:
            raise _MissingError(name)
        return found

    def compute(self, entry: Entry) -> ResolvedField | None:
        name, decl = entry.name, entry.decl
        if name in self.overrides:
            return self.make(entry, self.overrides[name], "override", reason="set by the user")
        if not self.applies(entry.group):
            return None
        if isinstance(decl, v1.Constant):
            return self.make(entry, decl.value, _ORIGINS[entry.section], reason=decl.reason)
        if isinstance(decl, v1.Derived):
            value = self.computed(entry, "value", decl.value)
            return self.make(entry, value, "derived", reason=decl.reason)
        return self.read(entry, decl)

    def read(self, entry: Entry, decl: v1.ProviderField) -> ResolvedField:
        keys, value = self.spelled(entry, decl)
        if decl.derive is not None:
            derived = self.computed(entry, "derive", decl.derive)
            if keys and not same(value, derived) and not self.overrides:
                message = f"the config contradicts itself: `{keys[0]}` is {value!r}, but {decl.reason}: {derived!r}"
                self.report("MS425", message, self.spec.span(*entry.path, "derive"), help="one of the two is wrong")
            return self.make(entry, derived, "derived", reason=decl.reason or "")
        if keys:
            return self.make(entry, value, "hf", keys=keys)
        if decl.default is not None:
            return self.make(entry, self.computed(entry, "default", decl.default), "default", reason=decl.reason or "")
        spelled = " or ".join(f"`{key}`" for key in decl.hf)
        unknown = {key for key, _ in leaves(self.config, self.spec.parts)} - self.spec.known_keys()
        hint = next((h for key in decl.hf if (h := nearest(key, unknown))), None)
        self.report(
            "MS422", f"the config has no {spelled}, which gives `{entry.name}`", self.spec.span(*entry.path),
            hint=hint, help="add the key to the config, or a `default` with its `reason` here",
        )  # fmt: skip
        raise _MissingError(entry.name)

    def spelled(self, entry: Entry, decl: v1.ProviderField) -> tuple[tuple[str, ...], Any]:
        """The keys that the config has for a field, and the value on which all of them agree."""
        read: list[tuple[str, Any]] = []
        for key in decl.hf:
            given = look_up(self.config, key)
            if given is ABSENT or given is None:
                continue
            try:
                read.append((key, from_hf(decl, key, given, self.spec.maps)))
            except NoCounterpartError as error:
                known = ", ".join(f"`{v}`" for v in error.known)
                path = (*entry.path, "map") if decl.map else (*entry.path, "hf", key)
                self.report(
                    "MS423", str(error), self.spec.span(*path, of_key=not decl.map),
                    hint=nearest(str(error.value), error.known),
                    help=f"known: {known}; more are added under `maps`" if known else None,
                )  # fmt: skip
                raise _MissingError(entry.name) from None
        if not read:
            return (), None
        first, value = read[0]
        for key, other in read[1:]:
            if not same(other, value):
                message = (
                    f"the config contradicts itself: `{first}` is {short(look_up(self.config, first))} and `{key}` is "
                    f"{short(look_up(self.config, key))}, both spell `{entry.name}`"
                )
                span = self.spec.span(*entry.path, "hf", key, of_key=True)
                self.report("MS421", message, span, help="remove one of the two, or make them agree")
        return tuple(key for key, _ in read), value

    def computed(self, entry: Entry, part: str, text: str) -> Any:
        try:
            return self.evaluate(text, entry.part)
        except MissingKeyError as error:
            message = f"the config has no `{error.key}`, which `{entry.name}` is computed from"
            self.report("MS422", message, self.spec.span(*entry.path, part))
        except _MissingError:
            raise
        except ExprError as error:
            self.report("MS422", f"`{entry.name}` cannot be computed: {error}", self.spec.span(*entry.path, part))
        raise _MissingError(entry.name)

    def make(
        self, entry: Entry, value: Any, origin: Origin, *, keys: tuple[str, ...] = (), reason: str = ""
    ) -> ResolvedField:
        span = self.spec.span(*entry.path, of_key=True)
        decl = entry.decl
        return ResolvedField(entry.name, value, origin, keys, reason, entry.group, span, decl.of, decl.kind)

    # --- the config as a whole ----------------------------------------------------------------------------------

    def unused(self, fields: Mapping[str, ResolvedField]) -> Iterator[tuple[str, str]]:
        for key, value in leaves(self.given, self.spec.parts):
            if key in self.spec.waived:
                scope, waiver = self.spec.waived[key]
                if self.applies(scope.group):
                    self.accept(key, value, scope, waiver)
                    yield key, waiver.reason
                else:
                    yield key, self.inactive(scope.group)
            elif key in self.spec.keys:
                entry, _ = self.spec.keys[key]
                if entry.name not in fields:
                    yield key, self.inactive(entry.group)

    def inactive(self, group: str | None) -> str:
        assert group is not None, "fields without a group always exist"
        return f"counts only where {self.spec.groups[group][0].about}"

    def accept(self, key: str, value: Any, scope: Scope, waiver: v1.Waiver) -> None:
        if waiver.accepts is None or value is None or any(same(value, ok) for ok in waiver.accepts):
            return
        shown = " or ".join(short(ok) for ok in waiver.accepts)
        message = f"`{key}` is {short(value)}; Megatron-Core builds such a model with {shown} only"
        self.report("MS424", message, self.spec.span(*scope.path, "waived", key, of_key=True), help=waiver.reason)

    def failed_checks(self) -> Iterator[Diagnostic]:
        for scope in self.spec.scopes:
            if not self.applies(scope.group):
                continue
            for i, check in enumerate(scope.section.checks):
                if check.at == "config" and not self.evaluate(check.that, scope.part):
                    yield failed(self.spec, scope, i, check, self.lookup, "MS426", self.config_note())

    def config_note(self) -> tuple[Note, ...]:
        return (Note(f"in the config `{self.where}`"),)

    def report(self, code: str, message: str, span: Span, *, hint: str | None = None, help: str | None = None) -> None:
        self.found.append(Diagnostic(code, message, span, hint=hint, help=help, notes=self.config_note()))


class _MissingError(ExprError):
    """A field that is needed could not be computed; the finding exists already."""


_BROKEN = object()
