"""`mapspec convert`: a prepared plan becomes files, published as a whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mapspec.beside import carry, check_tie, config_bytes, record, write_certificate, write_file
from mapspec.certificate import FileRecord, file_records
from mapspec.copy import CopyReport, execute
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.fill import Fill, Part
from mapspec.io.layout import Layout, NewTensor
from mapspec.io.opened import changed
from mapspec.io.safetensors_index import INDEX_FILE
from mapspec.io.safetensors_layout import layout_safetensors
from mapspec.io.torch_dist import (
    TRACKER,
    common_pt,
    common_state_for_weights,
    extra_state_stub,
    iteration_folder,
    layout_torch_dist,
    tracker_text,
    train_state_pt,
)
from mapspec.prepare import Prepared, Request, prepare
from mapspec.progress import Progress
from mapspec.publish import publishing
from mapspec.sources import CARRIED, PASSTHROUGH, identity_of
from mapspec.tensors import Chunk, StoredTensor, whole

__all__ = ["Converted", "Output", "convert"]

_MAX_DISTCP_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Output:
    """How the result shall lie on disk.

    Attributes:
        destination: folder to make.
        overwrite: whether an existing checkpoint there may be replaced.
        max_shard_bytes: bound for a safetensors shard where no reference gives the layout.
        iteration: number of the `iter_*` folder; `None` for `release`.
        threads: workers; `None` for one per core.
        fsync: whether everything is on disk before the result appears.
    """

    destination: Path
    overwrite: bool = False
    max_shard_bytes: int | None = 5 * 10**9
    iteration: int | None = 0
    threads: int | None = None
    fsync: bool = True


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        prepared: what was decided.
        destination: the folder that was made.
        copied: files, tensors, bytes and seconds of the copy.
        carried: side files that travelled along, relative to the Hugging Face folder.
        seconds: wall time from opening the source to the published result.
    """

    prepared: Prepared
    destination: Path
    copied: CopyReport
    carried: tuple[str, ...]
    seconds: float


def convert(request: Request, output: Output, progress: Progress | None = None) -> Converted:
    """Convert a checkpoint.

    Raises:
        MapspecError: nothing was published; the destination is as it was before.
    """
    began = time.monotonic()
    prepared = prepare(request).require()
    _check_packages(prepared)
    for copy, original in prepared.plan.equal:
        check_tie(copy, original, prepared.source.root)
    sources = [prepared.source.path, *([prepared.reference.root] if prepared.reference.root else [])]
    with publishing(output.destination, overwrite=output.overwrite, sources=sources, fsync=output.fsync) as folder:
        write = _write_megatron if prepared.to == "megatron" else _write_hf
        copied, carried = write(prepared, output, folder, progress)
        if (finding := changed(prepared.source.root, prepared.source.stamps)) is not None:
            raise ConvertError(finding)
    return Converted(prepared, output.destination, copied, carried, time.monotonic() - began)


def _check_packages(prepared: Prepared) -> None:
    casts = [step for step in prepared.plan.steps if step.kind == "cast"]
    if casts and find_spec("torch") is None:
        help_ = 'pip install "mapspec[convert]", or leave --dtype and --cast out'
        message = f"casting {casts[0].detail} is done by torch, which is not installed"
        raise ConvertError(Diagnostic("MS725", message, where=str(prepared.source.path), help=help_))


def _write_megatron(
    prepared: Prepared, output: Output, folder: Path, progress: Progress | None
) -> tuple[CopyReport, tuple[str, ...]]:
    plan, reference = prepared.plan, prepared.reference
    home = folder / iteration_folder(output.iteration)
    (home / CARRIED).mkdir(parents=True)
    stub = extra_state_stub()
    layout = layout_torch_dist(
        plan.targets,
        objects=dict.fromkeys(plan.table.objects, stub),
        files=max(4, output.threads or 0),
        max_file_bytes=_MAX_DISTCP_BYTES,
    )
    small = {**layout.small_files, "common.pt": common_pt(common_state_for_weights(output.iteration or 0))}
    layout = replace(layout, small_files=small)
    copied = _run(list(plan.fills(layout)), layout, prepared.source.root, home, output, progress)
    records = file_records(copied.done, layout.tensors) | _keep_passthrough(prepared, home / CARRIED, output)
    carried = carry(reference, home / CARRIED)
    write_file(home / CARRIED / "config.json", config_bytes(reference, prepared.written_config))
    index = {"metadata": {}, "weight_map": dict(reference.shard_of)}
    write_file(home / CARRIED / INDEX_FILE, json.dumps(index).encode())
    if prepared.run_config is not None and prepared.run_config.text is not None:
        write_file(home / "run_config.yaml", prepared.run_config.text.encode())
        write_file(home / "train_state.pt", train_state_pt(output.iteration or 0))
        write_file(folder / "latest_train_state.pt", train_state_pt(output.iteration or 0))
    write_file(folder / TRACKER, tracker_text(output.iteration))
    above = [path.name for path in folder.iterdir() if path.is_file()]
    write_certificate(home, _record(prepared, layout), records, above)
    return copied, carried


def _keep_passthrough(prepared: Prepared, folder: Path, output: Output) -> dict[str, FileRecord]:
    """Tensors that Megatron has no place for wait in a safetensors file of their own."""
    tensors = [prepared.source.tensors[name] for name, _ in prepared.plan.coverage.passthrough]
    if not tensors:
        return {}
    new = [_same(tensor) for tensor in tensors]
    layout = layout_safetensors(new, file_of={tensor.name: PASSTHROUGH for tensor in new})
    fills = _identity(tensors, layout)
    copied = _run(fills, replace(layout, small_files={}), prepared.source.root, folder, output, None)
    return file_records(copied.done, layout.tensors, f"{CARRIED}/")


def _write_hf(
    prepared: Prepared, output: Output, folder: Path, progress: Progress | None
) -> tuple[CopyReport, tuple[str, ...]]:
    plan, reference = prepared.plan, prepared.reference
    kept = _passthrough(prepared)
    order = {name: i for i, name in enumerate(reference.shard_of)}
    new = sorted(
        [*plan.targets, *(_same(tensor) for tensor in kept)], key=lambda t: (order.get(t.name, len(order)), t.name)
    ) if order else [*plan.targets, *(_same(tensor) for tensor in kept)]  # fmt: skip
    layout = layout_safetensors(new, max_shard_bytes=output.max_shard_bytes, file_of=reference.shard_of or None)
    fills = [*plan.fills(layout), *_identity(kept, layout)]
    copied = _run(fills, layout, prepared.source.root, folder, output, progress)
    carried = carry(reference, folder)
    write_file(folder / "config.json", config_bytes(reference, prepared.written_config))
    write_certificate(folder, _record(prepared, layout), file_records(copied.done, layout.tensors))
    return copied, carried


def _passthrough(prepared: Prepared) -> list[StoredTensor]:
    """Tensors of the reference that the spec passes through, with files by absolute path."""
    reference, bound = prepared.reference, prepared.table.bound
    out = []
    for name, tensor in reference.passthrough.items():
        if reference.root is not None and any(pattern.match(name) for pattern, _, _ in bound.passthrough):
            root = reference.root.resolve()
            chunks = tuple(replace(chunk, file=str(root / chunk.file)) for chunk in tensor.chunks)
            out.append(replace(tensor, chunks=chunks))
    return out


def _same(tensor: StoredTensor) -> NewTensor:
    return NewTensor(tensor.name, tensor.dtype, tensor.shape, (whole(tensor.shape),))


def _identity(tensors: Sequence[StoredTensor], layout: Layout) -> list[Fill]:
    out = []
    for tensor in tensors:
        target = layout.tensors[tensor.name]
        chunk: Chunk = target.chunks[0]
        out.append(Fill(target, chunk, (Part(chunk.box, tensor, chunk.box),)))
    return out


def _run(
    fills: Sequence[Fill], layout: Layout, source_root: Path, target_root: Path, output: Output,
    progress: Progress | None,
) -> CopyReport:  # fmt: skip
    return execute(
        fills, layout, source_root=source_root, target_root=target_root, threads=output.threads, progress=progress,
        fsync=output.fsync,
    )  # fmt: skip


def _record(prepared: Prepared, layout: Layout) -> dict[str, Any]:
    plan = prepared.plan
    return record(
        prepared.table,
        source=identity_of(prepared.source),
        written=prepared.to,
        sets=prepared.request.sets,
        tensors={"read": len(plan.coverage.mapped), "written": len(layout.tensors)},
        steps=plan.steps,
        passthrough=dict(plan.coverage.passthrough),
        ignored=dict(plan.coverage.ignored),
    )
