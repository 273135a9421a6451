"""The parameters of one rank of the Megatron-Core model, from the mapping alone: no CUDA, no torch, nothing is built.

What a rank holds, as Megatron-Core's HybridModel lays it out (0.17 to 0.20):

* first pipeline stage: the embedding, and encoders and projectors where the model has any; last: final norm, output
  layer, multi-token prediction blocks, and with those a copy of the embedding, which feeds them;
* decoder layers are numbered from 0 on every stage, experts from 0 on every expert-parallel rank;
* a tied output layer has no weight of its own where the embedding is on the same stage, and holds a copy of the
  embedding otherwise;
* tensor and expert tensor parallelism cut as `mapspec.ranks` says.

Biases and norms that a config asks for and no release builds are listed too: the mapping would have to place them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.provider.pattern import HybridPattern
from mapspec.ranks import WHOLE, Shard, local_name, local_shape, owns
from mapspec.table import Row, Table
from mapspec.tensors import itemsize, numel

__all__ = ["Cut", "LocalTensor", "local_inventory", "pipeline_stages"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How parallelism cuts a parameter.

    Attributes:
        axis: the dimension that is cut.
        group: `tensor` or `expert_tensor`.
        segments: segments of that dimension that are cut each by itself; empty where it is cut as a whole.
    """

    axis: int
    group: str
    segments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """A parameter (or persistent buffer) of one rank.

    Attributes:
        name: its name in the rank's model.
        shape: its shape there.
        dtype: as checkpoints store it. Megatron-Core makes A_log and D in fp32 until its mixed-precision wrapper casts.
        cut: how it is cut from the whole tensor, `None` where every rank has all of it.
        global_name: canonical tensor whose values it holds: global layer and expert numbers, no parallelism. For a
            copy of the embedding on the last stage that is the embedding.
        global_shape: shape of the canonical tensor.
        pattern: `global_name` with holes, the same for all layers and experts.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    cut: Cut | None
    global_name: str
    global_shape: tuple[int, ...]
    pattern: str

    @property
    def numel(self) -> int:
        """Number of elements on this rank."""
        return numel(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on this rank, in the stored dtype."""
        return self.numel * itemsize(self.dtype)


# Module names of HybridModel, behind the prefix that a model of several parts has before them.
_LAYER = re.compile(r"(decoder\.layers\.)(0|[1-9][0-9]*)(\..+)")
_PLACES = {
    "first": re.compile(r"embedding\."),
    "last": re.compile(r"(?:decoder\.(?:final_norm|final_layernorm)|output_layer)\."),
    "mtp": re.compile(r"mtp\."),
}
_EMBEDDING = "embedding.word_embeddings.weight"


def _language_prefix(table: Table) -> str:
    """What stands before the names of the language model, which the word embeddings tell."""
    names = (row.megatron for row in table.rows)
    return next((name.removesuffix(_EMBEDDING) for name in names if name.endswith(_EMBEDDING)), "")


def local_inventory(
    table: Table,
    shard: Shard = WHOLE,
    *,
    pp_layers: range | None = None,
    first_stage: bool = True,
    last_stage: bool = True,
) -> tuple[LocalTensor, ...]:
    """Names and shapes of the parameters and persistent buffers of one rank, in the order of the mapping's rules.

    Args:
        table: the mapping bound to a config; its flavours decide the names (norms, experts, convolution).
        shard: the rank's place in the tensor-, expert- and expert-tensor-parallel groups.
        pp_layers: global numbers of the decoder layers on the rank's pipeline stage, see `pipeline_stages`; `None`
            for all.
        first_stage, last_stage: whether the stage is the first, the last; both are true without pipelining.

    Raises:
        SpecError: MS408 where a parallel size does not divide what it cuts, MS450 for a tensor that belongs to no
            known stage, MS451 for layers that the model does not have.
    """
    prefix = _language_prefix(table)
    staged = pp_layers is not None or not (first_stage and last_stage)
    if pp_layers is not None:
        _check_layers(table, pp_layers, prefix)
    predicts = last_stage and any(_PLACES["mtp"].match(row.megatron.removeprefix(prefix)) for row in table.rows)
    out = []
    for row in table.rows:
        tied_to = table.tied.get(row.megatron)
        if tied_to is not None and first_stage and last_stage:
            continue
        stage = (prefix, pp_layers, first_stage, last_stage, predicts)
        if not owns(row, shard) or (staged and not _on_stage(row, *stage)):
            continue
        name = local_name(row, shard)
        found = _LAYER.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if found is not None and pp_layers is not None:
            name = f"{prefix}{found[1]}{int(found[2]) - pp_layers.start}{found[3]}"
        shape = local_shape(row.forms, shard)
        source = table.by_megatron[tied_to] if tied_to is not None else row
        pattern = str(source.rule.megatron.pattern)
        out.append(LocalTensor(name, shape, row.rule.dtype, _cut(row), source.megatron, row.shape, pattern))
    return tuple(out)


def _on_stage(row: Row, prefix: str, layers: range | None, first: bool, last: bool, predicts: bool) -> bool:
    if not row.megatron.startswith(prefix):
        return first  # encoders and projectors
    name = row.megatron.removeprefix(prefix)
    found = _LAYER.fullmatch(name)
    if found is not None:
        return layers is None or int(found[2]) in layers
    for place, pattern in _PLACES.items():
        if pattern.match(name):
            return first or predicts if place == "first" else last
    message = f"`{row.megatron}` belongs to no pipeline stage that is known"
    help_ = "leave pipeline parallelism out, or add the module to mapspec.inventory"
    raise SpecError(Diagnostic("MS450", message, row.rule.span, help=help_))


def _check_layers(table: Table, layers: range, prefix: str) -> None:
    names = (row.megatron.removeprefix(prefix) for row in table.rows if row.megatron.startswith(prefix))
    numbers = {int(found[2]) for name in names if (found := _LAYER.fullmatch(name))}
    absent = [layer for layer in layers if layer not in numbers]
    if absent or layers.step != 1:
        have = f"layers 0 to {max(numbers)}" if numbers else "no layers"
        message = f"a pipeline stage with layers {layers.start} to {layers.stop - 1}, but the model has {have}"
        raise SpecError(Diagnostic("MS451", message, help="stages follow one another; see the layer pattern"))


def _cut(row: Row) -> Cut | None:
    for axis, dim in enumerate(row.rule.dims or ()):
        if dim.split is not None:
            return Cut(axis, dim.split, tuple(dim.sizes) if dim.split_by == "segment" else ())
    return None


def pipeline_stages(
    pattern: HybridPattern, size: int, first: int | None = None, last: int | None = None
) -> tuple[range, ...]:
    """The decoder layers of every pipeline stage, by global number.

    Args:
        pattern: the layer pattern; with `|` its stages are taken as they are.
        size: number of stages.
        first, last: layers on the first and the last stage where those differ from the rest
            (`num_layers_in_first_pipeline_stage`, `num_layers_in_last_pipeline_stage`).

    Raises:
        SpecError: MS430 where the layers cannot be dealt out evenly, MS433 where the pattern has other stages.
    """
    if len(pattern.stages) > 1:
        if len(pattern.stages) != size:
            message = f"the layer pattern has {len(pattern.stages)} stages between `|`, {size} were asked for"
            raise SpecError(Diagnostic("MS433", message, help=f"write {size - 1} `|` in the pattern"))
        return tuple(_ranges(len(stage) for stage in pattern.stages))
    ends = (first is not None) + (last is not None)
    left, middle = len(pattern.main) - (first or 0) - (last or 0), size - ends
    if left < 0 or middle < 0 or (left % middle if middle else left):
        message = f"{len(pattern.main)} layers cannot be dealt out to {size} pipeline stages"
        help_ = "choose a size that divides them, or write the stages with `|` into the pattern"
        raise SpecError(Diagnostic("MS430", message, help=help_))
    counts = [left // middle] * middle if middle else []
    return tuple(_ranges([*([first] if first is not None else []), *counts, *([last] if last is not None else [])]))


def _ranges(counts: Iterator[int] | list[int]) -> Iterator[range]:
    start = 0
    for count in counts:
        yield range(start, start + count)
        start += count
