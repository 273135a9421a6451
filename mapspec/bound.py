"""What binding makes: rules with every size a number, every condition decided, every choice made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mapspec.axes import BoundAxis, Position
from mapspec.diagnostics import Span
from mapspec.names import Pattern
from mapspec.schema import v1
from mapspec.scope import Linked

__all__ = ["Bound", "BoundDim", "BoundObjects", "BoundRule", "Choices", "Side"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user decides beyond the config.

    Attributes:
        flavours: flavour -> choice; the rest follow the Megatron-Core version.
        megatron_version: (major, minor) of the Megatron-Core that reads or wrote the checkpoint.
        padded_vocab_size: rows of the vocabulary on the Megatron side; `None` for no padding.
    """

    flavours: Mapping[str, str] = field(default_factory=dict)
    megatron_version: tuple[int, int] = (0, 19)
    padded_vocab_size: int | None = None


@dataclass(frozen=True, slots=True)
class BoundDim:
    """A dimension with its size. `order` lists the segments as they lie on the Megatron side, `("",)` if not fused.

    `pads`: the Megatron side may be longer; `padded`: its rows there, where it is.
    """

    name: str
    size: int
    sizes: Mapping[str, int]
    order: tuple[str, ...]
    split: str | None = None
    split_by: str = "whole"
    stored_by: str = "whole"
    pads: bool = False
    padded: int | None = None

    @property
    def fused(self) -> bool:
        """Whether the dimension is made of segments."""
        return self.order != ("",)


@dataclass(frozen=True, slots=True)
class Side:
    """One name of a rule on one side, and the segments that its tensor holds (all of them where `None`)."""

    pattern: Pattern
    segment: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule at its mount. Names are full patterns; `positions` are the values of their holes."""

    key: str
    span: Span
    scope: str
    mount: str
    block: str
    megatron: Side
    hf: tuple[Side, ...]
    stored: Side
    dims: tuple[BoundDim, ...] | None
    role: v1.Role
    role_name: str
    dtype: str
    axes: Mapping[str, BoundAxis]
    positions: tuple[Position, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class BoundObjects:
    """Byte objects at their mount: full name patterns, and the axis that numbers them."""

    names: tuple[Pattern, ...]
    each: BoundAxis | None
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A spec bound to a config."""

    linked: Linked
    config: Mapping[str, Any]
    choices: Choices
    flavours: Mapping[str, str]
    rules: tuple[BoundRule, ...]
    objects: tuple[BoundObjects, ...]
    ties: tuple[tuple[Pattern, Pattern, Span], ...]
    passthrough: tuple[tuple[Pattern, str, Span], ...]
    ignore_hf: tuple[tuple[Pattern, str, Span], ...]
    ignore_megatron: tuple[tuple[Pattern, str, Span], ...]
