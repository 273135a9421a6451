"""Standard output and standard error, which may be a closed pipe, a log on a full disk, or not there at all."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

import typer

__all__ = ["cannot_print", "complain", "empty_buffers"]

_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def complain(text: str) -> None:
    """Print to standard error, if that can be."""
    with suppress(OSError):
        typer.echo(text, err=True)


def cannot_print(error: OSError) -> bool:
    """Whether that is how a result could not be printed; errors of files that were opened by name have the name."""
    return error.filename is None and error.errno in _NO_PLACE


def empty_buffers() -> None:
    """Write what waits to be written, or drop it: else Python tries to as it ends, and its exit code is 120."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):  # as files that were closed raise it
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
