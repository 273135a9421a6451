"""What Megatron-Core can have beside what a mapping says: `additions.yaml`, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mapspec.authoring.similar import words
from mapspec.text import read_yaml

__all__ = ["Addition", "Catalogue", "catalogue", "has_words"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Part):
    """A parameter, and how Hugging Face names of it look."""

    words: tuple[tuple[str, ...], ...]
    segment: str


class Addition(_Part):
    """Parameters that come together."""

    beside: str
    tensors: Mapping[str, Parameter]
    objects: tuple[str, ...]
    config: frozenset[str]
    needs: frozenset[str]
    fields: Mapping[str, bool]
    reason: str


class Gated(_Part):
    """Parameters that hold a gate above what it gates."""

    parameters: tuple[str, ...]
    gate: frozenset[str]
    up: frozenset[str]
    both: frozenset[str]
    fields: Mapping[str, bool]
    reason: str


class Catalogue(_Part):
    """The file."""

    additions: Mapping[str, Addition]
    gated: Gated
    biases: Mapping[str, Mapping[str, bool]]


@cache
def catalogue() -> Catalogue:
    """The catalogue that ships with mapspec."""
    return Catalogue.model_validate(read_yaml(Path(__file__).with_name("additions.yaml")).data)


def has_words(name: str, wanted: Sequence[Sequence[str]]) -> bool:
    """Whether the name has a word of each list."""
    there = set(words(name))
    return all(there.intersection(options) for options in wanted)
