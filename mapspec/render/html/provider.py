"""The provider fields of a model as data for a page: value, origin, source and line of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mapspec.choose import listed_architectures
from mapspec.errors import SpecError
from mapspec.provider.configs import resolve_configs
from mapspec.provider.resolve import Resolved, ResolvedField, resolve_provider
from mapspec.provider.spec import choose_provider
from mapspec.render.html.spots import Spots

__all__ = ["field_value", "provider_data", "resolved_data"]


def provider_data(config: Mapping[str, Any], spots: Spots, *, where: str) -> dict[str, Any]:
    """The fields that the provider spec of the config's architecture gives, or `why` there are none."""
    architectures = [str(a) for a in config.get("architectures") or ()]
    if not set(architectures).intersection(listed_architectures("providers")):
        return {"why": f"No provider spec lists {', '.join(architectures) or 'the architecture of this config'}."}
    try:
        return resolved_data(resolve_provider(choose_provider(config, where=where), config, {}, where=where), spots)
    except SpecError as error:
        return {"why": "The provider spec does not account for this config: " + error.diagnostics[0].message}


def resolved_data(resolved: Resolved, spots: Spots) -> dict[str, Any]:
    """`name`, `fields` as `[name, value, origin, when, source, place]`, and keys `[key, why]` that give none.

    `parts` has the same for the configs of a model's parts: `[name, about, fields of its own]`.
    """
    meta = resolved.spec.model.metadata
    configs = resolve_configs(resolved.spec, resolved.values(), resolved.overrides)
    return {
        "name": f"{meta.name} {meta.version}",
        "fields": _fields(resolved.fields, spots),
        "parts": [[c.name, c.about, _fields(c.fields, spots)] for c in configs.values()],
        "unused": [[key, why] for key, why in sorted(resolved.unused.items())],
    }


def _fields(fields: Mapping[str, ResolvedField], spots: Spots) -> list[list[Any]]:
    return [
        [name, field_value(f.value), f.origin, f.group, f.source(), spots.at(f.span)]
        for name, f in sorted(fields.items())
    ]


def field_value(value: Any) -> str:
    """A value as people read it in a config."""
    return json.dumps(value, default=lambda other: getattr(other, "__name__", None) or str(other))
