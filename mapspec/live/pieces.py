"""A rank's parameter laid over the tensors of a Hugging Face checkpoint, be it read or written.

`compose(hf -> megatron, megatron -> local)` gives boxes; `pieces_of` lays them over files. The same pieces serve both
directions: a run of bytes in a file and its place in a block of the parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mapspec.copying.pieces import BoxIndex, Piece, dense_strides, pieces_of
from mapspec.fill import Part
from mapspec.ranks import Shard, local_region, local_shape
from mapspec.regions import Piece as Pair
from mapspec.regions import compose
from mapspec.table import Row, RuleForms
from mapspec.tensors import Box, StoredTensor, box_shape, itemsize, numel, whole

__all__ = ["Local", "blocks_of"]


class Local:
    """Regions between Hugging Face tensors and the parameters of one shard, each rule's computed once."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._pairs: dict[int, tuple[RuleForms, tuple[Pair, ...]]] = {}
        self._zeros: dict[int, tuple[Box, ...]] = {}
        self._indexes: dict[int, tuple[StoredTensor, BoxIndex]] = {}

    def pairs(self, forms: RuleForms) -> tuple[Pair, ...]:
        """Boxes of the Hugging Face tensors (left, without leading axes) and of the parameter (right)."""
        known = self._pairs.get(id(forms))
        if known is None:
            pairs = compose(forms.region("hf", "megatron"), local_region(forms, self.shard))
            known = self._pairs[id(forms)] = (forms, pairs)
            self._zeros[id(forms)] = tuple(
                p.right_box for p in compose(_padding(forms), local_region(forms, self.shard))
            )
        return known[1]

    def zeros(self, forms: RuleForms) -> tuple[Box, ...]:
        """Boxes of the parameter that vocabulary padding adds."""
        self.pairs(forms)
        return self._zeros[id(forms)]

    def pieces(self, row: Row, tensors: Mapping[str, StoredTensor]) -> list[Piece]:
        """Where the elements of the row's parameter lie in files; without a file where they are padding.

        Args:
            tensors: the row's Hugging Face tensors, at least, by name.

        Raises:
            ConvertError: MS706.
        """
        names, leads = row.names("hf"), row.leads("hf")
        parts = [
            Part(pair.right_box, tensors[names[pair.left]], leads[pair.left] + pair.left_box)
            for pair in self.pairs(row.forms)
        ]
        parts += [Part(box, None, ()) for box in self.zeros(row.forms)]
        return pieces_of(row.megatron, whole(local_shape(row.forms, self.shard)), parts, self._indexes)


def _padding(forms: RuleForms) -> tuple[Pair, ...]:
    """The rows of the canonical tensor that only padding has, paired with themselves."""
    shape = forms.surfaces["megatron"][0].shape
    for axis, dim in enumerate(forms.rule.dims or ()):
        if dim.padded is not None and dim.padded > dim.size:
            box = tuple((dim.size, n) if i == axis else (0, n) for i, n in enumerate(shape))
            return (Pair(0, box, 0, box),)
    return ()


def blocks_of(box: Box, dtype: str, most: int) -> Iterator[Box]:
    """The box in row-major order, in blocks of at most `most` bytes (or one element)."""
    shape = box_shape(box)
    if numel(shape) == 0:
        return
    strides = dense_strides(shape, itemsize(dtype))
    axis = next((i for i, stride in enumerate(strides) if stride <= most), len(shape) - 1)
    if not shape or numel(shape) * itemsize(dtype) <= most:
        yield box
        return
    step = max(1, most // strides[axis])
    for outer in _points(box[:axis]):
        start, stop = box[axis]
        for begin in range(start, stop, step):
            yield (*outer, (begin, min(begin + step, stop)), *box[axis + 1 :])


def _points(box: Sequence[tuple[int, int]]) -> Iterator[Box]:
    """Every position of the box as a box of one element."""
    if not box:
        yield ()
        return
    for n in range(*box[0]):
        for rest in _points(box[1:]):
            yield ((n, n + 1), *rest)
