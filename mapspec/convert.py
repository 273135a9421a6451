"""`mapspec convert`: a prepared plan becomes files, published as a whole or not at all."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mapspec.copy import CopyReport, execute, first_difference
from mapspec.diagnostics import Diagnostic
from mapspec.errors import ConvertError
from mapspec.fill import Fill, Part
from mapspec.io.json_config import write_config
from mapspec.io.layout import Layout, NewTensor
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
from mapspec.manifest import manifest
from mapspec.prepare import Prepared, Request, prepare
from mapspec.progress import Progress
from mapspec.publish import publishing
from mapspec.sources import CARRIED, MANIFEST, PASSTHROUGH
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
    _check_ties(prepared)
    sources = [prepared.source.path, *([prepared.reference.root] if prepared.reference.root else [])]
    with publishing(output.destination, overwrite=output.overwrite, sources=sources, fsync=output.fsync) as folder:
        write = _write_megatron if prepared.to == "megatron" else _write_hf
        copied, carried = write(prepared, output, folder, progress)
    return Converted(prepared, output.destination, copied, carried, time.monotonic() - began)


def _check_ties(prepared: Prepared) -> None:
    """A tied weight that the file holds twice is dropped only if the two are equal: tied is a claim of the config."""
    root = prepared.source.root
    for copy, original in prepared.plan.equal:
        box = whole(copy.shape)
        if copy.shape != original.shape or copy.dtype != original.dtype:
            at: tuple[int, ...] | None = ()
        else:
            one, other = (Part(box, copy, box),), (Part(box, original, box),)
            at = first_difference(box, copy.dtype, one, other, left_root=root, right_root=root, name=copy.name)
        if at is not None:
            message = f"the config ties `{copy.name}` to `{original.name}`, but they differ at {list(at)}"
            help_ = "keep both with --set tie_word_embeddings=false"
            raise ConvertError(Diagnostic("MS723", message, where=str(root), help=help_))


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
    _keep_passthrough(prepared, home / CARRIED, output)
    carried = _carry(reference.root, reference.files, home / CARRIED)
    _write(home / CARRIED / "config.json", _config_bytes(prepared))
    index = {"metadata": {}, "weight_map": dict(reference.shard_of)}
    _write(home / CARRIED / INDEX_FILE, json.dumps(index).encode())
    if prepared.run_config is not None and prepared.run_config.text is not None:
        _write(home / "run_config.yaml", prepared.run_config.text.encode())
        _write(home / "train_state.pt", train_state_pt(output.iteration or 0))
        _write(folder / "latest_train_state.pt", train_state_pt(output.iteration or 0))
    _write(home / MANIFEST, manifest(prepared, layout))
    _write(folder / TRACKER, tracker_text(output.iteration))
    return copied, carried


def _keep_passthrough(prepared: Prepared, folder: Path, output: Output) -> None:
    """Tensors that Megatron has no place for wait in a safetensors file of their own."""
    tensors = [prepared.source.tensors[name] for name, _ in prepared.plan.coverage.passthrough]
    if not tensors:
        return
    new = [_same(tensor) for tensor in tensors]
    layout = layout_safetensors(new, file_of={tensor.name: PASSTHROUGH for tensor in new})
    fills = _identity(tensors, layout)
    _run(fills, replace(layout, small_files={}), prepared.source.root, folder, output, None)


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
    carried = _carry(reference.root, reference.files, folder)
    _write(folder / "config.json", _config_bytes(prepared))
    _write(folder / MANIFEST, manifest(prepared, layout))
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


def _carry(root: Path | None, files: Sequence[str], folder: Path) -> tuple[str, ...]:
    if root is None:
        return ()
    for name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(root / name, target)
        except OSError as error:
            message = f"`{name}` cannot be carried along: {error.strerror}"
            raise ConvertError(Diagnostic("MS724", message, where=str(root))) from None
    return tuple(files)


def _config_bytes(prepared: Prepared) -> bytes:
    """config.json as it was, or in its dialect with what the user changed."""
    reference = prepared.reference
    if prepared.written_config == reference.config and reference.config_text is not None:
        return reference.config_text.encode()
    return write_config(prepared.written_config, like=reference.config_text)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        message = f"`{path.name}` cannot be written: {error.strerror}"
        raise ConvertError(Diagnostic("MS704", message, where=str(path.parent))) from None
