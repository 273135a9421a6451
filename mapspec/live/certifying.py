"""Digests of files that several ranks have written into together.

A rank takes the digest of what it writes in one piece from the memory that it writes from. Where such pieces make up a
whole tensor, as those of column-parallel weights and of experts do, they stand in the certificate as they are. The
other tensors, whose rows are put together out of several ranks' parts, are read once when all ranks have written them,
each by one rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xxhash import xxh3_128

from mapspec.certificate import FileRecord
from mapspec.copying.digests import digest_of
from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.errors import CheckpointError
from mapspec.io.layout import Layout
from mapspec.live.team import Team
from mapspec.live.transfer import Written
from mapspec.shares import shares
from mapspec.tensors import StoredTensor

__all__ = ["certified"]

_BLOCK = 1 << 20


def certified(team: Team, layout: Layout, written: Sequence[Written], root: Path) -> dict[str, FileRecord]:
    """Records of the files of a layout, on all ranks. All call it together when they have closed their files.

    Args:
        layout: safetensors files, in which nothing but the header stands around tensors.
        written: what this rank has written in one piece.
        root: the folder of the files.

    Raises:
        CheckpointError: MS703 where a file that was written cannot be read.
    """
    told = {(one.file, one.offset): one for part in team.exchange(list(written)) for one in part}
    tensors = {name: tensor for name, tensor in layout.tensors.items() if tensor.nbytes}
    known = {name: _tiles(tensor, told) for name, tensor in tensors.items()}
    lacking = {name: tensors[name].nbytes for name, found in known.items() if not found}
    with team.together():
        mine = _read(root, [tensors[name] for name in sorted(shares(lacking, team.world)[team.rank])])
    known |= {name: [one] for part in team.exchange(mine) for name, one in part.items()}
    return {file: _record(layout, file, known) for file in layout.file_sizes}


def _tiles(tensor: StoredTensor, told: Mapping[tuple[str, int], Written]) -> list[Written]:
    """What was written in one piece each, if that is all of the tensor; else nothing."""
    chunk, out = tensor.chunks[0], []
    at = chunk.offset
    while at < chunk.offset + chunk.nbytes:
        found = told.get((chunk.file, at))
        if found is None:
            return []
        out.append(found)
        at += found.nbytes
    return out


def _read(root: Path, tensors: Iterable[StoredTensor]) -> dict[str, Written]:
    files, buffer = SourceFiles(root), memoryview(bytearray(_BLOCK))
    out = {}
    try:
        for tensor in tensors:
            chunk, digest = tensor.chunks[0], xxh3_128()
            for at in range(0, chunk.nbytes, _BLOCK):
                view = buffer[: min(_BLOCK, chunk.nbytes - at)]
                files.read_into(view, chunk.file, chunk.offset + at)
                digest.update(view)
            out[tensor.name] = Written(chunk.file, chunk.offset, chunk.nbytes, digest.hexdigest())
    except ReadProblem as problem:
        doing = "while taking the digest of what was just written"
        raise CheckpointError(problem.finding(root, doing, "look at the file system, then save again")) from problem
    finally:
        files.close()
    return out


def _record(layout: Layout, file: str, known: Mapping[str, Sequence[Written]]) -> FileRecord:
    chunks = sorted(
        (one.offset, name, one.nbytes, one.hex) for name, found in known.items() for one in found if one.file == file
    )
    around = b"".join(one.data for one in sorted(layout.framing[file], key=lambda one: one.offset))
    return FileRecord(layout.file_sizes[file], digest_of(around), tuple((n, at, size, h) for at, n, size, h in chunks))
