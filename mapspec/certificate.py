"""The certificate of a checkpoint: what was done, and digests of every file that was written.

It is `mapspec.json` beside the weights. Its head says how the checkpoint came to be (`mapspec.beside.record`). Under
`digests` stand, for each file, its size, the digest of each chunk with the tensor that it belongs to, and the digest of
all other bytes; under `above` the same for files in the folder above (the tracker of a Megatron-Core checkpoint). The
last line holds the digest of the text before it, so that damage to the certificate shows, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapspec.copying.digests import ALGORITHM, FileDone, digest_of
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError
from mapspec.tensors import StoredTensor

__all__ = ["FORMAT_VERSION", "Certificate", "FileRecord", "file_records", "read_certificate", "record_of", "seal"]

FORMAT_VERSION = "1.0"

_SEAL = re.compile(rb',\n "seal": "([0-9a-f]{32})"\n}\n\Z')


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was written.

    Attributes:
        size: in bytes.
        rest: digest of the bytes that belong to no chunk; of the whole file where it has no chunks.
        chunks: tensor, offset, length in bytes, and digest of each chunk, by offset.
    """

    size: int
    rest: str
    chunks: tuple[tuple[str, int, int, str], ...] = ()


@dataclass(frozen=True)
class Certificate:
    """A certificate as it was read: `head` without the digests, and the records of files here and in the folder above,
    by relative name."""

    head: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    above: Mapping[str, FileRecord] = field(default_factory=dict)


def file_records(
    done: Iterable[FileDone], tensors: Mapping[str, StoredTensor], prefix: str = ""
) -> dict[str, FileRecord]:
    """Records of files that have been written.

    Args:
        done: the files, with digests by offset.
        tensors: what the files hold, by name.
        prefix: goes in front of the files' names, for example `hf/`.
    """
    names = {(chunk.file, chunk.offset): t.name for t in tensors.values() for chunk in t.chunks if chunk.nbytes}
    return {
        prefix + file.file: FileRecord(
            file.size, file.rest, tuple((names[file.file, d.offset], d.offset, d.nbytes, d.hex) for d in file.digests)
        )
        for file in done
    }


def record_of(data: bytes) -> FileRecord:
    """The record of a small file."""
    return FileRecord(len(data), digest_of(data))


def seal(head: Mapping[str, Any], files: Mapping[str, FileRecord], above: Mapping[str, FileRecord]) -> bytes:
    """The text of a certificate, a line for each chunk."""
    lines = [json.dumps(dict(head), indent=1)[:-2] + ","]
    lines.append(f' "digests": {{\n  "algorithm": "{ALGORITHM}",\n  "files": {{')
    lines += [_lines(files), '  },\n  "above": {', _lines(above), "  }\n }"]
    text = "\n".join(line for line in lines if line).encode()
    return text + b',\n "seal": "' + digest_of(text).encode() + b'"\n}\n'


def _lines(files: Mapping[str, FileRecord]) -> str:
    out = []
    for name, record in sorted(files.items()):
        chunks = ",\n".join(
            f'    [{json.dumps(tensor)}, {offset}, {nbytes}, "{digest}"]'
            for tensor, offset, nbytes, digest in record.chunks
        )
        held = f', "chunks": [\n{chunks}\n   ]' if chunks else ""
        out.append(f'   {json.dumps(name)}: {{"size": {record.size}, "rest": "{record.rest}"{held}}}')
    return ",\n".join(out)


def read_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        CheckpointError: the file holds no digests (MS730), or is not as it was written (MS731).
    """
    try:
        data = path.read_bytes()
        found = json.loads(data)
    except OSError as error:
        raise _damaged(path, f"could not be read: {error.strerror}") from None
    except ValueError:
        raise _damaged(path, "is not as it was written: it is no JSON") from None
    if not isinstance(found, dict) or not str(found.get("format_version", "")).startswith("1."):
        raise _damaged(path, "is not as it was written, or by another version of mapspec")
    mark = _SEAL.search(data)
    if mark is None and "digests" not in found:
        help_ = "convert again to get one; two checkpoints are compared by `mapspec verify A B`"
        message = "the record of this checkpoint has no digests"
        raise CheckpointError(Diagnostic("MS730", message, where=str(path), help=help_))
    if mark is None or digest_of(data[: mark.start()]) != mark[1].decode():
        raise _damaged(path, "is not as it was written: its last line does not fit the text")
    digests = found.pop("digests")
    found.pop("seal")
    if digests["algorithm"] != ALGORITHM:
        raise _damaged(path, f"has digests of another kind: {digests['algorithm']}")
    return Certificate(found, *({n: _record(r) for n, r in digests[key].items()} for key in ("files", "above")))


def _record(entry: Mapping[str, Any]) -> FileRecord:
    return FileRecord(entry["size"], entry["rest"], tuple(tuple(chunk) for chunk in entry.get("chunks", ())))


def _damaged(path: Path, what: str) -> CheckpointError:
    help_ = "restore the file from a copy; without it nothing can be said about the checkpoint"
    return CheckpointError(Diagnostic("MS731", f"the certificate {what}", where=str(path), help=help_))
