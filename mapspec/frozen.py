"""Records that are made by the hundred thousand: a few for every tensor of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import dataclass_transform

__all__ = ["frozen"]


@dataclass_transform(frozen_default=True)
def frozen[T](cls: type[T]) -> type[T]:
    """As `@dataclass(frozen=True, slots=True)`, but type checkers alone see to it that nobody assigns to a field.

    An instance is made in a third of the time, since its fields are simply assigned.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
