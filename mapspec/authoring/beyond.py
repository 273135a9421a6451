"""Guesses about what the parent lacks: rules that it switches off, biases, known additions, renamed config keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mapspec.authoring.catalogue import Addition, catalogue, has_words
from mapspec.authoring.draft import Change
from mapspec.authoring.loose import Live, Loose, Wanted, live_rules
from mapspec.authoring.prefixes import nested
from mapspec.authoring.similar import alike, words
from mapspec.authoring.trial import Evidence, Trial
from mapspec.expr import parse_expr
from mapspec.lint import expressions
from mapspec.schema import v1
from mapspec.text import Path_

__all__ = [
    "addition_changes",
    "alias_changes",
    "bias_changes",
    "drop_changes",
    "switched_off_changes",
    "unknown_keys",
]


def switched_off_changes(
    trial: Trial, loose: Sequence[Loose], unknown: Sequence[str], evidence: Evidence
) -> Iterator[Change]:
    """Rules of the parent that the config does not ask for, though the checkpoint has their tensors."""
    assert trial.linked is not None
    on = {(live.block, live.key) for live in live_rules(trial).values()}
    for block_name, block in trial.linked.top.spec.blocks.items():
        names = {have.rest for have in loose if block_name in have.blocks}
        for key, rule in block.tensors.items():
            hf = [rule.hf] if isinstance(rule.hf, str) else list(rule.hf.values())
            if rule.when is None or (block_name, key) in on or not names.issuperset(hf):
                continue
            about = {word for name in (key, *hf) for word in words(name)}
            condition, known = _condition(unknown, evidence, about & {"bias", "norm"} or about, about)
            why = f"the checkpoint has {', '.join(f'`{name}`' for name in hf)}, but `{rule.when}` does not hold"
            at = ("blocks", block_name, "tensors", key)
            yield Change(
                f"`{key}` is there", nested((*at, "when"), condition), f"{why}{known}", at, _bias_facts(key, condition)
            )


def bias_changes(trial: Trial, loose: Sequence[Loose], unknown: Sequence[str], evidence: Evidence) -> Iterator[Change]:
    """Biases of weights that rules map."""
    assert trial.linked is not None
    by_name = {(live.block, live.rest): live for live in live_rules(trial).values()}
    groups: dict[tuple[str, str], dict[str | None, tuple[Live, Loose]]] = {}
    for have in loose:
        weight = _swapped(have.rest, "bias", "weight")
        for block in have.blocks:
            live = by_name.get((block, weight or ""))
            if live is not None:
                groups.setdefault((block, live.key), {})[live.segment] = (live, have)
    for (block, key), found in groups.items():
        live = next(iter(found.values()))[0]
        bias = _swapped(key, "weight", "bias")
        rule = trial.linked.top.spec.blocks[block].tensors[key]
        existing = trial.linked.top.spec.blocks[block].tensors
        if bias is None or len(found) != len(live.rule.hf) or not rule.shape:
            continue
        hf: Any = {segment: have.rest for segment, (_, have) in found.items()}
        names = [have.rest for _, have in found.values()]
        about = {word for name in (bias, *names) for word in words(name)}
        condition, known = _condition(unknown, evidence, {"bias", "biases"}, about)
        new: dict[str, Any] = {"hf": hf.get(None, hf)}
        if bias not in existing:
            new["shape"] = [rule.shape[0]]
            new |= _spelled_as_bias(rule)
        if condition is not None or (bias in existing and existing[bias].when is not None):
            new["when"] = condition
        why = f"{', '.join(f'`{name}`' for name in names)} go with the weight that `{key}` maps{known}"
        at = ("blocks", block, "tensors", bias)
        yield Change(f"`{key}` has a bias", nested(at, new), why, at, _bias_facts(bias, condition))


def _swapped(name: str, old: str, new: str) -> str | None:
    """The name with its last `old` replaced, if that is its last word but for an index."""
    head, found, tail = name.rpartition(old)
    return (
        head + new + tail if found and tail.strip("{}abcdefghijklmnopqrstuvwxyz_") == "" and "." not in tail else None
    )


def _spelled_as_bias(rule: v1.Rule) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if rule.stored is not None and (stored := _swapped(rule.stored, "weight", "bias")):
        out["stored"] = stored
    flavours = {
        choice: {"megatron": name}
        for choice, spelling in rule.flavours.items()
        if spelling.megatron is not None and (name := _swapped(spelling.megatron, "weight", "bias"))
    }
    return {**out, "flavours": flavours} if flavours else out


def _bias_facts(key: str, condition: str | None) -> dict[str, Any]:
    fields = {field: (value, _key_of(condition)) for field, value in catalogue().biases.get(key, {}).items()}
    return {"fields": fields, "reason": "the checkpoint has these biases", "bias": key} if fields else {}


def _condition(
    unknown: Sequence[str], evidence: Evidence, needed: set[str], related: set[str]
) -> tuple[str | None, str]:
    """A condition on the config key that is likely to switch something on, and words for the comment about it."""
    ranked = sorted(
        (-len(related.intersection(words(key))), key)
        for key in unknown
        if evidence.config.get(key) is True and needed.intersection(words(key))
    )
    if not ranked:
        return None, ""
    key = ranked[0][1]
    return f"default(hf.{key}, false)", f"; the config says `{key}: true`"


def addition_changes(
    trial: Trial, loose: Sequence[Loose], unknown: Sequence[str], evidence: Evidence
) -> Iterator[Change]:
    """Parameters that Megatron-Core knows beside those that the parent maps."""
    assert trial.linked is not None
    for name, addition in catalogue().additions.items():
        for block_name, block in trial.linked.top.spec.blocks.items():
            if addition.beside in block.tensors and not set(addition.tensors) & set(block.tensors):
                change = _added(trial, name, addition, block_name, loose, unknown, evidence)
                if change is not None:
                    yield change


def _added(
    trial: Trial, name: str, addition: Addition, block: str, loose: Sequence[Loose], unknown: Sequence[str],
    evidence: Evidence,
) -> Change | None:  # fmt: skip
    assert trial.linked is not None
    spec = trial.linked.top.spec
    live = next((x for x in live_rules(trial).values() if (x.block, x.key) == (block, addition.beside)), None)
    dim = next((d for d in (live.rule.dims or ()) if d.fused), None) if live else None
    if dim is None:
        return None
    condition, known = _condition(unknown, evidence, set(addition.needs), set(addition.config))
    when = {} if condition is None else {"when": condition}
    tensors: dict[str, Any] = {}
    dims: dict[str, Any] = {}
    for key, parameter in addition.tensors.items():
        size = dim.sizes.get(parameter.segment)
        have = next(
            (h for h in loose if block in h.blocks and h.shape == (size,) and has_words(h.rest, parameter.words)), None
        )
        if have is None:
            return None
        text = (spec.dims[dim.name].segments or {})[parameter.segment]
        named = next((n for n, d in spec.dims.items() if d.size == text), None)
        if named is None:
            named = f"{dim.name}_{parameter.segment}"
            dims[named] = {"size": text}
        tensors[key] = {"hf": have.rest, "shape": [named], **when}
    objects = [o.model_dump(exclude_none=True, mode="json") for o in spec.blocks[block].objects]
    objects.append({"names": list(addition.objects), **when})
    patch: dict[str, Any] = {"blocks": {block: {"tensors": tensors, "objects": objects}}}
    if dims:
        patch["dims"] = dims
    names = ", ".join(f"`{rule['hf']}`" for rule in tensors.values())
    why = f"{name}: {names} have the names and the size of them{known}"
    fields = {field: (value, _key_of(condition)) for field, value in addition.fields.items()}
    facts = {"fields": fields, "reason": addition.reason}
    return Change(name, patch, why, ("blocks", block, "tensors", next(iter(tensors))), facts)


def _key_of(condition: str | None) -> str | None:
    """The config key of a condition that `_condition` made."""
    return None if condition is None else next(iter(parse_expr(condition).keys))


def drop_changes(trial: Trial, wanted: Sequence[Wanted]) -> Iterator[Change]:
    """Biases that the parent expects and the checkpoint lacks altogether."""
    lives = live_rules(trial)
    for want in wanted:
        if (
            "bias" not in words(want.live.key)[-1:]
            or want.at != lives[want.live.block, want.live.key, want.live.segment].at
        ):
            continue
        at = ("blocks", want.live.block, "tensors", want.live.key)
        why = f"the checkpoint has no `{want.live.rest}` anywhere, and nothing of its shape"
        yield Change(f"`{want.live.key}` does not exist", nested(at, None), why, at)


# --- config keys ---------------------------------------------------------------------------------------------------


def alias_changes(trial: Trial, unknown: Sequence[str], evidence: Evidence) -> Iterator[Change]:
    """Config keys of the parent that the config spells otherwise."""
    assert trial.linked is not None
    spec = trial.linked.top.spec
    uses: dict[str, list[tuple[Path_, str]]] = {}
    for path, text in expressions(spec):
        for key in parse_expr(text).keys:
            top = key.split(".")[0]
            if top not in evidence.config:
                uses.setdefault(top, []).append((path, text))
    symbols = {symbol for kind in spec.kinds.values() for symbol in kind.symbols}
    pairs = sorted(((alike(old, new), old, new) for old in uses for new in unknown), reverse=True)
    for score, old, new in pairs:
        value = evidence.config[new]
        spells = isinstance(value, str | list) and len(value) > 0 and all(s in symbols for s in value)
        patterned = any("pattern" in path for path, _ in uses[old])
        if score < _ALIKE or spells != patterned or value is None:
            continue
        patch: dict[str, Any] = {}
        for path, text in uses[old]:
            _set(patch, spec, path, text, old, new)
        why = f"the config has no `{old}`, and `{new}` is not known: {_shown(value)}"
        yield Change(f"`{old}` is spelled `{new}`", patch, why, _place(uses[old][0][0]), {"alias": (old, new)})


_ALIKE = 0.4


def _set(patch: dict[str, Any], spec: v1.Mapping, path: Path_, text: str, old: str, new: str) -> None:
    where: list[str | int] = list(path)
    value: Any = text.replace(f"hf.{old}", f"hf.{new}")
    if isinstance(path[-1], int):
        where.pop()
        value = [value]
    here = patch
    for part in where[:-1]:
        here = here.setdefault(str(part), {})
    here[str(where[-1])] = value


def _place(path: Path_) -> Path_:
    return tuple(part for part in path if not isinstance(part, int))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def unknown_keys(config: Mapping[str, Any], known: set[str], spec: v1.Mapping) -> list[str]:
    """Keys of the config that neither the provider nor the mapping of the parent accounts for."""
    used = {key.split(".")[0] for _, text in expressions(spec) for key in parse_expr(text).keys}
    return [key for key in config if key not in known and key not in used]
