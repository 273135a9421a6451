"""Documents -> a linked spec: includes resolved, every name in every part known to exist.

A linked spec is a flat tuple of scopes. The first is the spec itself; each include adds a scope with its own names,
its own part of the config, and prefixes on both sides. Nothing here depends on a config.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.documents import Document, check_major, find_spec, read_mapping
from mapspec.errors import SpecError
from mapspec.expr import Expr, ExprError, parse_expr
from mapspec.names import NameSyntaxError, Pattern, join, parse_name
from mapspec.schema import v1

__all__ = ["Linked", "Scope", "link", "link_spec"]


@dataclass(frozen=True)
class Scope:
    """One mapping in its place.

    Attributes:
        id: dotted names of the includes that lead here; empty for the spec itself.
        document: the mapping.
        config: keys below the top of the config that `hf` means here.
        megatron, hf: prefixes of all names.
        remount: mounts whose names have another prefix than the scope's, as (megatron, hf); `None` keeps it.
        conditions: what has to hold for the scope to exist, each with the scope it is computed in.
        chain: where the scope was included, outermost first.
    """

    id: str
    document: Document[v1.Mapping]
    config: tuple[str, ...] = ()
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


def link_spec(name: str) -> Linked:
    """Find, read and link a mapping by name or path.

    Raises:
        SpecError: everything that is wrong with it, collected.
    """
    return link(read_mapping(find_spec(name)))


def link(document: Document[v1.Mapping]) -> Linked:
    """Link a mapping with what it includes.

    Raises:
        SpecError: unknown or circular includes (MS301, MS302), wrong major version (MS306), and every name that
            does not exist or does not parse (MS2xx, MS304).
    """
    from mapspec.verify_names import verify_names

    scopes = tuple(_scopes(Scope("", document), ()))
    found = [finding for scope in scopes for finding in verify_names(scope)]
    found += _flavour_conflicts(scopes)
    if found:
        raise SpecError(sorted(set(found), key=Diagnostic.sort_key))
    return Linked(scopes)


def _scopes(scope: Scope, ancestors: tuple[Path, ...]) -> Iterator[Scope]:
    yield scope
    here = scope.document.path
    for name, include in scope.spec.include.items():
        span = scope.span("include", name, "mapping")
        reference, _, major = include.mapping.partition("@")
        path = find_spec(reference, near=here.parent, span=span)
        if path.resolve() in {p.resolve() for p in (*ancestors, here)}:
            ring = " -> ".join(str(p) for p in (*ancestors, here, path))
            raise SpecError(Diagnostic("MS302", f"`include` runs in a circle: {ring}", span))
        document = read_mapping(path)
        check_major(document.tree, major, include.mapping, span)
        condition: tuple[tuple[Scope, Expr, Span], ...] = ()
        if include.when is not None:
            at = scope.span("include", name, "when")
            condition = ((scope, _parse(scope, include.when, at), at),)
        part = _config_part(include.config, scope.span("include", name, "config"))
        child = Scope(
            id=f"{scope.id}.{name}".lstrip("."),
            document=document,
            config=(*scope.config, *part),
            megatron=join(scope.megatron, _name(include.megatron, scope.span("include", name, "megatron"))),
            hf=join(scope.hf, _name(include.hf, scope.span("include", name, "hf"))),
            remount=_remounts(scope, name, include, document),
            conditions=(*scope.conditions, *condition),
            chain=(*scope.chain, span),
        )
        yield from _scopes(child, (*ancestors, here))


def _remounts(
    scope: Scope, name: str, include: v1.Include, document: Document[v1.Mapping]
) -> dict[str, tuple[Pattern | None, Pattern | None]]:
    out: dict[str, tuple[Pattern | None, Pattern | None]] = {}
    for mount, spelling in include.remount.items():
        if mount not in document.model.mounts:
            known = document.model.mounts
            message = f"`{include.mapping}` has no mount `{mount}`"
            span = scope.span("include", name, "remount", mount, of_key=True)
            help_ = f"it has: {', '.join(known)}"
            raise SpecError(Diagnostic("MS304", message, span, hint=nearest(mount, known), help=help_))
        at = ("include", name, "remount", mount)
        megatron = None if spelling.megatron is None else _name(spelling.megatron, scope.span(*at, "megatron"))
        hf = None if spelling.hf is None else _name(spelling.hf, scope.span(*at, "hf"))
        out[mount] = (
            None if megatron is None else join(scope.megatron, megatron),
            None if hf is None else join(scope.hf, hf),
        )
    return out


def _config_part(text: str, span: Span) -> tuple[str, ...]:
    head, *rest = text.split(".")
    if head != "hf" or not all(part.isidentifier() for part in rest):
        raise SpecError(
            Diagnostic("MS104", f"`{text}` is no part of the config", span, help="for example hf.llm_config")
        )
    return tuple(rest)


def _name(text: str, span: Span) -> Pattern:
    try:
        return parse_name(text)
    except NameSyntaxError as error:
        raise SpecError(Diagnostic("MS201", f"name `{text}`: {error}", span)) from None


def _parse(scope: Scope, text: str, span: Span) -> Expr:
    try:
        return parse_expr(text)
    except ExprError as error:
        raise SpecError(Diagnostic("MS206", f"`{text}`: {error}", span)) from None


def _flavour_conflicts(scopes: tuple[Scope, ...]) -> Iterator[Diagnostic]:
    first: dict[str, Scope] = {}
    for scope in scopes:
        for name, flavour in scope.spec.flavours.items():
            other = first.setdefault(name, scope)
            if set(other.spec.flavours[name].choices) != set(flavour.choices):
                note = Note("the other is declared here", other.span("flavours", name, of_key=True))
                message = f"flavour `{name}` has other choices than the included one of that name"
                yield Diagnostic("MS207", message, scope.span("flavours", name, of_key=True), notes=(note,))
