"""What can be wrong with a provider spec by itself: names it uses and does not have, and what it declares twice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mapspec.diagnostics import Diagnostic, Note, nearest
from mapspec.expr import Expr, ExprError, parse_expr
from mapspec.provider.declared import Entry, ProviderSpec
from mapspec.schema import provider_v1 as v1
from mapspec.text import Path_

__all__ = ["PLACEHOLDER", "mistakes"]

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A name in the message of a check that its value is put in place of."""


def mistakes(spec: ProviderSpec) -> Iterator[Diagnostic]:
    """MS428 for every mistake of names; what an included spec has was found when that was read by itself."""
    yield from _repeated(spec)
    yield from _shadowed(spec)
    names = {*spec.entries, *spec.values}
    model = spec.model
    if not spec.dialects:
        yield _at(spec, (), "there are no `dialects`: neither here nor in an included spec")
    for name in spec.entries.keys() & model.values.keys():
        yield _at(spec, ("values", name), f"`{name}` is a field as well as a value", of_key=True)
    for name in model.values:
        yield from _expression(spec, ("values", name), model.values[name], names)
    if model.applies is not None:
        yield from _expression(spec, ("applies",), model.applies, set())
    for name, conditional in model.when.items():
        yield from _condition(spec, ("when", name, "if"), conditional.condition, names)
    for entry in spec.own_entries():
        yield from _entry(spec, entry, names)
    for scope in spec.scopes:
        for i, check in enumerate(scope.section.checks if scope.part is None else ()):
            yield from _check(spec, (*scope.path, "checks", i), check, names)
    for part, include in model.include.items():
        for place, at in include.config.items():
            yield from _dialects(spec, ("include", part, "config", place, "dialects"), at.dialects)
    for key, written in model.export.add.items():
        yield from _dialects(spec, ("export", "add", key, "dialects"), written.dialects)
    for name, config in model.configs.items():
        yield from _config(spec, name, config, names)
    for name, freeze in model.freeze.items():
        yield from _condition(spec, ("freeze", name, "if"), freeze.condition, names)
    if model.builds == "multimodal" and "assembly" not in spec.entries:
        yield _at(spec, ("builds",), "a multimodal model needs a field `assembly`, which says how it is put together")


def _condition(spec: ProviderSpec, path: Path_, text: str, names: set[str]) -> Iterator[Diagnostic]:
    wrong = list(_expression(spec, path, text, names))
    yield from wrong
    if not wrong and parse_expr(text).keys:
        yield _at(spec, path, "a condition reads fields, not `hf.` keys: it also has to hold on the way back")


def _config(spec: ProviderSpec, name: str, config: v1.SubConfig, names: set[str]) -> Iterator[Diagnostic]:
    path: Path_ = ("configs", name)
    if name == "language":
        yield _at(spec, path, "`language` is the config that others are made from", of_key=True)
    if config.when is not None:
        yield from _condition(spec, (*path, "when"), config.when, names)
    if config.origin == "language":
        for group in config.without:
            if group not in spec.groups:
                hint = nearest(group, spec.groups)
                yield _at(spec, (*path, "without", group), f"there is no group `{group}`", hint=hint, of_key=True)
    elif config.origin not in spec.entries:
        hint = nearest(config.origin, {*spec.entries, "language"})
        yield _at(spec, (*path, "from"), f"there is no field `{config.origin}`", hint=hint)
    for field in config.constants.keys() & config.derived.keys():
        yield _at(spec, (*path, "derived", field), f"`{field}` is a constant of `{name}` already", of_key=True)
    for field, derived in config.derived.items():
        at = (*path, "derived", field, "value")
        wrong = list(_expression(spec, at, derived.value, names))
        yield from wrong
        if not wrong and parse_expr(derived.value).keys:
            yield _at(spec, at, "a further config is computed from fields, not from `hf.` keys")


def _check(spec: ProviderSpec, path: Path_, check: v1.Check, names: set[str]) -> Iterator[Diagnostic]:
    wrong = list(_expression(spec, (*path, "that"), check.that, names))
    yield from wrong
    if check.at == "finalize" and not wrong and parse_expr(check.that).keys:
        yield _at(spec, (*path, "that"), "a check of finalized fields reads no `hf.` keys; fields may have been set")
    for part, text in (("message", check.message), ("help", check.help)):
        for name in PLACEHOLDER.findall(text):
            if name not in names:
                message = f"`{{{name}}}` is no field and no value"
                yield _at(spec, (*path, part), message, hint=nearest(name, names))


def _dialects(spec: ProviderSpec, path: Path_, named: tuple[str, ...] | None) -> Iterator[Diagnostic]:
    for dialect in named or ():
        if dialect not in spec.dialects:
            yield _at(spec, path, f"there is no dialect `{dialect}`", hint=nearest(dialect, spec.dialects))


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
        yield from _dialects(spec, (*entry.path, "hf", key, "dialects"), spelling.dialects)
    for path, name in used:
        if name is not None and name not in spec.maps:
            yield _at(spec, path, f"there is no map `{name}`", hint=nearest(name, spec.maps))


def _repeated(spec: ProviderSpec) -> Iterator[Diagnostic]:
    """A field or an HF key that two entries declare."""
    fields: dict[str, Path_] = {}
    keys: dict[str, Path_] = {}
    for entry in spec.own_entries():
        if entry.name in fields:
            note = Note("also declared here", spec.span(*fields[entry.name], of_key=True))
            yield _at(spec, entry.path, f"field `{entry.name}` is declared twice", of_key=True, note=note)
        fields.setdefault(entry.name, entry.path)
        for key in getattr(entry.decl, "hf", ()):
            path = (*entry.path, "hf", key)
            if key in keys:
                note = Note("also used here", spec.span(*keys[key], of_key=True))
                yield _at(spec, path, f"key `{key}` spells two fields", of_key=True, note=note)
            keys.setdefault(key, path)
    for scope in spec.scopes:
        for key in scope.section.waived if scope.part is None else ():
            path = (*scope.path, "waived", key)
            if key in keys:
                note = Note("also used here", spec.span(*keys[key], of_key=True))
                yield _at(spec, path, f"key `{key}` is waived, but has a place already", of_key=True, note=note)
            keys.setdefault(key, path)


def _shadowed(spec: ProviderSpec) -> Iterator[Diagnostic]:
    """Names of two included specs, or of a group here and there, that would be mixed up."""
    seen: dict[str, str] = {}
    groups: Mapping[str, v1.Group] = spec.model.when
    for part, inner in spec.included.items():
        for name in {*inner.entries, *inner.values}:
            if name in seen and name not in {e.name for e in spec.own_entries()}:
                message = f"`{name}` comes from `{seen[name]}` as well as from `{part}`"
                yield _at(spec, ("include", part, "provider"), message)
            seen.setdefault(name, part)
        moved = {key: e for e in spec.entries.values() if e.part == part for key in getattr(e.decl, "hf", ())}
        for entry in spec.own_entries():
            for key in getattr(entry.decl, "hf", ()):
                if key in moved:
                    message = f"key `{key}` spells `{moved[key].name}` of the included `{part}` already"
                    yield _at(spec, (*entry.path, "hf", key), message, of_key=True)
        for group in groups.keys() & inner.groups.keys():
            message = f"group `{group}` exists in the included `{part}` too"
            yield _at(spec, ("when", group), message, of_key=True)


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
