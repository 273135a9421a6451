"""Common state: the part of a checkpoint that is neither weight nor shard, such as the iteration and `args`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.opened import opened
from mapspec.io.torch_dist.archive import ItemError, Window, record, records
from mapspec.io.torch_dist.metadata import Slot
from mapspec.io.torch_dist.unpickle import RefusedGlobalError, UnreadablePickleError, load_common

__all__ = ["COMMON_FILE", "COMMON_OBJECT", "common_from_file", "common_from_object"]

COMMON_FILE = "common.pt"
COMMON_OBJECT = "common_state/shard_0_1"


def common_from_file(file: Path) -> dict[str, Any]:
    """Common state from `common.pt`, where megatron-core up to 0.18 keeps it."""
    return _checked(_load(file, 0, file.stat().st_size, str(file)), str(file))


def common_from_object(folder: Path, slot: Slot) -> dict[str, Any]:
    """Common state from the object that megatron-core 0.19 and later puts into the data files."""
    where = f"{folder / slot.file}, object `{COMMON_OBJECT}`"
    content = _load(folder / slot.file, slot.offset, slot.length, where)
    return _checked(content[0] if isinstance(content, list) and content else content, where)


def _load(file: Path, offset: int, length: int, where: str) -> Any:
    try:
        with opened(file) as stream:
            window = Window(lambda at, count: stream.read(offset + at, count), length)
            found = records(window)
            if "data.pkl" not in found:
                raise _unreadable(where, "is an archive without `data.pkl`")
            return load_common(record(window, found["data.pkl"]))
    except RefusedGlobalError as problem:
        raise CheckpointError(
            Diagnostic(
                "MS653",
                f"names `{problem.name}`, which is not among the names that mapspec accepts in common state",
                where=where,
                help="nothing of it was executed; give the config by other means than this checkpoint's `args`",
            )
        ) from problem
    except (ItemError, UnreadablePickleError) as problem:
        raise _unreadable(where, str(problem)) from problem
    except OSError as error:
        raise _unreadable(where, f"cannot be opened: {error.strerror or error}") from error


def _checked(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise _unreadable(where, "holds no mapping")
    return content


def _unreadable(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        Diagnostic("MS661", what, where=where, help="copy the checkpoint again, or give the config by other means")
    )
