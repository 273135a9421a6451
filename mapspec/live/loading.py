"""`load`: a live model is filled from a Hugging Face checkpoint, each rank reading what it owns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.beside import check_tie
from mapspec.copying.pieces import Piece
from mapspec.coverage import cover
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError, PlanError
from mapspec.io.hf_folder import HFCheckpoint, open_hf
from mapspec.io.kernel import cores
from mapspec.io.opened import changed
from mapspec.live.matching import Held, Live, match
from mapspec.live.names import unwrap
from mapspec.live.opening import choose
from mapspec.live.pieces import Local
from mapspec.live.team import Team
from mapspec.live.transfer import CountedFiles, Reader
from mapspec.nogc import gc_paused
from mapspec.plan import ValueStep
from mapspec.table import Table
from mapspec.tensors import FLOATS, box_shape, itemsize, numel

__all__ = ["LoadReport", "load"]

_THREADS = 4


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What one rank did.

    Attributes:
        rank: of the default process group.
        tensors: parameters and buffers that were filled.
        local_bytes: their size in memory.
        needed_bytes: the size in the checkpoint of what they are made of.
        bytes_read: what was read for them, headers aside.
        steps: values that were cast or set to zero, by name of the parameter.
        flavours: of the mapping, in force.
        padded_vocab_size: rows of the model's vocabulary, if more than the checkpoint's.
        left_out: canonical names of rows that no rank has a parameter for (with `strict=False`).
        differences: fields in which the model's config differs from the checkpoint's although all shapes agree.
        seconds: wall time.
    """

    rank: int
    tensors: int
    local_bytes: int
    needed_bytes: int
    bytes_read: int
    steps: tuple[ValueStep, ...]
    flavours: Mapping[str, str]
    padded_vocab_size: int | None
    left_out: tuple[str, ...]
    differences: tuple[str, ...]
    seconds: float


@gc_paused()
def load(
    model: Any,
    hf_dir: str | Path,
    *,
    spec: str | None = None,
    flavours: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    strict: bool = True,
    threads: int | None = None,
    timeout_s: float | None = None,
) -> LoadReport:
    """Fill every parameter and persistent buffer of a live model. All ranks call it together.

    Everything is checked on all ranks before the first value changes: that each parameter has a row, each row a
    parameter, shapes and dtypes. A value is cast where the model's parameter has another dtype than the checkpoint;
    rows of the vocabulary beyond the checkpoint's are set to zero. A rank reads the byte ranges that it owns, in
    blocks of 4 MiB per thread. An optimizer that keeps values of its own, as mixed-precision ones do, has to be told
    afterwards: `optimizer.reload_model_params()`.

    Args:
        model: the HybridModel of this rank, in wrappers or not, or a list of chunks.
        hf_dir: folder or URL of the checkpoint, visible to every rank.
        spec: mapping by name or path; by default the one that lists the config's architecture.
        flavours: choices to make; by default those that the names of checkpoint and model decide.
        sets: changes to the config, `key=value`.
        strict: whether the checkpoint may hold nothing that the model has no place for. A parameter that would not
            be filled is an error always.
        threads: readers of this rank; by default up to 4.
        timeout_s: how long to wait for other ranks (gloo only); by default as the process group was set up.

    Raises:
        MapspecError: the same on all ranks. Only after MS703, MS707 and MS755 the model may be partly overwritten.
    """
    began = time.monotonic()
    models = unwrap(model)
    team = Team(models[0], timeout_s)
    with team.together():
        hf = open_hf(hf_dir)
        linked, config, choices = choose(
            hf.config, list(hf.tensors), where=str(hf.root / "config.json"), spec=spec, flavours=flavours, sets=sets
        )
    live = match(team, models, linked, config, choices, strict=strict)
    with team.together():
        _check_source(live.table, hf, strict=strict)
        if team.rank == 0:
            _check_ties(live.table, hf)
        local = Local(team.place.shard)
        work = [(held, local.pieces(held.source, hf.tensors)) for held in live.held]
        steps = _steps(live, work)
    with team.together():
        nbytes = _fill(hf.root, work, threads)
        if (finding := changed(hf.root, hf.stamps)) is not None:
            raise CheckpointError(finding)
    return LoadReport(
        team.rank,
        len(work),
        sum(held.local.tensor.numel() * held.local.tensor.element_size() for held, _ in work),
        sum(_nbytes(piece) for _, pieces in work for piece in pieces),
        nbytes,
        steps,
        dict(live.table.bound.flavours),
        live.table.bound.choices.padded_vocab_size,
        live.unheld,
        live.differences,
        time.monotonic() - began,
    )


def _check_source(table: Table, hf: HFCheckpoint, *, strict: bool) -> None:
    """The checkpoint is what its config promises, as for a conversion."""
    found = cover(table, "hf", hf.tensors).findings
    found = tuple(f for f in found if strict or f.code != "MS512")
    if found:
        raise PlanError(found)


def _check_ties(table: Table, hf: HFCheckpoint) -> None:
    for name, partner in table.tied.items():
        pairs = zip(table.by_megatron[name].names("hf"), table.by_megatron[partner].names("hf"), strict=True)
        for copy, original in pairs:
            if copy in hf.tensors and original in hf.tensors:
                check_tie(hf.tensors[copy], hf.tensors[original], hf.root)


def _nbytes(piece: Piece) -> int:
    return 0 if piece.file is None else numel(box_shape(piece.box)) * itemsize(piece.dtype)


def _steps(live: Live, work: Sequence[tuple[Held, Sequence[Piece]]]) -> tuple[ValueStep, ...]:
    """Casts and zeros by detail.

    Raises:
        PlanError: MS753 where values cannot be cast.
    """
    named: dict[tuple[str, str], list[str]] = {}
    for held, pieces in work:
        for source in sorted({piece.dtype for piece in pieces if piece.file is not None} - {held.dtype}):
            if not {source, held.dtype} <= set(FLOATS):
                message = f"`{held.local.name}` is {held.dtype} in the model and {source} in the checkpoint"
                help_ = "only floating dtypes are cast"
                raise PlanError(Diagnostic("MS753", message, held.row.rule.span, help=help_))
            named.setdefault(("cast", f"{source} -> {held.dtype}"), []).append(held.local.name)
        for piece in pieces:
            if piece.file is None:
                rows = piece.box[0]
                detail = f"rows {rows[0]:,} to {rows[1]:,} of this rank are zero"
                named.setdefault(("pad", detail), []).append(held.local.name)
    return tuple(ValueStep(kind, tuple(names), detail) for (kind, detail), names in named.items())


def _fill(root: Path, work: Sequence[tuple[Held, list[Piece]]], threads: int | None) -> int:
    """Read and copy; the bytes that were read."""

    def place(pair: tuple[Held, list[Piece]]) -> tuple[str, int]:
        return min(((p.file, p.start) for p in pair[1] if p.file is not None), default=("", 0))

    count = threads or min(_THREADS, cores())
    pinned = any(held.local.tensor.is_cuda for held, _ in work)
    readers: list[Reader] = []
    mine = threading.local()
    lock = threading.Lock()

    def fill(pair: tuple[Held, list[Piece]]) -> None:
        held, pieces = pair
        if not hasattr(mine, "reader"):
            mine.reader = Reader(root, CountedFiles(root, count), pinned=pinned)
            with lock:
                readers.append(mine.reader)
        mine.reader.fill(held.local.name, held.local.tensor, pieces)

    with _closing(readers), ThreadPoolExecutor(count, thread_name_prefix="mapspec-load") as pool:
        jobs = [pool.submit(fill, pair) for pair in sorted(work, key=place)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return sum(reader.nbytes for reader in readers)


@contextmanager
def _closing(readers: list[Reader]) -> Iterator[None]:
    try:
        yield
    finally:
        for reader in readers:
            reader.close()
