"""The folder around a Megatron-Core checkpoint: which iteration is meant, and the small files that name it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError

__all__ = [
    "METADATA",
    "TRACKER",
    "CheckpointFolder",
    "common_state_for_weights",
    "find_folder",
    "is_torch_dist",
    "iteration_folder",
    "metadata_json",
    "tracker_text",
]

METADATA = ".metadata"
TRACKER = "latest_checkpointed_iteration.txt"

_RELEASE = "release"
_ITERATION = re.compile(r"iter_(\d+)")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """The folder with `.metadata`, and its iteration: `None` for `release` and for folders with other names."""

    path: Path
    iteration: int | None


def iteration_folder(iteration: int | None) -> str:
    """Name of the folder of an iteration below the checkpoint's root; `None` stands for `release`."""
    return _RELEASE if iteration is None else f"iter_{iteration:07d}"


def tracker_text(iteration: int | None) -> bytes:
    """Content of `latest_checkpointed_iteration.txt`. Megatron-LM before 0.13 wants a number above 0 or `release`."""
    return (_RELEASE if iteration is None else str(iteration)).encode()


def metadata_json() -> bytes:
    """Content of `metadata.json`.

    Readers up to megatron-core 0.18 know the `common_*` fields, later ones skip them.
    """
    fields = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    return json.dumps(fields).encode()


def common_state_for_weights(iteration: int = 0, *, args: object = None) -> dict[str, object]:
    """Common state of a checkpoint that holds weights only.

    `content_metadata` is what Megatron-Bridge writes. `args` (an `argparse.Namespace`) is what Megatron-LM
    writes and, for hybrid models, asks for; Megatron-Bridge writes none.
    """
    state: dict[str, object] = {
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    return state if args is None else {"args": args, **state}


def is_torch_dist(path: Path) -> bool:
    """Whether the folder looks like a Megatron-Core checkpoint or the root of some."""
    return (path / METADATA).is_file() or (path / TRACKER).is_file() or bool(_below(path))


def find_folder(root: Path) -> CheckpointFolder:
    """The folder with `.metadata` that `root` means: itself, or the iteration that the tracker file names."""
    if (root / METADATA).is_file():
        found = _ITERATION.fullmatch(root.resolve().name)
        return _checked(CheckpointFolder(root, int(found[1]) if found else None))
    if (root / TRACKER).is_file():
        return _tracked(root)
    below = _below(root)
    if len(below) > 1:
        raise CheckpointError(
            Diagnostic(
                "MS651",
                f"several iterations and no `{TRACKER}`: {', '.join(below)}",
                where=str(root),
                help=f"give one of them, for example {root / list(below)[-1]}",
            )
        )
    if not below:
        raise CheckpointError(
            Diagnostic(
                "MS650",
                f"neither `{METADATA}` nor an `iter_*` folder with one",
                where=str(root),
                help="give the folder of an iteration, or the folder above it",
            )
        )
    name, iteration = next(iter(below.items()))
    return _checked(CheckpointFolder(root / name, iteration))


def _tracked(root: Path) -> CheckpointFolder:
    text = (root / TRACKER).read_bytes()[:64].decode("utf-8", "replace").strip()
    if text != _RELEASE and not (text.isascii() and text.isdigit()):
        raise CheckpointError(
            Diagnostic(
                "MS650",
                f"the file says `{text}`",
                where=str(root / TRACKER),
                help="it should say a number or `release`; or give the folder of an iteration",
            )
        )
    iteration = None if text == _RELEASE else int(text)
    folder = root / iteration_folder(iteration)
    if not (folder / METADATA).is_file():
        raise CheckpointError(
            Diagnostic(
                "MS650",
                f"the file says `{text}`, but there is no {folder.name}/{METADATA}",
                where=str(root / TRACKER),
                help=f"there are: {', '.join(_below(root)) or 'no iterations at all'}",
            )
        )
    return _checked(CheckpointFolder(folder, iteration))


def _below(root: Path) -> Mapping[str, int | None]:
    if not root.is_dir():
        return {}
    found: dict[str, int | None] = {}
    for entry in sorted(root.iterdir()):
        match = _ITERATION.fullmatch(entry.name)
        if (match or entry.name == _RELEASE) and (entry / METADATA).is_file():
            found[entry.name] = int(match[1]) if match else None
    return found


def _checked(folder: CheckpointFolder) -> CheckpointFolder:
    # Plain torch checkpoints have no metadata.json; where there is one, it names the format.
    file = folder.path / "metadata.json"
    try:
        fields = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        fields = None
    backend = fields.get("sharded_backend", "torch_dist") if isinstance(fields, dict) else None
    if backend != "torch_dist":
        what = f"names the format `{backend}`" if backend else "is not the JSON object that megatron-core writes"
        raise CheckpointError(
            Diagnostic(
                "MS662",
                f"the file {what}; mapspec reads `torch_dist`",
                where=str(file),
                help="save the checkpoint with `--ckpt-format torch_dist`",
            )
        )
    return folder
