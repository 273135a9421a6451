"""The index of a sharded safetensors checkpoint: which file holds which tensor, as the folder claims it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mapspec.diagnostics import Diagnostic, Note
from mapspec.errors import CheckpointError
from mapspec.io.json_config import read_config
from mapspec.io.safetensors_header import Header

__all__ = ["INDEX_FILE", "SINGLE_FILE", "check_against_index", "read_index"]

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_FETCH_INDEX = "fetch the index again, or write it anew from the headers of the files"


def read_index(
    root: Path, indexes: Sequence[str]
) -> tuple[Mapping[str, str] | None, Mapping[str, Any], list[Diagnostic]]:
    """Read the folder's index.

    Args:
        root: the folder.
        indexes: the `*.safetensors.index.json` files in it. The standard one is taken; another only if it is alone.

    Returns:
        The file of each tensor (`None` without an index), the index's own metadata, and what is wrong with it.
    """
    if not indexes:
        return None, {}, []
    if INDEX_FILE in indexes:
        name = INDEX_FILE
    elif len(indexes) == 1:
        name = indexes[0]
    else:
        listed = ", ".join(f"`{index}`" for index in indexes)
        finding = Diagnostic(
            "MS627",
            f"several indexes and none is `{INDEX_FILE}`: {listed}",
            where=str(root),
            help="put the variant to convert into a folder of its own",
        )
        return None, {}, [finding]
    where = str(root / name)
    try:
        parsed = read_config(root / name)
    except CheckpointError as error:
        found = [
            Diagnostic(
                "MS620",
                f"index `{name}`: {finding.message}",
                span=finding.span,
                where=finding.where,
                help=_FETCH_INDEX,
            )
            for finding in error.diagnostics
        ]
        return None, {}, found
    weight_map, metadata = parsed.get("weight_map"), parsed.get("metadata") or {}
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        message = f"index `{name}` has no `weight_map` from tensor names to file names"
        return None, {}, [Diagnostic("MS620", message, where=where, help=_FETCH_INDEX)]
    if not weight_map:
        return None, {}, [Diagnostic("MS620", f"index `{name}` names no tensor", where=where, help=_FETCH_INDEX)]
    outside = [file for file in sorted(set(weight_map.values())) if not _inside(file)]
    problems = [
        Diagnostic(
            "MS621",
            f"the index names {file!r}, which is not a file inside the folder",
            where=where,
            help="do not use this checkpoint unless you know who wrote the index",
        )
        for file in outside
    ]
    return weight_map, metadata if isinstance(metadata, dict) else {}, problems


def _inside(file: str) -> bool:
    """Whether the name, read as it is spelled, is a path below the folder."""
    path = PurePosixPath(file)
    return bool(
        file
        and "\0" not in file
        and "\\" not in file
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path) == file
        and path.suffix == ".safetensors"
    )


def check_against_index(root: Path, index: Mapping[str, str], headers: Mapping[str, Header]) -> list[Diagnostic]:
    """Findings where index and headers disagree, one per file and kind, since it is rarely one tensor alone.

    Files without a readable header are left out: what is wrong with them has been said.
    """
    claimed: dict[str, set[str]] = {}
    for tensor, file in index.items():
        claimed.setdefault(file, set()).add(tensor)
    found: list[Diagnostic] = []
    for file, header in headers.items():
        held = {tensor.name for tensor in header.tensors}
        for code, names, text in (
            ("MS623", claimed[file] - held, "the index places {} in `{}`, which does not hold {}"),
            ("MS624", held - claimed[file], "{} in `{}`, but the index does not say {}"),
        ):
            if not names:
                continue
            listed = sorted(names)
            what = f"tensor `{listed[0]}`" if len(listed) == 1 else f"{len(listed)} tensors"
            if code == "MS624":
                what += " is" if len(listed) == 1 else " are"
            pronoun = "so" if code == "MS624" else "it" if len(listed) == 1 else "them"
            notes = [Note(f"`{name}`") for name in listed[:5]] if len(listed) > 1 else []
            if code == "MS624":
                notes += [Note(f"the index places `{n}` in `{index[n]}`") for n in listed[:5] if n in index]
            found.append(
                Diagnostic(
                    code,
                    text.format(what, file, pronoun),
                    where=str(root),
                    notes=tuple(notes),
                    help="fetch index and files of the same revision again",
                )
            )
    return found
