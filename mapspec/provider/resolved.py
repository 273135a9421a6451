"""The result of resolving: fields with their values, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mapspec.diagnostics import Span
from mapspec.provider.spec import ProviderSpec
from mapspec.schema import provider_v1 as v1

__all__ = ["Origin", "Resolved", "ResolvedField"]

type Origin = Literal["hf", "default", "constant", "derived", "override"]


@dataclass(frozen=True, slots=True)
class ResolvedField:
    """A provider field with its value.

    Attributes:
        value: plain data; callables, dtypes and enums by name (see `kind`), unless an override is an object.
        origin: `hf` (read from `keys`), `default`, `constant`, `derived` (all three with `reason`), or `override`.
        group: the `when` group that the field belongs to, `None` for fields that always exist.
        span: where the spec declares the field; `None` for a Megatron-Core field that only an override names.
    """

    name: str
    value: Any
    origin: Origin
    keys: tuple[str, ...] = ()
    reason: str = ""
    group: str | None = None
    span: Span | None = None
    of: v1.Owner = "config"
    kind: v1.FieldKind = "plain"

    def source(self) -> str:
        """Where the value comes from, in words: HF keys, or the reason."""
        return ", ".join(self.keys) if self.origin == "hf" else self.reason


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config resolved against a spec.

    Attributes:
        fields: name -> field, in the order of the spec; fields of groups that do not apply are absent.
        unused: HF keys of the config that give no field -> why.
        overrides: what was set beyond the config.
    """

    spec: ProviderSpec
    config: Mapping[str, Any]
    where: str
    fields: Mapping[str, ResolvedField]
    unused: Mapping[str, str]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Field -> value."""
        return {name: f.value for name, f in self.fields.items()}
