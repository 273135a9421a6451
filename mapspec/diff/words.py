"""What rows and rules of a mapping are made of, in words that reports show before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mapspec.diff.rules import Sides, Signature, arrangement
from mapspec.table import Row
from mapspec.tensors import Box

__all__ = [
    "cut_of",
    "hf_shapes",
    "in_keys",
    "keyed",
    "made_of",
    "names_of",
    "order_of",
    "policy_of",
    "shapes_of",
    "stored_as",
]


def made_of(row: Row) -> str:
    """The Hugging Face patterns of a row's rule: `q <- ...q_proj.weight, k <- ...`."""
    return ", ".join(f"{side.segment} <- {side.pattern}" if side.segment else str(side.pattern) for side in row.rule.hf)


def order_of(row: Row) -> str:
    return arrangement(row.rule) or "as it is"


def names_of(sides: Sequence[tuple[str, Box]]) -> tuple[str, ...]:
    return tuple(name for name, _ in sides)


def stored_as(row: Row, sides: Sides) -> str:
    """The torch_dist keys of a row's rule."""
    pattern = str(row.rule.stored.pattern)
    suffixes = [form.suffix for form in row.forms.surfaces["stored"] if form.suffix]
    stacked = " (all positions stacked)" if any(lead for _, lead in sides.stored) else ""
    return pattern + (f".{{{','.join(s[1:] for s in suffixes)}}}" if suffixes else "") + stacked


def in_keys(row: Row) -> str:
    """Which rows of the tensor each torch_dist key holds."""
    forms = row.forms.surfaces["stored"]
    boxes: dict[int, list[str]] = {}
    for piece in row.forms.region("stored", "megatron"):
        axis = row.forms.axis
        if axis >= 0 and len(boxes.setdefault(piece.left, [])) < 3:
            boxes[piece.left].append("{}:{}".format(*piece.right_box[axis]))
    return "in torch_dist " + ", ".join(f"{forms[n].suffix or 'it'} = rows {' '.join(b)}" for n, b in boxes.items())


def keyed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {list(shape)}" for name, shape in shapes.items())


def hf_shapes(signature: Signature) -> str:
    return " + ".join(str(list(shape)) for shape in signature.hf_shapes)


def shapes_of(signature: Signature) -> str:
    hf = " + ".join(str(list(shape)) for shape in signature.hf_shapes)
    whole = str(list(signature.shape))
    return whole if hf == whole else f"{whole} (Hugging Face {hf})"


def cut_of(signature: Signature) -> str:
    """How ranks share the tensor."""
    out = []
    for dim, group, runs in signature.split:
        name = "expert tensor parallel" if group == "expert_tensor" else "tensor parallel"
        kind = {0: "column", 1: "row"}.get(dim, f"dim {dim}")
        out.append(f"{kind} ({name}{f', {len(runs)} segments by themselves' if runs else ''})")
    out += [f"dealt to {kind}-parallel ranks" for kind in signature.parallel]
    return ", ".join(out) or "replicated"


def policy_of(signature: Signature) -> str:
    cast = "never cast" if signature.keep else "cast by --dtype"
    return f"{signature.dtype}, accepts {' '.join(signature.accepts)}, {cast}"
