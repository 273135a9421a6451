"""Two rows of one Megatron name, before and after: what differs, as (class, before, after)."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from mapspec.diff.rules import Sides, Signature, sources
from mapspec.diff.words import (
    cut_of,
    hf_shapes,
    in_keys,
    keyed,
    made_of,
    names_of,
    order_of,
    policy_of,
    shapes_of,
    stored_as,
)
from mapspec.table import Row

__all__ = ["Difference", "Half", "differences", "differences_of_rules"]

type Difference = tuple[str, str, str]
"""(class, before, after); the latter two in words."""


@dataclass(frozen=True, slots=True)
class Half:
    """A row of one side, with its names, and with what all rows of its rule have in common."""

    row: Row
    sides: Sides
    signature: Signature


def differences(old: Half, new: Half, old_hf: Set[str], new_hf: Set[str]) -> Iterator[Difference]:
    """What the rows are made of, and how they are stored; `differences_of_rules` has the rest.

    Args:
        old_hf, new_hf: every Hugging Face tensor that rules take which differ between the sides.
    """
    one, other, a, b = old.sides, new.sides, old.signature, new.signature
    if one.hf == other.hf and (a.hf_region, a.hf_shapes) == (b.hf_region, b.hf_shapes):
        pass
    elif {n for n, _ in one.hf} != {n for n, _ in other.hf}:
        yield _sourced(old, new, old_hf, new_hf)
    elif a.shape != b.shape:
        pass  # said already
    elif sorted(zip(names_of(one.hf), a.hf_shapes, strict=True)) != sorted(
        zip(names_of(other.hf), b.hf_shapes, strict=True)
    ):
        yield "DC204", shapes_of(a), shapes_of(b)
    elif sources(one, a) != sources(other, b):
        yield _moved(old, new)
    if one.stored != other.stored or (a.stored_shapes, a.stored_region) != (b.stored_shapes, b.stored_region):
        yield from _stored(old, new)


def _sourced(old: Half, new: Half, old_hf: Set[str], new_hf: Set[str]) -> Difference:
    """It is made of other Hugging Face tensors."""
    was, now = ({n for n, _ in half.sides.hf} for half in (old, new))
    a, b = old.signature, new.signature
    before, after = made_of(old.row), made_of(new.row)
    if now <= old_hf and was <= new_hf and a.hf_shapes == b.hf_shapes:
        # Every name is there on both sides and fits as before: nobody notices.
        same_rule = _identity(old) == _identity(new) and before == after
        return "DC104" if same_rule else "DC101", before, after
    if a.hf_shapes == b.hf_shapes:
        return "DC202", before, after
    return "DC202", f"{before} {hf_shapes(a)}", f"{after} {hf_shapes(b)}"


def _moved(old: Half, new: Half) -> Difference:
    """The same Hugging Face tensors, and other elements of them."""
    one, other = old.sides, new.sides
    before, after = made_of(old.row), made_of(new.row)
    if [lead for _, lead in one.hf] != [lead for _, lead in other.hf]:
        return "DC104", before, after
    if before != after and len(one.hf) > 1:
        return "DC101", before, after
    return "DC102", order_of(old.row), order_of(new.row)


def _stored(old: Half, new: Half) -> Iterator[Difference]:
    """Other tensors of torch_dist, or other elements of them."""
    one, other, a, b = old.sides, new.sides, old.signature, new.signature
    keys = names_of(one.stored), names_of(other.stored)
    if set(keys[0]) != set(keys[1]):
        yield "DC203", stored_as(old.row, one), stored_as(new.row, other)
        return
    if a.shape != b.shape:
        return  # said of the whole tensor
    if keys[0] == keys[1] and a.stored_shapes != b.stored_shapes:
        before, after = (f"in torch_dist {' + '.join(str(list(x)) for x in s.stored_shapes)}" for s in (a, b))
        yield "DC204", before, after
        return
    shapes = [dict(zip(k, s.stored_shapes, strict=True)) for k, s in zip(keys, (a, b), strict=True)]
    if shapes[0] != shapes[1]:
        before, after = (f"in torch_dist {keyed(x)}" for x in shapes)
        yield "DC204", before, after
        return
    places = [
        sorted((s.stored[n][0], s.stored[n][1] + box, right) for n, box, right in sign.stored_region)
        for s, sign in ((one, a), (other, b))
    ]
    if places[0] != places[1]:
        moved = [lead for _, lead in one.stored] != [lead for _, lead in other.stored]
        yield "DC104" if moved else "DC101", in_keys(old.row), in_keys(new.row)


def differences_of_rules(a: Signature, b: Signature) -> Iterator[Difference]:
    """What differs between all rows of two rules beyond the names and order of what they are made of."""
    if a == b:
        return
    if a.shape != b.shape:
        yield "DC204", shapes_of(a), shapes_of(b)
    if [(d, g) for d, g, _ in a.split] != [(d, g) for d, g, _ in b.split] or a.parallel != b.parallel:
        yield "DC205", cut_of(a), cut_of(b)
    elif a.split != b.split and a.shape == b.shape and cut_of(a) != cut_of(b):
        yield "DC105", cut_of(a), cut_of(b)
    if (a.dtype, a.accepts, a.keep) != (b.dtype, b.accepts, b.keep):
        looser = (a.keep and not b.keep) or bool(set(b.accepts) - set(a.accepts)) or a.dtype != b.dtype
        yield "DC106" if looser else "DC217", policy_of(a), policy_of(b)
    if a.pads != b.pads:
        yield "DC204", "may be padded" if a.pads else "never padded", "may be padded" if b.pads else "never padded"


def _identity(half: Half) -> tuple[str, str]:
    return half.row.rule.block, half.row.rule.key
