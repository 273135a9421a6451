"""A mapping in its place: what linking makes, and what every later stage reads names, prefixes and places from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mapspec.diagnostics import Span
from mapspec.documents import Document
from mapspec.expr import Expr, parse_expr
from mapspec.names import Pattern, join, parse_name
from mapspec.schema import v1

__all__ = ["Linked", "Scope", "spelled"]


@dataclass(frozen=True)
class Scope:
    """One mapping in its place.

    Attributes:
        id: dotted names of the includes that lead here; empty for the spec itself.
        document: the mapping.
        configs: keys below the top of the config that `hf` means here; of several, the first that is present.
        config_span: where that part of the config was chosen.
        parent, include: the scope that includes this one, and how; `None` for the spec itself.
        conditions: what has to hold for the scope to exist, each with the scope it is computed in.
        chain: where the scope was included, outermost first.
    """

    id: str
    document: Document[v1.Mapping]
    configs: tuple[tuple[str, ...], ...] = ((),)
    config_span: Span | None = None
    parent: Scope | None = None
    include: v1.Include | None = None
    conditions: tuple[tuple[Scope, Expr, Span], ...] = ()
    chain: tuple[Span, ...] = ()

    @property
    def spec(self) -> v1.Mapping:
        """The mapping's document model."""
        return self.document.model

    def span(self, *path: str | int, of_key: bool = False) -> Span:
        """Where the part of the document at `path` is written."""
        return self.document.tree.span(path, of_key=of_key)

    def active(self, flavours: Mapping[str, str]) -> frozenset[str]:
        """Choices of this scope's own flavours: another scope's may have the names of this one's choices."""
        return frozenset(choice for name, choice in flavours.items() if name in self.spec.flavours)

    def prefix(self, side: Literal["megatron", "hf"], flavours: Mapping[str, str], mount: str | None = None) -> Pattern:
        """What all names of the scope begin with, or those of one of its mounts.

        Args:
            side: whose names.
            flavours: the choice of every flavour; includes spell their prefixes by those of the including scope.
            mount: a mount, which `remount` may have moved.
        """
        if self.parent is None or self.include is None:
            return Pattern(())
        active = self.parent.active(flavours)
        moved = self.include.remount.get(mount) if mount is not None else None
        text = None if moved is None else spelled(moved, side, active)
        if text is None:
            text = spelled(self.include, side, active) or ""
        return join(self.parent.prefix(side, flavours), parse_name(text))

    def expr(self, text: str) -> Expr:
        """A parsed expression of this scope; `verify_names` has shown that it parses."""
        return parse_expr(text)


def spelled(
    part: v1.Mount | v1.Include | v1.Remount, side: Literal["megatron", "hf", "stored"], active: frozenset[str]
) -> str | None:
    """The prefix on a side under the active choices."""
    own = getattr(part, side, None)
    return next((t for c, s in part.flavours.items() if c in active and (t := getattr(s, side, None)) is not None), own)


@dataclass(frozen=True)
class Linked:
    """A spec with everything it includes."""

    scopes: tuple[Scope, ...]

    @property
    def top(self) -> Scope:
        """The spec itself."""
        return self.scopes[0]

    @property
    def name(self) -> str:
        """`name@version` of the spec itself."""
        metadata = self.top.spec.metadata
        return f"{metadata.name}@{metadata.version}"

    def flavours(self) -> dict[str, v1.Flavour]:
        """All flavours, by name; scopes share those with equal names."""
        found: dict[str, v1.Flavour] = {}
        for scope in reversed(self.scopes):
            found.update(scope.spec.flavours)
        return found
