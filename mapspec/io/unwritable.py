"""What to say where a file cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

from mapspec.diagnostics import Diagnostic

__all__ = ["write_problem"]


def write_problem(error: OSError, path: Path) -> Diagnostic:
    """The finding for a destination file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Diagnostic(
            "MS702",
            f"no room to write `{path.name}`: {error.strerror}",
            where=str(path),
            help="free some space or choose another destination, then convert again",
        )
    return Diagnostic(
        "MS704",
        f"`{path.name}` cannot be written: {error.strerror}",
        where=str(path),
        help="check the destination's permissions and its disk",
    )
