"""Linked spec + one HF config -> bound rules: every size a number, every condition decided, every choice made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mapspec.bind_rules import ScopeRules
from mapspec.bind_values import BoundScope
from mapspec.bound import Bound, BoundDim, BoundObjects, BoundRule, Choices, Side
from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.scope import Linked

__all__ = ["Bound", "BoundDim", "BoundObjects", "BoundRule", "Choices", "Side", "bind"]


def bind(linked: Linked, config: Mapping[str, Any], choices: Choices | None = None) -> Bound:
    """Decide everything that depends on the config.

    Args:
        linked: the spec.
        config: contents of config.json.
        choices: the user's decisions.

    Raises:
        SpecError: keys that the config lacks (MS401), values that do not fit (MS402 to MS407), collected.
    """
    choices = choices or Choices()
    flavours = choose_flavours(linked, choices)
    found: list[Diagnostic] = []
    by_id: dict[str, BoundScope] = {}
    for scope in linked.scopes:
        # A scope that does not exist for this config is not computed at all: its part of the config is absent.
        if all(p.id in by_id and by_id[p.id].holds(e, span) for p, e, span in scope.conditions):
            by_id[scope.id] = BoundScope(scope, config, flavours, choices, found)
    live = [ScopeRules(scope) for scope in by_id.values() if scope.has_config]
    rules = [rule for scope in live for rule in scope.rules()]
    objects = [o for scope in live for o in scope.objects()]
    ties = tuple(tie for scope in live for tie in scope.ties())
    sections = ("passthrough", "ignore_hf", "ignore_megatron")
    listed = {name: tuple(x for scope in live for x in scope.listed(name)) for name in sections}
    asked = choices.padded_vocab_size
    if asked is not None and not any(dim.padded for rule in rules for dim in rule.dims or ()):
        message = f"no dimension of this mapping can be padded, so not to {asked} rows either"
        span = linked.top.span("dims", of_key=True)
        help_ = "mark the dimension with `pad: vocabulary`, or leave --padded-vocab-size out"
        found.append(Diagnostic("MS406", message, span, help=help_))
    if found:
        raise SpecError(_merged(found))
    return Bound(linked, config, choices, flavours, tuple(rules), tuple(objects), ties, **listed)


def _merged(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """The findings in order; a key that the config lacks is one finding, however many places need it."""
    out: dict[object, Diagnostic] = {}
    for d in sorted(set(found), key=Diagnostic.sort_key):
        # The message up to the comma names the key.
        key = d.message.split(", which", 1)[0] if d.code == "MS401" else d
        if key in out:
            out[key] = out[key].with_note("needed here too", d.span)
        else:
            out[key] = d
    return list(out.values())


def choose_flavours(linked: Linked, choices: Choices) -> dict[str, str]:
    """The choice of every flavour: the user's, else the default of the Megatron-Core version.

    Raises:
        SpecError: MS407 for a flavour or choice that does not exist.
    """
    declared = linked.flavours()
    found = []
    for name, choice in choices.flavours.items():
        if name not in declared:
            help_ = f"there are: {', '.join(sorted(declared)) or 'none'}"
            message = f"`{linked.name}` has no flavour `{name}`"
            hint = nearest(name, declared)
            found.append(Diagnostic("MS407", message, where=f"--flavour {name}={choice}", hint=hint, help=help_))
        elif choice not in declared[name].choices:
            help_ = f"there are: {', '.join(declared[name].choices)}"
            message = f"flavour `{name}` has no choice `{choice}`"
            hint = nearest(choice, declared[name].choices)
            found.append(Diagnostic("MS407", message, where=f"--flavour {name}={choice}", hint=hint, help=help_))
    if found:
        raise SpecError(found)
    out = {}
    for name, flavour in declared.items():
        older = [
            (version, choice)
            for text, choice in flavour.before.items()
            if choices.megatron_version < (version := tuple(int(part) for part in text.split(".")))
        ]
        out[name] = choices.flavours.get(name) or (min(older)[1] if older else flavour.default)
    return out
