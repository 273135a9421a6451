"""A mapping as one side of a comparison has it, with the reference models that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.diff.sides import Side, SpecFile
from mapspec.documents import looking_first_in, reference_configs
from mapspec.errors import MapspecError
from mapspec.link import Linked, link_file

__all__ = ["Version", "reference_models"]


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

    def lines(self, found: Iterable[Diagnostic]) -> list[str]:
        """Findings as lines, with places below the root."""
        return [f"{place}: {d.code} {d.message}" if (place := self.side.place(d.span)) else d.one_line() for d in found]


def reference_models(old: Version, new: Version) -> dict[str, tuple[Path | None, bool]]:
    """Reference -> the config that both sides are bound to (the head's where it has one), and whether it changed."""
    out: dict[str, tuple[Path | None, bool]] = {}
    for name in dict.fromkeys((*new.references, *old.references)):
        was, now = old.references.get(name), new.references.get(name)
        changed = was is not None and now is not None and was.read_bytes() != now.read_bytes()
        out[name] = (now or was, changed)
    return out
