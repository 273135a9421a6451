"""The header of one safetensors file, read without loading anything and checked before it is believed.

The safetensors library hands out tensors, not the places where their bytes lie; copying needs the places. A file is
eight bytes of header length (little endian), that many bytes of JSON, then the tensors without gaps to the last byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic, Note
from mapspec.errors import CheckpointError
from mapspec.io.opened import Stamp, opened
from mapspec.io.remote import RemotePath
from mapspec.tensors import DTYPES, Chunk, StoredTensor, whole

__all__ = ["DTYPE_CODES", "METADATA_KEY", "Header", "read_header", "warm_headers"]

METADATA_KEY = "__metadata__"
_MAX_HEADER = 100_000_000  # the library's own bound; a longer one is garbage read as a length
_MAX_FINDINGS = 20  # per file: a file written by a broken tool repeats one mistake for every tensor
_FIRST = 1 << 17  # bytes that are asked for before the length of a remote file's header is known
_LFS = b"version https://git-lfs"

# code in the header -> our dtype, in the library's own order, by which it also sorts the tensors of a file
DTYPE_CODES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_FETCH_AGAIN = "fetch the file again, or have its author write it again"


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds: tensors in the order of their bytes, the file's own metadata, and its stamp."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    stamp: Stamp


def warm_headers(root: Path, names: Sequence[str]) -> None:
    """Fetch the headers of the remote files that will be read next, all at once instead of one after the other.

    Raises:
        CheckpointError: MS628 where the store does not give them.
    """
    if not isinstance(root, RemotePath):
        return
    store = root.store
    keys = {(root / name).key: store.stamp((root / name).key).nbytes for name in names}
    try:
        store.warm([(key, 0, min(size, _FIRST)) for key, size in keys.items()])
        ends = {key: 8 + int.from_bytes(store.fetch(key, 0, min(size, 8)), "little") for key, size in keys.items()}
        longer = {key: end for key, end in ends.items() if _FIRST < end <= min(keys[key], 8 + _MAX_HEADER)}
        store.warm([(key, 0, end) for key, end in longer.items()])
    except OSError as error:
        message = f"the headers cannot be read: {error.strerror}"
        help_ = "check the credentials and the network, then try again"
        raise CheckpointError(Diagnostic("MS628", message, where=str(root), help=help_)) from error


def read_header(path: Path, file: str) -> Header | list[Diagnostic]:
    """Read the header of `path`.

    Args:
        path: the file; symbolic links are followed.
        file: its name within the checkpoint, which the chunks and the findings carry.

    Returns:
        The header, or everything that is wrong with it (never an empty list).
    """
    try:
        with opened(path) as stream:
            size = stream.stamp.nbytes
            first = stream.read(0, len(_LFS))
            start = first[:8]
            if first == _LFS:
                return [
                    Diagnostic(
                        "MS617",
                        f"`{file}` is a Git LFS pointer, not the file itself",
                        where=str(path),
                        help="run `git lfs pull` in the repository",
                    )
                ]
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length < 2 or 8 + length > size or length > _MAX_HEADER:
                return [_length_finding(path, file, size, length if len(start) == 8 else None)]
            raw = stream.read(8, length)
    except OSError as error:
        return [
            Diagnostic(
                "MS628",
                f"`{file}` cannot be read: {error.strerror}",
                where=str(path),
                help="check the file's type and permissions",
            )
        ]
    if len(raw) < length:
        return [_length_finding(path, file, 8 + len(raw), length)]
    repeated: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) != len(pairs):
            seen: set[str] = set()
            repeated.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return built

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=build)
    except UnicodeDecodeError as error:
        return [_json_finding(path, file, f"byte {8 + error.start} is not UTF-8")]
    except json.JSONDecodeError as error:
        return [_json_finding(path, file, f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos}")]
    except RecursionError:
        return [_json_finding(path, file, "it is nested too deeply")]
    if not isinstance(header, dict):
        return [_json_finding(path, file, "it is not an object")]
    if repeated:
        return [_json_finding(path, file, f"`{name}` stands in it twice") for name in repeated[:_MAX_FINDINGS]]
    return _check(path, file, header, data=8 + length, stamp=stream.stamp)


def _check(path: Path, file: str, header: dict[str, Any], *, data: int, stamp: Stamp) -> Header | list[Diagnostic]:
    """The tensors of a parsed header whose data section starts at byte `data` of the file."""
    where = str(path)
    found: list[Diagnostic] = []
    metadata = header.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        found.append(
            Diagnostic(
                "MS612", f"`{METADATA_KEY}` of `{file}` is not a map of text to text", where=where, help=_FETCH_AGAIN
            )
        )
    placed: list[tuple[int, int, str, str, tuple[int, ...]]] = []
    for name, entry in header.items():
        try:
            code, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            numbers = (*shape, begin, end)
            well_formed = set(map(type, numbers)) == {int} and min(numbers) >= 0  # no booleans either
            well_formed = well_formed and isinstance(code, str) and isinstance(entry["shape"], list)
        except (TypeError, KeyError, ValueError):
            well_formed = False
        if not well_formed:
            found.append(
                Diagnostic(
                    "MS612",
                    f"tensor `{name}` in `{file}` lacks a usable `dtype`, `shape` or `data_offsets`",
                    where=where,
                    help=_FETCH_AGAIN,
                )
            )
            continue
        dtype = DTYPE_CODES.get(code)
        if dtype is None:
            found.append(
                Diagnostic(
                    "MS613",
                    f"tensor `{name}` in `{file}` has dtype `{code}`, which mapspec does not know",
                    where=where,
                    notes=(Note(f"known: {', '.join(DTYPE_CODES)}"),),
                    help="convert from a checkpoint that stores this tensor in one of the known dtypes",
                )
            )
            continue
        nbytes = DTYPES[dtype]
        for extent in shape:
            nbytes *= extent
        if end - begin != nbytes:
            found.append(
                Diagnostic(
                    "MS614",
                    f"tensor `{name}` in `{file}` is {code} {list(shape)}, which is {nbytes} bytes, "
                    f"but its offsets {begin} to {end} span {end - begin}",
                    where=where,
                    help=_FETCH_AGAIN,
                )
            )
            continue
        placed.append((begin, end, name, dtype, shape))
    if not found:
        placed.sort()
        found = _check_tiling(where, file, placed, data=data, size=stamp.nbytes)
    if found:
        left = len(found) - _MAX_FINDINGS
        more = [Diagnostic("MS612", f"{left} more findings in `{file}`", where=where)] if left > 0 else []
        return found[:_MAX_FINDINGS] + more
    return Header(
        tuple(
            StoredTensor(name, dtype, shape, (Chunk(whole(shape), file, data + begin, end - begin),))
            for begin, end, name, dtype, shape in placed
        ),
        metadata,
        stamp,
    )


def _check_tiling(
    where: str, file: str, placed: list[tuple[int, int, str, str, tuple[int, ...]]], *, data: int, size: int
) -> list[Diagnostic]:
    """Findings unless the sorted tensors follow each other without gap or overlap up to the end of the file."""
    found: list[Diagnostic] = []
    reached, before = 0, ""
    for begin, end, name, _, _ in placed:
        if begin != reached:
            after = f"after `{before}`" if before else "at the start of the data"
            what = f"{begin - reached} unused bytes" if begin > reached else f"an overlap of {reached - begin} bytes"
            found.append(
                Diagnostic(
                    "MS615",
                    f"tensor `{name}` in `{file}` begins at offset {begin} of the data: {what} {after}",
                    where=where,
                    help=_FETCH_AGAIN,
                )
            )
        reached, before = max(reached, end), name
    if data + reached != size:
        wanted = data + reached
        state = "is cut off" if size < wanted else "has bytes after its last tensor"
        found.append(
            Diagnostic(
                "MS616",
                f"`{file}` {state}: its header describes {wanted} bytes, the file has {size}",
                where=where,
                help="the download or copy was probably interrupted; fetch the file again",
            )
        )
    return found


def _length_finding(path: Path, file: str, size: int, length: int | None) -> Diagnostic:
    if length is None:
        message = f"`{file}` has {size} bytes, too few for a safetensors file"
    elif length < 2 or length > _MAX_HEADER:
        message = f"`{file}` claims a header of {length} bytes; it is no safetensors file"
    else:
        message = f"`{file}` is cut off in its header: {8 + length} bytes expected, {size} there"
    return Diagnostic("MS610", message, where=str(path), help=_FETCH_AGAIN)


def _json_finding(path: Path, file: str, what: str) -> Diagnostic:
    return Diagnostic("MS611", f"the header of `{file}` is unusable: {what}", where=str(path), help=_FETCH_AGAIN)
