"""The command line: arguments -> calls -> a renderer -> an exit code. No logic of its own.

Results go to stdout; progress and findings that stop a command go to stderr. Exit codes: 0 done, 1 findings,
2 cannot start, 3 bug in mapspec, 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import tempfile
import traceback
from typing import NoReturn

# In the order in which --help lists their commands.
from mapspec.cli import checkpoints, specs, authoring, review  # isort: skip
from mapspec.cli.app import app
from mapspec.cli.streams import cannot_print, complain, empty_buffers
from mapspec.cli.unfinished import say
from mapspec.errors import MapspecError

__all__ = ["app", "authoring", "checkpoints", "main", "review", "specs"]


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    _start_swiftly()
    try:
        sys.exit(_run())
    finally:
        empty_buffers()


def _run() -> int:
    try:
        app()
    except MapspecError as error:
        say(error)
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted; nothing was published")
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if isinstance(error, OSError) and cannot_print(error):
            complain(f"the result could not be printed: {error.strerror}")
            return 2
        with tempfile.NamedTemporaryFile("w", prefix="mapspec-", suffix=".log", delete=False) as log:
            log.write(traceback.format_exc())
        complain(f"this is a bug in mapspec; please report it with the log {log.name}")
        return 3
    return 0


def _start_swiftly() -> None:
    """Do without what takes a tenth of a second or more of every command and serves none."""
    gc.set_threshold(500_000, 20, 20)  # imports and plans make many objects that stay, looked at after every 700
    atexit.register(gc.freeze)  # else all objects are looked at several times more as the process ends
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else every installed package is searched for some
