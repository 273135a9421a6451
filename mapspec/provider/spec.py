"""Provider specs: read with what they include, checked, and chosen by architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapspec.choose import listed_architectures
from mapspec.diagnostics import Diagnostic
from mapspec.documents import Document, check_major, find_spec, read_document
from mapspec.errors import SpecError
from mapspec.expr import ExprError, parse_expr
from mapspec.provider.declared import Entry, ProviderSpec, Scope
from mapspec.provider.spec_check import mistakes
from mapspec.schema import provider_v1 as v1
from mapspec.text import read_yaml

__all__ = ["Entry", "ProviderSpec", "Scope", "choose_provider", "read_provider"]


def read_provider(name: str | Path) -> ProviderSpec:
    """Read the provider spec of that name or path, with what it includes.

    Raises:
        SpecError: it is not found, or has mistakes of text, schema or names (MS428), all collected.
    """
    spec = _read(name if isinstance(name, Path) else find_spec(name, "providers"), ())
    found = list(mistakes(spec))
    if found:
        raise SpecError(sorted(found, key=Diagnostic.sort_key))
    return spec


def _read(path: Path, chain: tuple[Path, ...]) -> ProviderSpec:
    return with_included(read_document(path, v1.Provider), chain)


def with_included(document: Document[v1.Provider], chain: tuple[Path, ...] = ()) -> ProviderSpec:
    """The spec of a document, with what it includes; its names are not checked.

    Raises:
        SpecError: an include is not found, runs in a circle, or does not read.
    """
    path = document.path
    included = {}
    for name, include in document.model.include.items():
        span = document.tree.span(("include", name, "provider"))
        wanted, _, major = include.provider.partition("@")
        inner = find_spec(wanted, "providers", near=Path(span.path).parent, span=span)
        if inner.resolve() in {p.resolve() for p in (*chain, path)}:
            ring = " -> ".join(p.name for p in (*chain, path, inner))
            raise SpecError(Diagnostic("MS302", f"`include` runs in a circle: {ring}", span))
        try:
            included[name] = _read(inner, (*chain, path))
        except SpecError as error:
            raise SpecError([d.with_note("included here", span) for d in error.diagnostics]) from None
        check_major(included[name].document.tree, major, include.provider, span)
    return ProviderSpec(document, included)


def choose_provider(config: Mapping[str, Any], *, where: str) -> ProviderSpec:
    """The provider spec that lists the config's architecture, and applies to the config.

    Raises:
        SpecError: MS409 where none or several do.
    """
    wanted = {str(a) for a in config.get("architectures") or ()}
    listed = listed_architectures("providers", wanted)
    fitting = sorted({name for architecture in wanted for name in listed.get(architecture, ())})
    if len(fitting) > 1:
        fitting = [name for name in fitting if _applies(name, config)]
    if len(fitting) == 1:
        return read_provider(fitting[0])
    every = sorted({name for names in listed_architectures("providers").values() for name in names})
    shown = ", ".join(f"`{a}`" for a in sorted(wanted)) or "no architecture"
    message = (
        f"{'several provider specs list' if fitting else 'no provider spec lists'} {shown}, which the config names"
    )
    help_ = f"name one of: {', '.join(fitting or every)}"
    raise SpecError(Diagnostic("MS409", message, where=where, help=help_))


def _applies(name: str, config: Mapping[str, Any]) -> bool:
    text = read_yaml(find_spec(name, "providers")).data.get("applies")
    if not isinstance(text, str):
        return True
    try:
        return bool(parse_expr(text)(config, lambda _: None))
    except ExprError:
        return False
