"""`save_hf`: a live model becomes a Hugging Face checkpoint, written by all ranks at once, without gathering."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapspec.copying.source import ReadProblem, SourceFiles
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError, ConvertError, PlanError
from mapspec.io.kernel import reserve
from mapspec.io.layout import Layout, NewTensor
from mapspec.io.safetensors_layout import layout_safetensors
from mapspec.live.beside import write_beside
from mapspec.live.certifying import certified
from mapspec.live.following import follow
from mapspec.live.matching import Live
from mapspec.live.pieces import Local
from mapspec.live.team import Team
from mapspec.live.transfer import Writer
from mapspec.live.units import Item, Unit, casts, cut_by, passthrough
from mapspec.nogc import gc_paused
from mapspec.plan import ValueStep
from mapspec.publish import publishing
from mapspec.sources import Reference
from mapspec.tensors import StoredTensor, whole

__all__ = ["SaveReport", "save_hf"]

_SHARD_BYTES = 5 * 10**9
_COPY_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was written.

    Attributes:
        rank: of the default process group.
        folder: the checkpoint.
        tensors, nbytes: in the whole checkpoint.
        bytes_written: by this rank.
        steps: values that were cast, rows that were dropped; on all ranks together.
        left_out: canonical names of rows that no rank has a parameter for (with `strict=False`).
        seconds: wall time.
    """

    rank: int
    folder: Path
    tensors: int
    nbytes: int
    bytes_written: int
    steps: tuple[ValueStep, ...]
    left_out: tuple[str, ...]
    seconds: float


@gc_paused()
def save_hf(
    model: Any,
    folder: str | Path,
    *,
    reference: str | Path | Mapping[str, Any],
    spec: str | None = None,
    flavours: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    strict: bool = True,
    fsync: bool = True,
    timeout_s: float | None = None,
) -> SaveReport:
    """Write the model as a Hugging Face checkpoint. All ranks call it together; `folder` is on a file system of all.

    Rank 0 makes the files in a hidden folder beside the destination, every rank writes the byte ranges of the
    parameters it owns (where several ranks have a copy, the rows are dealt out among them), rank 0 puts config, side
    files and the certificate (`mapspec verify FOLDER` checks it) beside them and renames the folder once all are
    done. After an error on any rank nothing is left.

    Args:
        model, spec, flavours, sets: as for `load`.
        reference: checkpoint folder, config.json or its contents. A folder also gives shards, dtypes, tokenizer and
            other files, and the tensors that the mapping passes through.
        dtype: as for `export`.
        max_shard_bytes: bound for the tensors of a shard; by default the reference's shards, else 5 GB.
        overwrite: whether a checkpoint at `folder` may be replaced.
        strict: whether the model has to hold everything that the config promises and the reference holds.
        fsync: whether everything is on disk before the folder appears.
        timeout_s: how long to wait for other ranks (gloo only).

    Raises:
        MapspecError: the same on all ranks; the destination is as it was.
    """
    began = time.monotonic()
    followed = follow(
        model, reference, spec=spec, flavours=flavours, sets=sets, dtype=dtype, strict=strict, timeout_s=timeout_s,
        options=(str(folder), max_shard_bytes, overwrite),
    )  # fmt: skip
    live, following, units = followed.live, followed.reference, followed.units
    team = live.team
    with team.together():
        kept = passthrough(live, following)
        if strict:
            _check_reference(live, following, units, kept)
        layout = _layout(units, kept, following, max_shard_bytes)
        steps = _steps(live, units)
    with ExitStack() as stack:
        partial = _prepare(team, stack, Path(folder), overwrite, following, layout)
        with team.together():
            writer = _write(live, units, kept, following, layout, partial, fsync=fsync)
        records = certified(team, layout, writer.written, partial)
        with team.together():
            if team.rank == 0:
                write_beside(live, following, layout, partial, steps, records, dtype=dtype, sets=sets)
        # What raises from here on raises on rank 0 while the folder is put in place.
        with team.together():
            stack.close()
    return SaveReport(
        team.rank, Path(folder), len(layout.tensors), sum(t.nbytes for t in layout.tensors.values()),
        writer.nbytes, steps, live.unheld, time.monotonic() - began,
    )  # fmt: skip


def _prepare(team: Team, stack: ExitStack, folder: Path, overwrite: bool, following: Reference, layout: Layout) -> Path:
    """Rank 0 makes the hidden folder and files of full size, headers in them; all ranks see whether they see them."""
    partial: Path | None = None
    with team.together():
        if team.rank == 0:
            sources = [following.root] if following.root is not None else []
            partial = stack.enter_context(publishing(folder, overwrite=overwrite, sources=sources))
            for file, size in layout.file_sizes.items():
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                writer = Writer(partial)
                with (partial / file).open("xb") as made:
                    reserve(made.fileno(), size)
                for framing in layout.framing.get(file, ()):
                    writer.put(file, framing.offset, framing.data)
                writer.close(fsync=False)
    shared = Path(team.exchange(None if partial is None else str(partial.resolve()))[0])
    with team.together():
        for file, size in layout.file_sizes.items():
            if not (shared / file).is_file() or (shared / file).stat().st_size != size:
                message = f"rank {team.rank} does not see `{file}`, which rank 0 has made"
                help_ = "all ranks write into the same files: choose a folder on a file system that they share"
                raise ConvertError(Diagnostic("MS758", message, where=str(shared.parent), help=help_))
    return shared


def _write(
    live: Live, units: Sequence[Unit], kept: Sequence[StoredTensor], following: Reference, layout: Layout,
    partial: Path, *, fsync: bool,
) -> Writer:  # fmt: skip
    """Write what falls to this rank; the writer knows what that was."""
    writer, local = Writer(partial), Local(live.team.place.shard)
    held = {one.at: one for one in live.held}
    try:
        for item in _mine(live, [item for unit in units for item in unit.items]):
            writer.write(held[item.at].local.tensor, local.pieces(item.row, layout.tensors))
        for number, tensor in enumerate(kept):
            if number % live.team.world == live.team.rank:
                _copy(tensor, layout.tensors[tensor.name], following.root or Path(), writer)
    finally:
        writer.close(fsync=fsync)
    return writer


def _mine(live: Live, items: Sequence[Item]) -> Iterator[Item]:
    """The items of which this rank writes its part: those with equal parts take turns."""
    parts: dict[str | None, Any] = {None: np.zeros(live.team.world, int)}
    for name in ("tp", "etp"):
        parts[name] = np.array([getattr(place.shard, f"{name}_rank") for place in live.places])
    for number, item in enumerate(items):
        column = live.dtypes[:, item.at]
        if column[live.team.rank]:
            group, part, _ = cut_by(item.row, live.team.place.shard)
            alike = np.nonzero((column > 0) & (parts[group] == part))[0]
            if alike[number % len(alike)] == live.team.rank:
                yield item


def _copy(source: StoredTensor, target: StoredTensor, root: Path, writer: Writer) -> None:
    """A tensor of the reference as it is."""
    files = SourceFiles(root)
    buffer = memoryview(bytearray(min(_COPY_BLOCK, max(1, source.nbytes))))
    here, there = source.chunks[0], target.chunks[0]

    def blocks() -> Iterator[memoryview]:
        for at in range(0, here.nbytes, _COPY_BLOCK):
            view = buffer[: min(_COPY_BLOCK, here.nbytes - at)]
            files.read_into(view, here.file, here.offset + at)
            yield view

    try:
        writer.stream(there.file, there.offset, blocks())
    except ReadProblem as problem:
        help_ = "fetch the file again, then save again"
        raise CheckpointError(problem.finding(root, f"while copying `{source.name}`", help_)) from problem
    finally:
        files.close()


def _check_reference(live: Live, following: Reference, units: Sequence[Unit], kept: Sequence[StoredTensor]) -> None:
    """Nothing that the reference holds is lost without a reason."""
    given = {target.name for unit in units for target in unit.targets} | {tensor.name for tensor in kept}
    ignored = [pattern for pattern, _, _ in live.table.bound.ignore_hf]
    lost = [n for n in following.shard_of if n not in given and not any(p.match(n) for p in ignored)]
    if lost:
        message = f"{len(lost):,} tensors of the reference would be left out, first `{lost[0]}`"
        help_ = "follow the config of this model instead of a checkpoint, or leave them out with strict=False"
        raise PlanError(Diagnostic("MS757", message, where=following.where, help=help_))


def _layout(
    units: Sequence[Unit], kept: Sequence[StoredTensor], following: Reference, max_shard_bytes: int | None
) -> Layout:
    new = [NewTensor(t.name, t.dtype, t.shape, (whole(t.shape),)) for unit in units for t in unit.targets]
    new += [NewTensor(t.name, t.dtype, t.shape, (whole(t.shape),)) for t in kept]
    order = {name: at for at, name in enumerate(following.shard_of)}
    if order:
        new.sort(key=lambda tensor: (order.get(tensor.name, len(order)), tensor.name))
    keep = following.shard_of if max_shard_bytes is None else None
    return layout_safetensors(new, max_shard_bytes=max_shard_bytes or _SHARD_BYTES, file_of=keep or None)


def _steps(live: Live, units: Sequence[Unit]) -> tuple[ValueStep, ...]:
    steps = [ValueStep("cast", tuple(names), detail) for detail, names in casts(live, units).items()]
    for unit in units:
        for dim in unit.items[0].row.rule.dims or ():
            if dim.padded is not None and dim.padded > dim.size:
                detail = f"rows from {dim.size:,} on are padding and are dropped"
                steps.append(ValueStep("trim", tuple(target.name for target in unit.targets), detail))
    return tuple(steps)
