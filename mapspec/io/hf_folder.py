"""A Hugging Face checkpoint folder: which tensors it holds, where their bytes lie, and what lies beside them.

Only headers are read, and torch is not imported. Everything the folder says twice (index and headers, offsets and
shapes) is compared, because a difference means that somebody's tool or download went wrong, and a conversion would
carry the damage on.

Which safetensors files count: those the index names; without an index, all of them. An index that leaves out a file
named like its shards is a finding; other weights (`consolidated.safetensors`, `*.gguf`, `pytorch_model.bin`) are listed
in `left_out` and not read. Entries of the index must stay inside the folder by their spelling; the files themselves
may be symbolic links to anywhere, as they are in the hub's cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic, Note
from mapspec.errors import CheckpointError
from mapspec.io.json_config import read_config
from mapspec.io.opened import Stamp
from mapspec.io.remote import located
from mapspec.io.safetensors_header import Header, read_header, warm_headers
from mapspec.io.safetensors_index import INDEX_FILE, SINGLE_FILE, check_against_index, read_index
from mapspec.io.side_files import sort_files
from mapspec.nogc import gc_paused
from mapspec.tensors import StoredTensor

__all__ = ["HFCheckpoint", "open_hf"]

_SHARD = re.compile(r"(?P<stem>.*)-(?P<at>\d{5,})-of-(?P<count>\d{5,})\.safetensors")


@dataclass(frozen=True, slots=True)
class HFCheckpoint:
    """An opened folder.

    Attributes:
        root: the folder; chunks and `files` are relative to it.
        tensors: every tensor by name, in the order of files and of bytes within a file. Each has exactly one chunk.
        files: the safetensors files that were read, sorted by name.
        stamps: of each of these files, taken before its header was read.
        shard_of: file of each tensor.
        config: `config.json`, or an empty dictionary when it was not asked for.
        config_text: the text of `config.json`, whose dialect `write_config` can follow; `None` likewise.
        metadata: `__metadata__` of each file.
        side_files: what travels along with the weights, relative to the folder: tokenizer, generation config, chat
            templates, code, licence, readme. Neither `config.json` nor weights nor hidden files.
        left_out: weights in the folder that are not part of the checkpoint.
        index_metadata: `metadata` of the index, empty without one.
    """

    root: Path
    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...]
    stamps: Mapping[str, Stamp]
    shard_of: Mapping[str, str]
    config: dict[str, Any]
    config_text: str | None
    metadata: Mapping[str, Mapping[str, str]]
    side_files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    index_metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.chunks[0].nbytes for tensor in self.tensors.values())


@gc_paused()
def open_hf(path: Path | str, *, config: bool = True) -> HFCheckpoint:
    """Open a folder.

    Args:
        path: the folder with the safetensors files.
        config: whether to read `config.json`, which then must be there.

    Raises:
        CheckpointError: with everything that is wrong in the folder, not only the first thing.
    """
    root = located(path)
    if not root.is_dir():
        there = root.exists()
        raise CheckpointError(
            Diagnostic(
                "MS601",
                f"`{root.name}` is a file, not a checkpoint folder" if there else "there is no such folder",
                where=str(root),
                help="point at the folder that holds it" if there else "check the path",
            )
        )
    found: list[Diagnostic] = []
    parsed: dict[str, Any] = {}
    text: str | None = None
    if config:
        try:
            parsed = read_config(root / "config.json")
            text = (root / "config.json").read_text(encoding="utf-8-sig")
        except CheckpointError as error:
            found.extend(error.diagnostics)
    sorted_files = sort_files(root)
    found.extend(sorted_files.findings)

    index, index_metadata, problems = read_index(root, sorted_files.indexes)
    found.extend(problems)
    if problems:
        raise CheckpointError(found)
    names = _shards(root, index, sorted_files.safetensors, sorted_files.other_weights, found)

    headers: dict[str, Header] = {}
    warm_headers(root, names)
    for name in names:
        header = read_header(root / name, name)
        if isinstance(header, Header):
            headers[name] = header
        else:
            found.extend(header)
    tensors: dict[str, StoredTensor] = {}
    twice: dict[tuple[str, str], list[str]] = {}
    for name, header in headers.items():
        for tensor in header.tensors:
            first = tensors.setdefault(tensor.name, tensor)
            if first is not tensor:
                twice.setdefault((first.chunks[0].file, name), []).append(tensor.name)
    found.extend(_twice(root, first, second, repeated) for (first, second), repeated in twice.items())
    if index is not None:
        found.extend(check_against_index(root, index, headers))
    if not tensors and not found:
        found.append(
            Diagnostic(
                "MS605",
                f"no tensors in {', '.join(f'`{name}`' for name in names)}",
                where=str(root),
                help="fetch the weights again",
            )
        )
    if found:
        raise CheckpointError(found)
    kept = set(names)
    return HFCheckpoint(
        root=root,
        tensors=tensors,
        files=tuple(names),
        stamps={name: header.stamp for name, header in headers.items()},
        shard_of={name: tensor.chunks[0].file for name, tensor in tensors.items()},
        config=parsed,
        config_text=text,
        metadata={name: header.metadata for name, header in headers.items()},
        side_files=sorted_files.side_files,
        left_out=tuple(sorted({*sorted_files.safetensors, *sorted_files.other_weights} - kept)),
        index_metadata=index_metadata,
    )


def _twice(root: Path, first: str, second: str, names: Sequence[str]) -> Diagnostic:
    what = f"tensor {_some(names)} is" if len(names) == 1 else f"{len(names)} tensors ({_some(names)}) are"
    return Diagnostic(
        "MS625",
        f"{what} in `{first}` and again in `{second}`",
        where=str(root),
        help="remove the file that does not belong to this checkpoint",
    )


def _shards(
    root: Path,
    index: Mapping[str, str] | None,
    present: Sequence[str],
    other_weights: Sequence[str],
    found: list[Diagnostic],
) -> list[str]:
    """The safetensors files to read, sorted by name; what is wrong with that choice goes to `found`."""
    where = str(root)
    if index is None:
        top = sorted(name for name in present if "/" not in name)
        if not top:
            found.append(_no_weights(root, other_weights))
        found.extend(_missing_numbers(root, top))
        return top
    named = sorted(set(index.values()))
    numbered = {(m["stem"], m["count"]) for name in named if (m := _SHARD.fullmatch(name))}
    for name in present:
        if name in index.values() or "/" in name:
            continue
        shard = _SHARD.fullmatch(name)
        if shard and (shard["stem"], shard["count"]) in numbered:
            found.append(
                Diagnostic(
                    "MS626",
                    f"`{name}` is named like a shard, but `{INDEX_FILE}` does not mention it",
                    where=where,
                    help="fetch the index again; if the file is left over from something else, remove it",
                )
            )
        elif name == SINGLE_FILE:
            # transformers loads the single file and ignores the index, other readers do the opposite
            found.append(
                Diagnostic(
                    "MS627",
                    f"`{SINGLE_FILE}` stands beside an index of other files: two checkpoints in one folder",
                    where=where,
                    notes=(Note(f"the index names {_some(named)}"),),
                    help="remove the one that is out of date",
                )
            )
    there = []
    for name in named:
        if (root / name).is_file():
            there.append(name)
            continue
        link = (root / name).is_symlink()
        found.append(
            Diagnostic(
                "MS622",
                f"the index names `{name}`, which " + ("is a link to a file that is gone" if link else "is not there"),
                where=where,
                notes=(Note(f"{sum(file == name for file in index.values())} tensors should be in it"),),
                help="fetch the missing file",
            )
        )
    return there


def _missing_numbers(root: Path, names: Sequence[str]) -> list[Diagnostic]:
    """Without an index, the numbering of the shards is all that tells of a missing one."""
    series: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if shard := _SHARD.fullmatch(name):
            series.setdefault((shard["stem"], int(shard["count"])), set()).add(int(shard["at"]))
    found = []
    for (stem, count), numbers in series.items():
        start = 0 if 0 in numbers else 1
        missing = count - len(numbers)
        if missing > 0:
            first = next(n for n in range(start, start + count) if n not in numbers)
            found.append(
                Diagnostic(
                    "MS626",
                    f"{missing} of {count} shards are missing, first `{stem}-{first:05d}-of-{count:05d}.safetensors`",
                    where=str(root),
                    help="fetch the missing files",
                )
            )
    return found


def _no_weights(root: Path, other_weights: Sequence[str]) -> Diagnostic:
    where = str(root)
    torch_files = [name for name in other_weights if name.endswith((".bin", ".pt", ".pth"))]
    if torch_files:
        return Diagnostic(
            "MS606",
            f"the weights are in {_some(torch_files)}; mapspec reads safetensors files only",
            where=where,
            help="write each file again as safetensors: load it with torch.load(..., weights_only=True), "
            "then safetensors.torch.save_file(..., metadata={'format': 'pt'})",
        )
    if other_weights:
        return Diagnostic(
            "MS605",
            f"no safetensors files here, only {_some(other_weights)}",
            where=where,
            help="fetch the checkpoint in safetensors form",
        )
    return Diagnostic("MS605", "no safetensors files here", where=where, help="check the path, or fetch the weights")


def _some(names: Sequence[str]) -> str:
    """Up to three names, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
