"""What `mapspec keys` prints."""

from __future__ import annotations

from mapspec.amounts import human_bytes
from mapspec.keys import KeyList, group_keys
from mapspec.render.grid import SIDES, as_json, draw_grid
from mapspec.tensors import numel

__all__ = ["render_keys"]


def render_keys(listing: KeyList, format: str = "text", *, full: bool = False) -> str:
    """The tensors of a checkpoint, one line per pattern (with `full`: per tensor), and their sum."""
    groups = group_keys(listing.tensors, full=full)
    if format == "json":
        tensors = [
            {"name": g.pattern, "shape": list(g.shape), "dtype": g.dtype, "count": g.count, "nbytes": g.nbytes}
            for g in groups
        ]
        return as_json("keys", {"checkpoint": listing.kind, "left_out": listing.left_out, "tensors": tensors})
    total = sum(t.nbytes for t in listing.tensors.values())
    elements = sum(numel(t.shape) for t in listing.tensors.values())
    count = len(listing.tensors)
    noun = "tensor" if count == 1 else "tensors"
    last = f"{SIDES[listing.kind]}: {count:,} {noun}, {elements:,} elements, {human_bytes(total)}"
    if listing.left_out:
        last += f"; {listing.left_out:,} keys of optimizer state left out"
    if format == "md":
        rows = [(g.pattern, _shape(g.shape), g.dtype, f"{g.count:,}") for g in groups]
        return f"{draw_grid(('name', 'shape', 'dtype', 'tensors'), rows, 'md')}\n\n{last}"
    lines = [f"{g.pattern} {_shape(g.shape)} {g.dtype}{f' x{g.count:,}' if g.count > 1 else ''}" for g in groups]
    return "\n".join([*lines, last])


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
