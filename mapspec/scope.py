"""A mapping in its place: what linking makes, and what every later stage reads names, prefixes and places from."""

from __future__ import annotations

from dataclasses import dataclass, field

from mapspec.diagnostics import Span
from mapspec.documents import Document
from mapspec.expr import Expr, parse_expr
from mapspec.names import Pattern
from mapspec.schema import v1

__all__ = ["Linked", "Scope"]


@dataclass(frozen=True)
class Scope:
    """One mapping in its place.

    Attributes:
        id: dotted names of the includes that lead here; empty for the spec itself.
        document: the mapping.
        config: keys below the top of the config that `hf` means here.
        config_span: where that part of the config was chosen.
        megatron, hf: prefixes of all names.
        remount: mounts whose names have another prefix than the scope's, as (megatron, hf); `None` keeps it.
        conditions: what has to hold for the scope to exist, each with the scope it is computed in.
        chain: where the scope was included, outermost first.
    """

    id: str
    document: Document[v1.Mapping]
    config: tuple[str, ...] = ()
    config_span: Span | None = None
    megatron: Pattern = field(default_factory=lambda: Pattern(()))
    hf: Pattern = field(default_factory=lambda: Pattern(()))
    remount: dict[str, tuple[Pattern | None, Pattern | None]] = field(default_factory=dict)
    conditions: tuple[tuple[Scope, Expr, Span], ...] = ()
    chain: tuple[Span, ...] = ()

    @property
    def spec(self) -> v1.Mapping:
        """The mapping's document model."""
        return self.document.model

    def span(self, *path: str | int, of_key: bool = False) -> Span:
        """Where the part of the document at `path` is written."""
        return self.document.tree.span(path, of_key=of_key)

    def expr(self, text: str) -> Expr:
        """A parsed expression of this scope; `verify_names` has shown that it parses."""
        return parse_expr(text)


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
