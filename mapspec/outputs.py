"""Everything that a conversion will write, decided before the first byte of it is.

Files come in three groups, in this order: data files, what travels along and explains them, and last the files by which
readers know a checkpoint (`.metadata` and the tracker, or `config.json`). A folder that lacks something is therefore
taken for a checkpoint by nobody, even where somebody looks into it before it is published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xxhash import xxh3_128

from mapspec.beside import config_bytes
from mapspec.fill import Fill, Part
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
from mapspec.nogc import gc_paused
from mapspec.prepare import Prepared
from mapspec.sources import CARRIED, MANIFEST, PASSTHROUGH
from mapspec.tensors import Chunk, StoredTensor, itemsize, numel, whole

__all__ = ["Copy", "Output", "Work", "file_count", "lay_out"]

_LEAST_FILES = 4
_MAX_DISTCP_BYTES = 4 << 30
# By these Megatron-Core knows its checkpoints.
_MARKS = ("metadata.json", ".metadata")


@dataclass(frozen=True, slots=True)
class Output:
    """How the result shall lie on disk.

    Attributes:
        destination: folder to make, or the `RemotePath` of one (see `mapspec.io.remote.located`).
        overwrite: whether an existing checkpoint there may be replaced.
        max_shard_bytes: bound for a safetensors shard where no reference gives the layout.
        iteration: number of the `iter_*` folder; `None` for `release`.
        threads: workers of each process; `None` for as many as source and destination are used best with.
        fsync: whether everything is on disk before the result appears.
        resume: go on where an earlier run was cut off, if there is one.
        recheck: with `resume`, read the finished files again and compare digests.
        keep: whether finished files are kept after an error, for `resume`.
    """

    destination: Path
    overwrite: bool = False
    max_shard_bytes: int | None = 5 * 10**9
    iteration: int | None = 0
    threads: int | None = None
    fsync: bool = True
    resume: bool = False
    recheck: bool = False
    keep: bool = True
    max_memory: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """Data files in one folder of the result (`""` for the top), and what they are filled with."""

    folder: str
    layout: Layout
    fills: Sequence[Fill]

    def path(self, file: str) -> str:
        """A file of the layout, relative to the result."""
        return f"{self.folder}/{file}".lstrip("/")


@dataclass(frozen=True, slots=True)
class Work:
    """What a conversion writes. Paths are relative to the result.

    Attributes:
        copies: data files; the first has the tensors of the plan.
        carried: folder that side files are copied to.
        beside: small files that explain the data.
        manifest: `mapspec.json`, which is written when digests are known.
        last: small files that make a reader take the folder for a checkpoint, in the order of writing.
    """

    copies: tuple[Copy, ...]
    carried: str
    beside: Mapping[str, bytes]
    manifest: str
    last: Mapping[str, bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every data file."""
        return {copy.path(file): size for copy in self.copies for file, size in copy.layout.file_sizes.items()}

    @property
    def tensors(self) -> int:
        """Number of tensors in the data files of the plan."""
        return len(self.copies[0].layout.tensors)

    def digest(self) -> str:
        """Equal for works that write equal files from equal sources."""
        digest = xxh3_128()  # there are kilobytes of framing for each tensor
        for copy in self.copies:
            for file, size in sorted(copy.layout.file_sizes.items()):
                digest.update(f"{copy.path(file)} {size}\n".encode())
                for framing in copy.layout.framing.get(file, ()):
                    digest.update(b"%d %d " % (framing.offset, len(framing.data)))
                    digest.update(framing.data)
        for name, data in (*self.beside.items(), *self.last.items()):
            digest.update(f"{name} {len(data)} ".encode())
            digest.update(data)
        return digest.hexdigest()


def file_count(prepared: Prepared, threads: int | None, world: int) -> int:
    """How many torch_dist files to write: one for each thread of each rank, none too large, equally many per rank.

    Args:
        threads: workers of a rank, if that was said.
        world: number of ranks.
    """
    nbytes = sum(numel(target.shape) * itemsize(target.dtype) for target in prepared.plan.targets)
    wanted = max(_LEAST_FILES, (threads or 1) * world, -(-nbytes // _MAX_DISTCP_BYTES))
    return -(-wanted // world) * world


@gc_paused()
def lay_out(prepared: Prepared, output: Output, files: int) -> Work:
    """Decide what to write. Deterministic: ranks that call this with equal arguments hold equal works.

    Args:
        files: number of torch_dist data files; fewer where there are fewer chunks.
    """
    return _megatron(prepared, output, files) if prepared.to == "megatron" else _hf(prepared, output)


def _megatron(prepared: Prepared, output: Output, files: int) -> Work:
    plan, reference = prepared.plan, prepared.reference
    home = iteration_folder(output.iteration)
    stub = extra_state_stub()
    layout = layout_torch_dist(
        plan.targets,
        objects=dict.fromkeys(plan.table.objects, stub),
        files=files,
    )
    copies = [Copy(home, layout, tuple(plan.fills(layout)))]
    # Tensors that Megatron has no place for wait in a safetensors file of their own.
    kept = [prepared.source.tensors[name] for name, _ in plan.coverage.passthrough]
    if kept:
        new = [_same(tensor) for tensor in kept]
        own = layout_safetensors(new, file_of={tensor.name: PASSTHROUGH for tensor in new})
        copies.append(Copy(f"{home}/{CARRIED}", own, tuple(_identity(kept, own))))
    index = {"metadata": {}, "weight_map": dict(reference.shard_of)}
    small = dict(layout.small_files)
    last = {f"{home}/{name}": small.pop(name) for name in _MARKS}
    arguments = prepared.run_config.megatron_lm if prepared.run_config is not None else None
    beside = {
        f"{home}/{CARRIED}/config.json": config_bytes(reference, prepared.written_config),
        f"{home}/{CARRIED}/{INDEX_FILE}": json.dumps(index).encode(),
        f"{home}/common.pt": common_pt(common_state_for_weights(output.iteration or 0, args=arguments)),
        **{f"{home}/{name}": data for name, data in small.items()},
    }
    if prepared.run_config is not None and prepared.run_config.text is not None:
        beside[f"{home}/run_config.yaml"] = prepared.run_config.text.encode()
        beside[f"{home}/train_state.pt"] = train_state_pt(output.iteration or 0)
        last["latest_train_state.pt"] = train_state_pt(output.iteration or 0)
    last[TRACKER] = tracker_text(output.iteration)
    return Work(tuple(copies), f"{home}/{CARRIED}", beside, f"{home}/{MANIFEST}", last)


def _hf(prepared: Prepared, output: Output) -> Work:
    plan, reference = prepared.plan, prepared.reference
    kept = _passthrough(prepared)
    new = [*plan.targets, *(_same(tensor) for tensor in kept)]
    order = {name: at for at, name in enumerate(reference.shard_of)}
    if order:
        new.sort(key=lambda tensor: (order.get(tensor.name, len(order)), tensor.name))
    layout = layout_safetensors(new, max_shard_bytes=output.max_shard_bytes, file_of=reference.shard_of or None)
    copy = Copy("", layout, (*plan.fills(layout), *_identity(kept, layout)))
    last = {"config.json": config_bytes(reference, prepared.written_config)}
    return Work((copy,), "", dict(layout.small_files), MANIFEST, last)


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
