"""Specs as one side of a comparison has them, with the reference models that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.diff.sides import Side, SpecFile
from mapspec.documents import looking_first_in, reference_configs
from mapspec.errors import MapspecError
from mapspec.expr import parse_expr
from mapspec.link import Linked, link_file
from mapspec.lint import expressions
from mapspec.provider.spec import ProviderSpec, read_provider

__all__ = ["ProviderVersion", "Version", "files_of", "reference_models"]


@dataclass(frozen=True)
class Version:
    """A mapping on one side: linked, or the findings why not."""

    side: Side
    file: SpecFile
    linked: Linked | None
    findings: tuple[Diagnostic, ...] = ()

    @staticmethod
    def load(side: Side, file: SpecFile) -> Version:
        """Read and link it, with names meaning the specs of its own side."""
        try:
            with looking_first_in(side.folders()):
                return Version(side, file, link_file(file.path))
        except MapspecError as error:
            return Version(side, file, None, error.diagnostics)

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """Every file that takes part, by its path below the root."""
        paths = {self.file.path}
        for scope in self.linked.scopes if self.linked else ():
            paths |= {scope.document.path, *scope.document.parents}
        return {self.side.relative(p): p.read_text(encoding="utf-8", errors="replace") for p in sorted(paths)}

    @cached_property
    def references(self) -> Mapping[str, Path | None]:
        """Reference models with their configs."""
        found = reference_configs(self.linked.top.document) if self.linked else ()
        return {name: file if isinstance(file, Path) else None for name, file in found}

    @property
    def version(self) -> str | None:
        return self.linked.top.spec.metadata.version if self.linked else None


@dataclass(frozen=True)
class ProviderVersion:
    """A provider spec on one side, or the findings why it cannot be read. `mapping`: the mapping that goes with it."""

    side: Side
    file: SpecFile
    spec: ProviderSpec | None
    findings: tuple[Diagnostic, ...] = ()

    @staticmethod
    def load(side: Side, file: SpecFile) -> ProviderVersion:
        """Read it, with names meaning the specs of its own side."""
        try:
            with looking_first_in(side.folders()):
                return ProviderVersion(side, file, read_provider(file.path))
        except MapspecError as error:
            return ProviderVersion(side, file, None, error.diagnostics)

    @property
    def version(self) -> str | None:
        return self.spec.model.metadata.version if self.spec else None

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Every file that takes part, this spec's own first."""
        return (self.file.path,) if self.spec is None else tuple(dict.fromkeys(files_of(self.spec)))

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """Their texts, by path below the root."""
        return {self.side.relative(p): p.read_text(encoding="utf-8", errors="replace") for p in self.files}

    @cached_property
    def references(self) -> Mapping[str, Path | None]:
        """Reference models with their configs."""
        found = () if self.spec is None else reference_configs(self.spec.document)
        return {name: path if isinstance(path, Path) else None for name, path in found}

    @cached_property
    def shape_keys(self) -> frozenset[str]:
        """HF keys from which the mapping of the same models computes shapes, or which tensors there are."""
        if self.spec is None:
            return frozenset()
        name = self.spec.model.metadata.mapping.partition("@")[0]
        file = self.side.specs.get(("mapping", name.rpartition("/")[2]))
        linked = None if file is None else Version.load(self.side, file).linked
        return frozenset(
            ".".join((*part, key))
            for scope in (linked.scopes if linked else ())
            for path, text in expressions(scope.spec)
            if path[0] != "roles"
            for key in parse_expr(text).keys
            for part in scope.configs
        )


def files_of(spec: ProviderSpec) -> Iterator[Path]:
    """The files of a provider spec: its own first, then those that it extends, then those that it includes."""
    yield spec.document.path
    yield from spec.document.parents
    for inner in spec.included.values():
        yield from files_of(inner)


def reference_models(old: Version, new: Version) -> dict[str, tuple[Path | None, bool]]:
    """Reference -> the config that both sides are bound to (the head's where it has one), and whether it changed."""
    out: dict[str, tuple[Path | None, bool]] = {}
    for name in dict.fromkeys((*new.references, *old.references)):
        was, now = old.references.get(name), new.references.get(name)
        changed = was is not None and now is not None and was.read_bytes() != now.read_bytes()
        out[name] = (now or was, changed)
    return out
