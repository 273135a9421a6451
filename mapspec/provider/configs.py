"""The further configs of a model: the language model's with changes, or a mapping that a field holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.expr import ExprError, parse_expr
from mapspec.provider.declared import Entry, ProviderSpec
from mapspec.provider.resolve import failed
from mapspec.provider.resolved import ResolvedField
from mapspec.schema import provider_v1 as v1

__all__ = [
    "ResolvedConfig",
    "contradictions",
    "evaluate",
    "failed_checks",
    "frozen_parts",
    "inactive_value",
    "require_config",
    "resolve_configs",
]


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """One of the configs, computed.

    Attributes:
        origin: `language`, or the field that holds the mapping it is made from.
        without: fields of the language model's config, or keys of the mapping, that are left out.
        fields: what it has of its own.
    """

    name: str
    origin: str
    about: str
    without: frozenset[str]
    fields: Mapping[str, ResolvedField]

    def values(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Everything: what is copied from `base`, and its own over it; attributes that are no config fields too."""
        kept = {name: value for name, value in base.items() if name not in self.without}
        return kept | {name: field.value for name, field in self.fields.items()}


def evaluate(spec: ProviderSpec, text: str, fields: Mapping[str, Any]) -> Any:
    """An expression over fields that are all known; what is not among them is null."""

    def lookup(name: str) -> Any:
        if name in spec.values:
            return evaluate(spec, spec.values[name], fields)
        return fields.get(name)

    return parse_expr(text)({}, lookup)


def resolve_configs(
    spec: ProviderSpec, fields: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, ResolvedConfig]:
    """The further configs of a model with these fields, in the order of the spec.

    Args:
        overrides: what was set; `config.field` sets a field of one config.

    Raises:
        SpecError: MS461 for every field of a config that cannot be computed.
    """
    found: list[Diagnostic] = []
    out = {}
    for name, declared in spec.model.configs.items():
        try:
            applies = declared.when is None or bool(evaluate(spec, declared.when, fields))
        except ExprError as error:
            found.append(_finding(spec, error, f"whether there is a config `{name}`", "configs", name, "when"))
            continue
        if applies:
            own = dict(_own(spec, name, declared, fields, found))
            own |= dict(_set(name, own, overrides or {}))
            out[name] = ResolvedConfig(name, declared.origin, declared.about, _without(spec, declared), own)
    if found:
        raise SpecError(found)
    return out


def _own(
    spec: ProviderSpec, config: str, declared: v1.SubConfig, fields: Mapping[str, Any], found: list[Diagnostic]
) -> Iterator[tuple[str, ResolvedField]]:
    for name, constant in declared.constants.items():
        span = spec.span("configs", config, "constants", name, of_key=True)
        yield (
            name,
            ResolvedField(
                name, constant.value, "constant", (), constant.reason, None, span, constant.of, constant.kind
            ),
        )
    for name, derived in declared.derived.items():
        path = ("configs", config, "derived", name)
        try:
            value = evaluate(spec, derived.value, fields)
        except ExprError as error:
            found.append(_finding(spec, error, f"`{name}` of the config `{config}`", *path, "value"))
            continue
        span = spec.span(*path, of_key=True)
        yield name, ResolvedField(name, value, "derived", (), derived.reason, None, span, derived.of, derived.kind)


def _set(
    config: str, own: Mapping[str, ResolvedField], overrides: Mapping[str, Any]
) -> Iterator[tuple[str, ResolvedField]]:
    for path, value in overrides.items():
        part, _, name = path.rpartition(".")
        if part == config:
            declared = own.get(name, ResolvedField(name, value, "override"))
            yield name, replace(declared, value=value, origin="override", reason="set by the user")


def contradictions(
    spec: ProviderSpec, configs: Mapping[str, ResolvedConfig], fields: Mapping[str, Any]
) -> Iterator[Diagnostic]:
    """MS462 for every field of a config that has to stay the language model's and does not."""
    for name, config in configs.items():
        for kept, reason in spec.model.configs[name].keeps.items():
            if kept in config.fields and config.fields[kept].value != fields.get(kept):
                message = f"`{name}.{kept}` is {config.fields[kept].value}, but `{kept}` is {fields.get(kept)}"
                yield Diagnostic("MS462", message, spec.span("configs", name, "keeps", kept), help=reason)


def _finding(spec: ProviderSpec, error: ExprError, what: str, *path: str) -> Diagnostic:
    return Diagnostic("MS461", f"{what} cannot be computed: {error}", spec.span(*path))


def _without(spec: ProviderSpec, declared: v1.SubConfig) -> frozenset[str]:
    if declared.origin != "language":
        return frozenset(declared.without)
    return frozenset(name for name, entry in spec.entries.items() if entry.group in declared.without)


def failed_checks(spec: ProviderSpec, fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """MS460 for every check of finalized fields that does not hold."""

    def lookup(name: str) -> Any:
        return evaluate(spec, name, fields)

    for scope in spec.scopes:
        if scope.group is not None and not evaluate(spec, spec.groups[scope.group][0].condition, fields):
            continue
        for i, check in enumerate(scope.section.checks):
            if check.at == "finalize" and not evaluate(spec, check.that, fields):
                yield failed(spec, scope, i, check, lookup, "MS460")


def frozen_parts(spec: ProviderSpec, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules of the model that take no gradients."""
    return tuple(name for name, freeze in spec.model.freeze.items() if evaluate(spec, freeze.condition, fields))


def inactive_value(spec: ProviderSpec, entry: Entry, fields: Mapping[str, Any]) -> Any:
    """What a field of a group that does not apply has as soon as it does; `None` where a config has to say it."""
    if isinstance(entry.decl, v1.Constant):
        return entry.decl.value
    text = entry.decl.value if isinstance(entry.decl, v1.Derived) else entry.decl.default
    try:
        return None if text is None else evaluate(spec, text, fields)
    except ExprError:
        return None


def require_config(spec: ProviderSpec, configs: Mapping[str, Any], name: str) -> None:
    """Raise MS461 where a model has no such config."""
    if name in configs:
        return
    declared = spec.model.configs.get(name)
    if declared is None:
        known = ("language", *spec.model.configs)
        message = f"`{spec.name}` declares no config `{name}`"
        hint, help_ = nearest(name, known), f"there are: {', '.join(known)}"
        raise SpecError(Diagnostic("MS461", message, where=f"config {name}", hint=hint, help=help_))
    message = f"this model has no config `{name}`: {declared.about}, where `{declared.when}`"
    raise SpecError(Diagnostic("MS461", message, spec.span("configs", name, "when")))
