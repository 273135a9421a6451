"""Documents -> a linked spec: includes resolved, every name in every part known to exist.

A linked spec is a flat tuple of scopes. The first is the spec itself; each include adds a scope with its own names,
its own part of the config, and prefixes on both sides. Nothing here depends on a config.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.documents import Document, PartlyReadError, check_major, find_spec, read_mapping
from mapspec.errors import SpecError
from mapspec.expr import Expr, ExprError, parse_expr
from mapspec.names import NameSyntaxError, parse_name
from mapspec.schema import v1
from mapspec.scope import Linked, Scope
from mapspec.text import Path_
from mapspec.verify_names import verify_names

__all__ = ["Linked", "Scope", "link", "link_file", "link_spec"]


def link_spec(name: str) -> Linked:
    """Find, read and link a mapping by name or path.

    Raises:
        SpecError: everything that is wrong with it, collected.
    """
    return link_file(find_spec(name))


def link_file(path: Path) -> Linked:
    """Read and link the mapping at `path`.

    Raises:
        SpecError: everything that is wrong with it; mistakes of grammar do not hide those of names elsewhere.
    """
    try:
        return link(read_mapping(path))
    except PartlyReadError as error:
        found = {*error.diagnostics, *verify_names(Scope("", error.rest), error.lost)}
        raise SpecError(sorted(found, key=Diagnostic.sort_key)) from None


def link(document: Document[v1.Mapping]) -> Linked:
    """Link a mapping with what it includes.

    Raises:
        SpecError: unknown or circular includes (MS301, MS302), wrong major version (MS306), and every name that
            does not exist or does not parse (MS2xx, MS304).
    """
    found: list[Diagnostic] = []
    scopes = tuple(_scopes(Scope("", document), (), found))
    for scope in scopes:
        found += [_included(d, scope.chain) for d in verify_names(scope)]
    found += _flavour_conflicts(scopes)
    if found:
        raise SpecError(sorted(set(found), key=Diagnostic.sort_key))
    return Linked(scopes)


def _included(finding: Diagnostic, chain: tuple[Span, ...]) -> Diagnostic:
    """The finding with where its file was included, innermost first."""
    return replace(finding, notes=(*finding.notes, *(Note("included here", at) for at in reversed(chain))))


def _scopes(scope: Scope, ancestors: tuple[Path, ...], found: list[Diagnostic]) -> Iterator[Scope]:
    """The scope and what it includes; an include that cannot be read is a finding, and its siblings are read on."""
    yield scope
    here = (*ancestors, scope.document.path)
    for name, include in scope.spec.include.items():
        span = scope.span("include", name, "mapping")
        try:
            document = _included_document(scope, name, include, here)
            child = _child(scope, name, include, document)
        except SpecError as error:
            found += [_included(d, scope.chain) for d in error.diagnostics]
            continue
        yield from _scopes(replace(child, chain=(*scope.chain, span)), here, found)


def _included_document(
    scope: Scope, name: str, include: v1.Include, here: tuple[Path, ...]
) -> Document[v1.Mapping]:  # fmt: skip
    span = scope.span("include", name, "mapping")
    reference, _, major = include.mapping.partition("@")
    path = find_spec(reference, near=Path(span.path).parent, span=span)  # relative to the file that says it
    if path.resolve() in {p.resolve() for p in here}:
        ring = " -> ".join(p.name for p in (*here, path))
        raise SpecError(Diagnostic("MS302", f"`include` runs in a circle: {ring}", span))
    try:
        document = read_mapping(path)
    except SpecError as error:
        raise SpecError([d.with_note("included here", span) for d in error.diagnostics]) from None
    check_major(document.tree, major, include.mapping, span)
    return document


def _child(scope: Scope, name: str, include: v1.Include, document: Document[v1.Mapping]) -> Scope:
    at = ("include", name)
    found: list[Diagnostic] = []
    condition: tuple[tuple[Scope, Expr, Span], ...] = ()
    if include.when is not None:
        try:
            span = scope.span(*at, "when")
            condition = ((scope, parse_expr(include.when), span),)
        except ExprError:
            pass  # `verify_names` says so
    _prefixes(scope, include, at, found)
    for mount, remount in include.remount.items():
        path = (*at, "remount", mount)
        known = document.model.mounts
        if mount not in known:
            message = f"`{include.mapping}` has no mount `{mount}`"
            help_ = f"it has: {', '.join(known)}"
            found.append(
                Diagnostic("MS304", message, scope.span(*path, of_key=True), hint=nearest(mount, known), help=help_)
            )
        _prefixes(scope, remount, path, found)
    parts = []
    for config in include.config:
        head, *part = config.split(".")
        parts.append(tuple(part))
        if head != "hf" or not all(key.isidentifier() for key in part):
            span = scope.span(*at, "config")
            message = f"`{config}` is no part of the config"
            found.append(Diagnostic("MS104", message, span, help="for example hf.llm_config"))
    if found:
        raise SpecError(found)
    return Scope(
        id=f"{scope.id}.{name}".lstrip("."),
        document=document,
        configs=tuple((*outer, *part) for outer in scope.configs for part in parts),
        config_span=scope.span(*at, "config") if any(parts) else scope.config_span,
        parent=scope,
        include=include,
        conditions=(*scope.conditions, *condition),
    )


def _prefixes(scope: Scope, part: v1.Include | v1.Remount, at: Path_, found: list[Diagnostic]) -> None:
    """What is wrong with the prefixes of an include: they are plain names, because axes belong to the scopes."""
    spellings = [(part, at), *((s, (*at, "flavours", choice)) for choice, s in part.flavours.items())]
    for spelling, path in spellings:
        for side in ("megatron", "hf"):
            text = getattr(spelling, side)
            try:
                if text is not None and parse_name(text).occurrences:
                    raise NameSyntaxError("the prefix of an include has no holes", 0)
            except NameSyntaxError as error:
                found.append(Diagnostic("MS201", f"name `{text}`: {error}", scope.span(*path, side)))


def _flavour_conflicts(scopes: tuple[Scope, ...]) -> Iterator[Diagnostic]:
    first: dict[str, Scope] = {}
    for scope in scopes:
        for name, flavour in scope.spec.flavours.items():
            other = first.setdefault(name, scope)
            if set(other.spec.flavours[name].choices) != set(flavour.choices):
                note = Note("the other is declared here", other.span("flavours", name, of_key=True))
                message = f"flavour `{name}` has other choices than the one of that name that it is shared with"
                help_ = (
                    "flavours of equal names are one switch: give one of them another name, or both the same choices"
                )
                span = scope.span("flavours", name, of_key=True)
                yield _included(Diagnostic("MS207", message, span, notes=(note,), help=help_), scope.chain)
