"""What a live model decides about a mapping: flavours by the names it has, padding by the rows of its vocabulary.

A name is never a guess here: whatever is chosen, every parameter needs a row and every row a parameter, or nothing is
copied. So a choice that fits worse cannot go through, and the best one needs no asking.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from mapspec.bind import Bound, Choices, bind
from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.link import Linked
from mapspec.live.names import skeleton

__all__ = ["choose_for_model"]


def choose_for_model(
    linked: Linked,
    config: Mapping[str, Any],
    choices: Choices,
    shapes: Mapping[str, tuple[int, ...]],
    tp_size: int,
) -> Bound:
    """The spec bound with the flavours and the padding of a model.

    Args:
        choices: what is decided already; that stays.
        shapes: local shapes by `skeleton` of the name, over all ranks, so that all ranks choose the same.
        tp_size: over how many ranks the vocabulary is cut.

    Raises:
        SpecError: what binding finds; MS759 for a rule whose tensors only a checkpoint could name.
    """
    bound = bind(linked, config, choices)
    for rule in bound.rules:
        if rule.dims is None:
            message = f"rule `{rule.key}` ends in `**`, so it does not say how ranks hold what it maps"
            help_ = (
                "write one rule per weight, with its shape; or convert the checkpoint and load that with Megatron-Core"
            )
            raise SpecError(Diagnostic("MS759", message, rule.span, help=help_))
    bound = _climb(linked, config, bound, choices, shapes)
    padded = _padding(bound, shapes, tp_size)
    if padded is not None and bound.choices.padded_vocab_size is None:
        bound = bind(linked, config, replace(bound.choices, padded_vocab_size=padded))
    return bound


def _climb(linked: Linked, config: Mapping[str, Any], bound: Bound, choices: Choices, names: Collection[str]) -> Bound:
    """The choices that know most names, found one flavour at a time.

    Again from the start after each round that found something: as long as prefixes are wrong, other flavours make no
    difference.
    """
    best, before = _fit(bound, names), -1
    while best > before:
        before = best
        for name, flavour in linked.flavours().items():
            if name in choices.flavours:
                continue
            for choice in flavour.choices:
                if choice == bound.flavours[name]:
                    continue
                other = replace(bound.choices, flavours={**bound.choices.flavours, name: choice})
                candidate = bind(linked, config, other)
                fit = _fit(candidate, names)
                if fit > best:
                    bound, best = candidate, fit
    return bound


def _fit(bound: Bound, names: Collection[str]) -> int:
    """How many of the model's kinds of names the rules know."""
    known = {skeleton(rule.megatron.pattern.fill(rule.positions[0])) for rule in bound.rules if rule.positions}
    return len(known & set(names))


def _padding(bound: Bound, shapes: Mapping[str, tuple[int, ...]], tp_size: int) -> int | None:
    """Rows of the model's vocabulary, where they are more than the config's."""
    for rule in bound.rules:
        for axis, dim in enumerate(rule.dims or ()):
            if not dim.pads or not rule.positions:
                continue
            shape = shapes.get(skeleton(rule.megatron.pattern.fill(rule.positions[0])))
            rows = shape[axis] * (tp_size if dim.split else 1) if shape and len(shape) > axis else 0
            if rows > dim.size:
                return rows
    return None
