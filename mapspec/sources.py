"""Opening a checkpoint of either kind as one thing: tensors, the config that explains them, and what travels along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.io.hf_folder import HFCheckpoint, open_hf
from mapspec.io.identity import identify
from mapspec.io.json_config import read_config
from mapspec.io.opened import Stamp
from mapspec.io.remote import located
from mapspec.io.remote_code import follow_code
from mapspec.io.safetensors_header import Header, read_header
from mapspec.io.safetensors_index import INDEX_FILE
from mapspec.io.side_files import sort_files
from mapspec.io.torch_dist import METADATA, is_torch_dist, open_torch_dist
from mapspec.tensors import StoredTensor

__all__ = [
    "CARRIED",
    "MANIFEST",
    "Kind",
    "Reference",
    "Source",
    "identity_of",
    "is_model_key",
    "open_reference",
    "open_source",
    "source_kind",
]

type Kind = Literal["hf", "megatron"]

CARRIED = "hf"
"""Folder within a converted Megatron checkpoint that keeps what Hugging Face needs back: config, tokenizer, index."""

MANIFEST = "mapspec.json"
"""What was done, beside every output."""

PASSTHROUGH = "passthrough.safetensors"


@dataclass(frozen=True, slots=True)
class Reference:
    """The Hugging Face side that a checkpoint came from or shall look like.

    Attributes:
        where: for messages.
        config, config_text: contents of config.json; its text keeps the dialect.
        root, files: side files to carry along, relative to `root`.
        shard_of: file of each tensor, where known.
        passthrough: tensors that only the Hugging Face side has, by name; chunk files relative to `root`.
        missing: what code files among `files` need and is not there, one sentence each.
    """

    where: str
    config: dict[str, Any]
    config_text: str | None
    root: Path | None = None
    files: tuple[str, ...] = ()
    shard_of: Mapping[str, str] = field(default_factory=dict)
    passthrough: Mapping[str, StoredTensor] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """An opened checkpoint.

    Attributes:
        kind: `hf` or `megatron`.
        path: what the user named.
        root: folder that the chunks' files are relative to.
        stamps: of each file that holds tensors, taken before its headers were read; see `mapspec.io.opened.changed`.
        tensors: by name; for Megatron without optimizer state.
        left_out: Megatron keys that were not looked at.
        reference: its own Hugging Face side; for Megatron what conversion carried along, or `None`.
        manifest: `mapspec.json`, if mapspec wrote the checkpoint.
        run_config: `run_config.yaml` of a Megatron checkpoint.
    """

    kind: Kind
    path: Path
    root: Path
    stamps: Mapping[str, Stamp]
    tensors: Mapping[str, StoredTensor]
    left_out: tuple[str, ...]
    reference: Reference | None
    manifest: Mapping[str, Any] | None
    run_config: Mapping[str, Any] | None = None


def source_kind(path: Path) -> Kind:
    """Which kind of checkpoint lies at `path`.

    Raises:
        CheckpointError: MS601 where it is neither.
    """
    if not path.exists():
        raise CheckpointError(Diagnostic("MS601", "there is no such folder", where=str(path), help="check the path"))
    if path.is_dir():
        if is_torch_dist(path):
            return "megatron"
        if (path / "config.json").exists() or any(path.glob("*.safetensors*")) or any(path.glob("*.bin")):
            return "hf"
    what = "this is a file" if path.is_file() else "this is neither a Hugging Face nor a Megatron-Core checkpoint"
    help_ = "point at the folder with config.json and safetensors files, or at the one with iter_* or .metadata"
    raise CheckpointError(Diagnostic("MS601", what, where=str(path), help=help_))


def open_source(path: Path | str) -> Source:
    """Open the checkpoint at `path`, a folder or a URL, from its headers.

    Raises:
        CheckpointError: everything that is wrong with its files.
    """
    path = located(path)
    if source_kind(path) == "hf":
        hf = open_hf(path)
        return Source("hf", path, hf.root, hf.stamps, hf.tensors, (), _own(hf), _manifest(path))
    ckpt = open_torch_dist(path, select=is_model_key)
    if ckpt.unsupported:
        raise CheckpointError(ckpt.unsupported.values())
    carried = ckpt.folder / CARRIED
    reference = _carried(carried) if (carried / "config.json").is_file() else None
    manifest = _manifest(ckpt.folder)
    return Source(
        "megatron", path, ckpt.folder, ckpt.stamps, ckpt.tensors, ckpt.left_out, reference, manifest, ckpt.run_config
    )


def identity_of(source: Source) -> dict[str, Any]:
    """What tells a source from another one without reading it whole: kind, path, and each file's size, time of change
    (nanoseconds) and digest of its head. Raises `OSError`."""
    files = {chunk.file for tensor in source.tensors.values() for chunk in tensor.chunks}
    files |= {name for name in ("config.json", INDEX_FILE, METADATA) if (source.root / name).is_file()}
    found = {name: asdict(identity) for name, identity in identify(source.root, files).items()}
    return {"kind": source.kind, "path": str(source.path.resolve()), "files": found}


def open_reference(path: Path | str) -> Reference:
    """The reference that a user names: a checkpoint folder, a folder with a config, or a config.json itself.

    Raises:
        CheckpointError: there is no readable config.
    """
    path = located(path)
    if path.is_file():
        return Reference(str(path), read_config(path), path.read_text(encoding="utf-8-sig"))
    if any(path.glob("*.safetensors")):
        return _own(open_hf(path))
    return _carried(path)


def is_model_key(key: str) -> bool:
    """Whether a key of a Megatron checkpoint can be a weight."""
    # Optimizer state can be several times as large as the model and in data types of its own.
    return not key.startswith("optimizer.")


def _own(hf: HFCheckpoint) -> Reference:
    code = follow_code(hf.root, tuple(name for name in hf.side_files if name != MANIFEST))
    return Reference(
        str(hf.root / "config.json"), hf.config, hf.config_text, hf.root, code.files, hf.shard_of, dict(hf.tensors),
        code.missing,
    )  # fmt: skip


def _carried(folder: Path) -> Reference:
    config = read_config(folder / "config.json")
    text = (folder / "config.json").read_text(encoding="utf-8-sig")
    code = follow_code(folder, tuple(name for name in sort_files(folder).side_files if name != MANIFEST))
    shard_of: dict[str, str] = {}
    index = folder / INDEX_FILE
    if index.is_file():
        shard_of = dict(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}))
    passthrough: Mapping[str, StoredTensor] = {}
    if (folder / PASSTHROUGH).is_file():
        header = read_header(folder / PASSTHROUGH, PASSTHROUGH)
        if not isinstance(header, Header):
            raise CheckpointError(header)
        passthrough = {tensor.name: tensor for tensor in header.tensors}
    where = str(folder / "config.json")
    return Reference(where, config, text, folder, code.files, shard_of, passthrough, code.missing)


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"this is not JSON: {error}"
        raise CheckpointError(
            Diagnostic("MS603", message, where=str(path), help="remove the file or restore it")
        ) from None
    return loaded if isinstance(loaded, dict) else None
