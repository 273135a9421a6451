"""How the tensors of a torch_dist checkpoint are cut into chunks, so that a rank reads what it owns and little else.

A reader of torch_dist reads whole chunks. A rank whose part of a weight is an eighth reads eight times too much where
the weight is one chunk, and exactly its part where the chunks are cut as ranks own them: along the dimension that is
split, each segment by itself where ranks hold their part of each. Ranks at every divisor of that size read several
whole chunks. Experts have chunks of their own in any case, so expert parallelism of every size reads no byte too much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mapspec.boxes import intersect
from mapspec.errors import SpecError
from mapspec.ranks import Shard, local_region, owns
from mapspec.regions import compose
from mapspec.table import Row, RuleForms
from mapspec.tensors import Box, box_shape, itemsize, numel, whole

__all__ = ["Cuts", "chunk_boxes", "chunk_count", "read_by_rank"]


@dataclass(frozen=True, slots=True)
class Cuts:
    """The parallel sizes that chunks are cut for.

    Attributes:
        tensor, expert_tensor: tensor parallel size, and that of the experts.
        expert: expert parallel size. It cuts nothing, because experts have chunks of their own.
        strict: whether a size that does not divide what it cuts is an error; otherwise a divisor of it is used.
        least_bytes: chunks are not cut smaller than this. Each costs a reader a request and some 1.5 kB of framing and
            metadata; what a rank reads too much of a tensor that is this small is nothing.
    """

    tensor: int = 8
    expert_tensor: int = 1
    expert: int = 1
    strict: bool = False
    least_bytes: int = 256 << 10

    @property
    def rank(self) -> Shard:
        """The first rank of a model of these sizes."""
        return Shard(tp_size=self.tensor, ep_size=self.expert, etp_rank=0, etp_size=self.expert_tensor)

    def size(self, split: str | None) -> int:
        """How many parts a dimension with that `split` should be cut into."""
        return 1 if split is None else self.expert_tensor if split == "expert_tensor" else self.tensor


def chunk_boxes(forms: RuleForms, cuts: Cuts | None) -> tuple[tuple[Box, ...], ...]:
    """Boxes of the chunks of each stored tensor, leading axes left out; they tile it.

    Raises:
        SpecError: MS408 where a strict size does not divide what it cuts.
    """
    uncut = tuple((whole(form.slot.shape),) for form in forms.surfaces["stored"])
    split = next((dim.split for dim in forms.rule.dims or () if dim.split is not None), None)
    wanted = cuts.size(split) if cuts is not None else 1
    if cuts is None or wanted == 1:
        return uncut
    item = itemsize(forms.rule.dtype)
    chosen: dict[int, tuple[Box, ...]] = {}
    for parts in (n for n in range(wanted, 1, -1) if wanted % n == 0):
        try:
            cut = _cut(forms, parts)
        except SpecError:
            if cuts.strict and parts == wanted:
                raise
            continue
        for number, boxes in enumerate(cut):
            if min(numel(box_shape(box)) for box in boxes) * item >= cuts.least_bytes:
                chosen.setdefault(number, boxes)
    return tuple(chosen.get(number, boxes) for number, boxes in enumerate(uncut))


def _cut(forms: RuleForms, parts: int) -> tuple[tuple[Box, ...], ...]:
    held: list[list[Box]] = [[] for _ in forms.surfaces["stored"]]
    for rank in range(parts):
        for number, box in _owned(forms, Shard(rank, parts, etp_rank=rank, etp_size=parts)):
            held[number].append(box)
    return tuple(tuple(sorted(boxes)) for boxes in held)


def _owned(forms: RuleForms, shard: Shard) -> list[tuple[int, Box]]:
    """The boxes of the stored tensors that a rank's parameter is made of, leading axes left out."""
    pieces = compose(forms.region("stored", "megatron"), local_region(forms, shard))
    return [(piece.left, piece.left_box) for piece in pieces]


def chunk_count(rows: Iterable[Row], cuts: Cuts | None) -> int:
    """How many chunks the stored tensors of the rows are cut into.

    Raises:
        SpecError: MS408 where a strict size does not divide what it cuts.
    """
    known: dict[int, tuple[RuleForms, int]] = {}
    count = 0
    for row in rows:
        if id(row.forms) not in known:
            known[id(row.forms)] = (row.forms, sum(len(boxes) for boxes in chunk_boxes(row.forms, cuts)))
        count += known[id(row.forms)][1]
    return count


def read_by_rank(rows: Iterable[Row], cuts: Cuts | None, shard: Shard) -> tuple[int, int]:
    """Bytes that a rank owns, and bytes of the chunks that it has to read for them.

    Raises:
        SpecError: MS408 where a parallel size does not divide what it cuts.
    """
    known: dict[int, tuple[RuleForms, int, int]] = {}
    owned = read = 0
    for row in rows:
        if not owns(row, shard):
            continue
        if id(row.forms) not in known:
            known[id(row.forms)] = (row.forms, *_read(row.forms, cuts, shard))
        _, mine, all_ = known[id(row.forms)]
        owned, read = owned + mine, read + all_
    return owned, read


def _read(forms: RuleForms, cuts: Cuts | None, shard: Shard) -> tuple[int, int]:
    boxes = chunk_boxes(forms, cuts)
    wanted = _owned(forms, shard)
    item = itemsize(forms.rule.dtype)
    chunks = [
        box for n, form in enumerate(boxes) for box in form if any(n == m and _meet(box, mine) for m, mine in wanted)
    ]
    return (sum(numel(box_shape(box)) for _, box in wanted) * item, sum(numel(box_shape(b)) for b in chunks) * item)


def _meet(a: Box, b: Box) -> bool:
    return intersect(a, b) is not None
