"""What a rank owns: the canonical tensor cut over tensor- and expert-parallel ranks, as pieces.

Sources of the rules: Megatron-Core's column- and row-parallel linears cut one dimension in equal contiguous parts;
its Mamba mixer cuts every segment of in_proj and of the convolution by itself, so that a rank holds
`[z_t; x_t; B_t; C_t; dt_t]`; expert-parallel rank k of n owns experts `k*E/n` up to `(k+1)*E/n`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mapspec.bind import BoundDim
from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.regions import Piece
from mapspec.table import Row, RuleForms
from mapspec.tensors import whole

__all__ = ["WHOLE", "Shard", "local_name", "local_region", "local_shape", "owns"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank's place in the tensor-, expert- and expert-tensor-parallel groups.

    `etp_size` of `None` means that experts are cut like everything else, over `tp_size`.
    """

    tp_rank: int = 0
    tp_size: int = 1
    ep_rank: int = 0
    ep_size: int = 1
    etp_rank: int | None = None
    etp_size: int | None = None

    def group(self, split: str | None) -> tuple[int, int]:
        """(rank, size) in the group that cuts a dimension with that `split`."""
        if split is None:
            return 0, 1
        if split == "expert_tensor" and self.etp_size is not None:
            return self.etp_rank or 0, self.etp_size
        return self.tp_rank, self.tp_size


WHOLE = Shard()


def _cut(forms: RuleForms) -> tuple[int, BoundDim] | None:
    """The dimension that parallelism cuts, with its number."""
    for i, dim in enumerate(forms.rule.dims or ()):
        if dim.split is not None:
            return i, dim
    return None


def local_shape(forms: RuleForms, shard: Shard) -> tuple[int, ...]:
    """Shape of the rank's parameter.

    Raises:
        SpecError: MS408 where the parallel size does not divide what it cuts.
    """
    shape = list(forms.surfaces["megatron"][0].shape)
    cut = _cut(forms)
    if cut is None:
        return tuple(shape)
    axis, dim = cut
    _, size = shard.group(dim.split)
    parts = dim.sizes if dim.split_by == "segment" else {dim.name: shape[axis]}
    for name, extent in parts.items():
        if extent % size:
            group = "expert tensor" if dim.split == "expert_tensor" else "tensor"
            works = [n for n in range(1, min(extent, 64) + 1) if all(e % n == 0 for e in parts.values())]
            what = f"segment `{name}` of `{dim.name}`" if dim.split_by == "segment" else f"`{dim.name}`"
            message = f"{group} parallel size {size} does not divide {what}, which has {extent} rows"
            help_ = f"sizes that work here: {', '.join(map(str, works))}"
            raise SpecError(Diagnostic("MS408", message, forms.rule.span, help=help_))
    shape[axis] //= size
    return tuple(shape)


def local_region(forms: RuleForms, shard: Shard) -> tuple[Piece, ...]:
    """Pieces from the canonical tensor (left) to the rank's parameter (right)."""
    shape = forms.surfaces["megatron"][0].shape
    local = local_shape(forms, shard)
    cut = _cut(forms)
    if cut is None:
        return (Piece(0, whole(shape), 0, whole(shape)),)
    axis, dim = cut
    rank, size = shard.group(dim.split)
    out = []
    start = local_start = 0
    runs = [dim.sizes[s] for s in dim.order] if dim.split_by == "segment" else [shape[axis]]
    for extent in runs:
        part = extent // size
        left, right = list(whole(shape)), list(whole(local))
        left[axis] = (start + rank * part, start + (rank + 1) * part)
        right[axis] = (local_start, local_start + part)
        if part:
            out.append(Piece(0, tuple(left), 0, tuple(right)))
        start += extent
        local_start += part
    return tuple(out)


def _expert(row: Row) -> tuple[str, int, int] | None:
    """(axis, index, size) of the row on the axis that expert parallelism deals out."""
    for name, index in row.position.items():
        axis = row.rule.axes[name]
        if axis.parallel == "expert":
            return name, index, axis.size
    return None


def owns(row: Row, shard: Shard) -> bool:
    """Whether the rank's expert-parallel group member holds the row. Rows that are no experts are held by all."""
    expert = _expert(row)
    if expert is None:
        return True
    _, index, size = expert
    per_rank = _experts_per_rank(row, size, shard)
    return index // per_rank == shard.ep_rank


def local_name(row: Row, shard: Shard) -> str:
    """Name of the row's parameter on the rank that owns it: experts count from 0 on every rank."""
    expert = _expert(row)
    if expert is None:
        return row.megatron
    name, index, size = expert
    position = {**row.position, name: index % _experts_per_rank(row, size, shard)}
    return row.rule.megatron.pattern.fill(position)


def _experts_per_rank(row: Row, experts: int, shard: Shard) -> int:
    if experts % shard.ep_size:
        works = [n for n in range(1, min(experts, 128) + 1) if experts % n == 0]
        message = f"expert parallel size {shard.ep_size} does not divide {experts} experts"
        help_ = f"sizes that work here: {', '.join(map(str, works))}"
        raise SpecError(Diagnostic("MS408", message, row.rule.span, help=help_))
    return experts // shard.ep_size
