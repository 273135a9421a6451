"""Rules whose names end in `**`: the checkpoint says which tensors there are, and of what shape.

A config cannot tell what a subtree holds that both sides keep alike (a sound encoder taken over as it is). Such a rule
takes every tensor below its name that nothing else accounts for, whole and uncut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from mapspec.bind import Bound, BoundDim, BoundRule
from mapspec.tensors import StoredTensor

__all__ = ["closed_rules"]


def closed_rules(
    bound: Bound, surface: str, tensors: Mapping[str, StoredTensor], claimed: Collection[str]
) -> Iterator[BoundRule]:
    """A rule of its own for every tensor that an open rule takes.

    Args:
        bound: the bound spec.
        surface: `hf` or `stored`: the side that `tensors` are on.
        tensors: what the checkpoint holds.
        claimed: names that other rules map. Names that the spec passes through or ignores are left alone too.
    """
    rules = [rule for rule in bound.rules if rule.dims is None]
    if not rules:
        return
    listed = bound.ignore_megatron if surface == "stored" else (*bound.passthrough, *bound.ignore_hf)
    for name, tensor in tensors.items():
        if name in claimed or any(pattern.match(name) for pattern, _, _ in listed):
            continue
        for rule in rules:
            side = rule.hf[0] if surface == "hf" else rule.stored
            holes = side.pattern.captures(name)
            if holes is not None and any(_agree(position, holes) for position in rule.positions):
                dims = tuple(BoundDim(str(n), n, {"": n}, ("",)) for n in tensor.shape)
                yield replace(rule, dims=dims, dtype=tensor.dtype, positions=(holes,))


def _agree(position: Mapping[str, int | str], holes: Mapping[str, int | str]) -> bool:
    return all(holes.get(axis, index) == index for axis, index in position.items())
