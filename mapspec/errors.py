"""The exceptions of mapspec, and the exit code of each.

Everything a user can cause is a `Diagnostic` (see `mapspec.diagnostics`); an exception carries them up to the
command line, which prints them and leaves with the exception's exit code. Anything else is a bug in mapspec.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from mapspec.diagnostics import Diagnostic

__all__ = ["CheckpointError", "ConvertError", "DiffError", "MapspecError", "PlanError", "SpecError", "VerifyError"]


class MapspecError(Exception):
    """Base of all errors that a user can cause. `diagnostics` says what, where and what to do."""

    exit_code: ClassVar[int] = 2

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        from mapspec.diagnostics import Diagnostic

        found: Sequence[Diagnostic] = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        assert found, "an error needs at least one diagnostic"
        self.diagnostics: tuple[Diagnostic, ...] = tuple(found)
        super().__init__("\n".join(d.one_line() for d in self.diagnostics))

    def __reduce__(self) -> tuple[object, ...]:
        """Errors of worker processes are pickled."""
        return type(self), (self.diagnostics,), self.__dict__


class SpecError(MapspecError):
    """A spec, or its binding to a config, is wrong. Nothing was read or written beyond that."""


class CheckpointError(MapspecError):
    """A checkpoint folder or one of its files is not what it claims to be."""


class PlanError(MapspecError):
    """The checkpoint and the spec do not cover each other."""

    exit_code = 1


class ConvertError(MapspecError):
    """The conversion stopped; the destination was not published."""


class VerifyError(MapspecError):
    """Two checkpoints differ."""

    exit_code = 1


class DiffError(MapspecError):
    """Two revisions of specs cannot be compared: one of them cannot be had."""
