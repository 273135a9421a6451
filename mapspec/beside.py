"""What stands beside the weights of an output: side files, config.json, the record of what was done."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from mapspec._version import __version__
from mapspec.certificate import FORMAT_VERSION, FileRecord, seal
from mapspec.diagnostics import Diagnostic
from mapspec.documents import bundled_folder
from mapspec.errors import ConvertError
from mapspec.fill import Part
from mapspec.io.json_config import write_config
from mapspec.io.remote import RemotePath
from mapspec.io.unwritable import write_problem
from mapspec.plan import ValueStep
from mapspec.sources import MANIFEST, Reference
from mapspec.table import Table
from mapspec.tensors import FLOATS, StoredTensor, whole

__all__ = ["carry", "check_tie", "config_bytes", "record", "with_dtype", "write_certificate", "write_file"]


def carry(reference: Reference, folder: Path) -> tuple[str, ...]:
    """Copy the reference's side files into `folder`; their names.

    Raises:
        ConvertError: MS724 for a file that cannot be copied.
    """
    if reference.root is None:
        return ()
    for name in reference.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(source := reference.root / name, RemotePath):
                target.write_bytes(source.read_bytes())
            else:
                shutil.copyfile(source, target)
        except OSError as error:
            message = f"`{name}` cannot be carried along: {error.strerror}"
            raise ConvertError(Diagnostic("MS724", message, where=str(reference.root))) from None
    return reference.files


def write_file(path: Path, data: bytes) -> None:
    """Write a small file.

    Raises:
        ConvertError: MS702 or MS704.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConvertError(write_problem(error, path)) from None


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """The config with its dtype changed, under the keys that it and its parts use; as `dtype` where it uses none."""
    out = copy.deepcopy(dict(config))
    if dtype is not None and not _set_dtype(out, dtype):
        out["dtype"] = dtype
    return out


def _set_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Whether there was a key to change."""
    found = False
    for key, value in config.items():
        if isinstance(value, dict):
            found = _set_dtype(value, dtype) or found
        elif key in ("dtype", "torch_dtype") and str(value).removeprefix("torch.") in FLOATS:
            config[key] = dtype
            found = True
    return found


def config_bytes(reference: Reference, config: Mapping[str, Any]) -> bytes:
    """config.json: the reference's own text, or its dialect where something was changed."""
    if config == reference.config and reference.config_text is not None:
        return reference.config_text.encode()
    return write_config(dict(config), like=reference.config_text)


def record(
    table: Table, *, source: Mapping[str, Any], written: str, sets: Sequence[str], tensors: Mapping[str, int],
    steps: Sequence[ValueStep], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The head of `mapspec.json`: what was done. Readers accept equal major parts of `format_version`.

    Args:
        table: what was applied.
        source: where the values come from; `written`: the side that was made.
        sets: changes to the config.
        tensors: how many were read and written.
        steps: everything that changed or checked values.
        more: further entries.
    """
    bound = table.bound
    document = bound.linked.top.document
    metadata = document.model.metadata
    mapping: dict[str, Any] = {"name": metadata.name, "version": metadata.version, "table_hash": table.hash}
    if bundled_folder("mappings") not in document.path.parents:
        mapping["path"] = str(document.path.resolve())
    return {
        "format_version": FORMAT_VERSION,
        "mapspec": __version__,
        "mapping": mapping,
        "included": [f"{s.id}: {s.spec.metadata.name}@{s.spec.metadata.version}" for s in bound.linked.scopes[1:]],
        "source": dict(source),
        "written": written,
        "flavours": dict(bound.flavours),
        "padded_vocab_size": bound.choices.padded_vocab_size,
        "set": list(sets),
        "tensors": dict(tensors),
        "value_steps": [{"kind": s.kind, "detail": s.detail, "tensors": list(s.tensors)} for s in steps],
        **more,
    }


def write_certificate(
    home: Path, head: Mapping[str, Any], records: Mapping[str, FileRecord], above: Mapping[str, FileRecord]
) -> None:
    """Write `mapspec.json`.

    Args:
        home: the folder that it describes.
        head: see `record`.
        records: of files below `home` that were hashed as they were written, or will be written after this one; all
            others that are there are read here.
        above: the same of files beside `home` that belong to it.

    Raises:
        ConvertError: MS702 or MS704.
    """
    below = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_file()}
    files = {name: _read_record(path) for name, path in below.items() if name not in records}
    write_file(home / MANIFEST, seal(head, {**files, **records}, above))


def _read_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, xxh3_128).hexdigest())


def check_tie(copy: StoredTensor, original: StoredTensor, root: Path) -> None:
    """Make sure that a tied weight that a folder holds twice is the same twice: tied is a claim of the config.

    Raises:
        ConvertError: MS723 where the two differ.
    """
    from mapspec.copying.compare import first_difference  # numpy, which planning does without

    at: tuple[int, ...] | None = ()
    if copy.shape == original.shape and copy.dtype == original.dtype:
        box = whole(copy.shape)
        one, other = (Part(box, copy, box),), (Part(box, original, box),)
        at = first_difference(box, copy.dtype, one, other, left_root=root, right_root=root, name=copy.name)
    if at is not None:
        message = f"the config ties `{copy.name}` to `{original.name}`, but they differ at {list(at)}"
        help_ = "keep both as they are with --set tie_word_embeddings=false"
        raise ConvertError(Diagnostic("MS723", message, where=str(root), help=help_))
