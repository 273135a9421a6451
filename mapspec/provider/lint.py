"""`mapspec lint` for provider specs: names, what nothing uses, and both directions on the reference configs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Severity
from mapspec.documents import reference_configs
from mapspec.errors import MapspecError
from mapspec.expr import parse_expr
from mapspec.io.json_config import read_config
from mapspec.provider.configs import resolve_configs
from mapspec.provider.declared import ProviderSpec
from mapspec.provider.export import to_hf_config
from mapspec.provider.paths import leaves
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import read_provider
from mapspec.provider.spec_check import PLACEHOLDER
from mapspec.schema import provider_v1 as v1

__all__ = ["lint_provider"]


def lint_provider(path: Path) -> list[Diagnostic]:
    """Everything that is wrong with the provider spec at `path`, on its own and for its reference configs.

    A config that does not come back as it was from its own fields is a finding too (MS446).
    """
    spec = read_provider(path)
    found: list[Diagnostic] = [*_unused(spec)]
    made: set[str] = set()
    resolved_all = bool(spec.model.metadata.references)
    for i, (name, file) in enumerate(reference_configs(spec.document)):
        if isinstance(file, Diagnostic):
            found.append(file)
            resolved_all = False
            continue
        try:
            config = read_config(file)
            resolved = resolve_provider(spec, config, where=str(file))
            made |= set(resolve_configs(spec, resolved.values()))
        except MapspecError as error:
            found += [d.with_note(f"for the reference config `{name}`") for d in error.diagnostics]
            resolved_all = False
            continue
        back = to_hf_config(spec, resolved.values(), reference=config)
        before, after = dict(leaves(config, spec.parts)), dict(leaves(back, spec.parts))
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                message = f"`{key}` of `{name}` is {before.get(key)!r}, and comes back as {after.get(key)!r}"
                found.append(Diagnostic("MS446", message, spec.span("metadata", "references", i)))
    if resolved_all:
        found += [
            _warning(spec, f"config `{name}` is made for no reference config", "configs", name)
            for name in spec.model.configs
            if name not in made
        ]
    return found


def _unused(spec: ProviderSpec) -> Iterator[Diagnostic]:
    """Declarations of the spec itself that nothing in it refers to; a child inherits more than it needs."""
    if spec.model.extends is not None:
        return
    used = {name for text in _expressions(spec) for name in parse_expr(text).names}
    used |= {name for text in _messages(spec) for name in PLACEHOLDER.findall(text)}
    for name in spec.model.values:
        if name not in used:
            yield _warning(spec, f"value `{name}` is used nowhere", "values", name)
    declared = [entry.decl for entry in spec.own_entries() if isinstance(entry.decl, v1.ProviderField)]
    maps = {m for decl in declared for m in (decl.map, *(n for s in decl.hf.values() for n in (s.symbols, s.names)))}
    for name in spec.model.maps:
        if name not in maps:
            yield _warning(spec, f"map `{name}` is used nowhere", "maps", name)


def _warning(spec: ProviderSpec, message: str, *path: str) -> Diagnostic:
    help_ = "remove it, or use it; a misspelt name elsewhere may have been meant"
    return Diagnostic("MS308", message, spec.span(*path, of_key=True), severity=Severity.WARNING, help=help_)


def _expressions(spec: ProviderSpec) -> Iterator[str]:
    """Every expression of the spec itself."""
    model = spec.model
    yield from model.values.values()
    for group in model.when.values():
        yield group.condition
    for entry in spec.own_entries():
        for part in ("default", "derive", "write") if isinstance(entry.decl, v1.ProviderField) else ("value",):
            text = getattr(entry.decl, part)
            if isinstance(text, str) and not isinstance(entry.decl, v1.Constant):
                yield text
    for config in model.configs.values():
        yield from (derived.value for derived in config.derived.values())
        if config.when is not None:
            yield config.when
    yield from (freeze.condition for freeze in model.freeze.values())
    yield from (check.that for scope in spec.scopes if scope.part is None for check in scope.section.checks)


def _messages(spec: ProviderSpec) -> Iterator[str]:
    for scope in spec.scopes:
        for check in scope.section.checks if scope.part is None else ():
            yield check.message
            yield check.help
