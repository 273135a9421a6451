"""The provider spec of a variant: what its config says that the parent's provider does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapspec.authoring.draft import Change, Draft
from mapspec.authoring.prefixes import nested
from mapspec.authoring.similar import alike
from mapspec.diagnostics import Diagnostic
from mapspec.documents import Document, available, merged_tree
from mapspec.errors import SpecError
from mapspec.provider.installed import NOT_LITERAL, config_fields
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import ProviderSpec, read_provider, with_included
from mapspec.schema import provider_v1, validate
from mapspec.text import parse_yaml, read_yaml

__all__ = ["parent_provider", "provider_draft"]

_ALIKE = 0.75


def parent_provider(mapping: str) -> ProviderSpec | None:
    """The provider spec that goes with a mapping, by the name of the mapping."""
    for path in available("providers").values():
        data = read_yaml(path).data
        metadata = data.get("metadata")
        named = str(metadata.get("mapping", "")) if isinstance(metadata, dict) else ""
        if data.get("kind") == "Provider" and named.split("@")[0].rsplit("/", 1)[-1] == mapping:
            return read_provider(path)
    return None


def provider_draft(
    parent: ProviderSpec, draft: Draft, mapping: Sequence[Change], config: Mapping[str, Any], path: Path
) -> tuple[Draft, tuple[Diagnostic, ...]]:
    """The variant's provider, and what is still wrong with it for the config.

    Args:
        parent: the provider that it extends.
        draft: what it says whatever is guessed.
        mapping: changes of the mapping, whose `facts` say what follows for the provider.
        config: contents of config.json.
        path: where it will stand.
    """
    for change in _from_mapping(parent, mapping, config):
        draft = draft.but(change)
    spec, found = _read(draft, path)
    if spec is None:
        return draft, found
    for change in _unknown(spec, config):
        draft = draft.but(change)
    spec, found = _read(draft, path)
    if spec is None:
        return draft, found
    found = _resolved(spec, config)
    if found and {finding.code for finding in found} == {"MS426"} and any("bias" in c.facts for c in mapping):
        draft = draft.but(_without_checks(spec, found))
        spec, found = _read(draft, path)
    return draft, found if spec is None else _resolved(spec, config)


def _resolved(spec: ProviderSpec, config: Mapping[str, Any]) -> tuple[Diagnostic, ...]:
    try:
        resolve_provider(spec, config)
    except SpecError as error:
        return error.diagnostics
    return ()


def _without_checks(spec: ProviderSpec, failed: Sequence[Diagnostic]) -> Change:
    """The checks between biases that hold: the checkpoint itself says which biases there are."""
    spans = {finding.span for finding in failed}
    checks = [
        check.model_dump(mode="json", exclude_defaults=True)
        for i, check in enumerate(spec.model.checks)
        if spec.span("checks", i, "that") not in spans
    ]
    why = f"this does not hold here: {failed[0].message}; the checkpoint has just these biases, and so has the mapping"
    return Change("checks of the parent that do not hold are left out", {"checks": checks}, why, ("checks",))


def _read(draft: Draft, path: Path) -> tuple[ProviderSpec | None, tuple[Diagnostic, ...]]:
    try:
        tree = merged_tree(path, parse_yaml(draft.text(), str(path)))
        return with_included(Document(path, tree, validate(tree, provider_v1.Provider))), ()
    except SpecError as error:
        return None, error.diagnostics


def _from_mapping(parent: ProviderSpec, changes: Sequence[Change], config: Mapping[str, Any]) -> Iterator[Change]:
    """Fields that build what the mapping's guesses say, and config keys that it found to be renamed."""
    seen: set[str] = set()
    for change in changes:
        for field, (value, key) in change.facts.get("fields", {}).items():
            if field not in seen:
                seen.add(field)
                yield _field(parent, field, value, key, change, config)
        if "alias" in change.facts:
            old, new = change.facts["alias"]
            if old in parent.keys:
                yield _alias(parent, old, new, change.why, config)


def _field(
    parent: ProviderSpec, field: str, value: Any, key: str | None, change: Change, config: Mapping[str, Any]
) -> Change:  # fmt: skip
    entry = parent.entries.get(field)
    reason = str(change.facts["reason"])
    base: tuple[str, ...] = () if entry is None or entry.group is None else ("when", entry.group)
    if key is not None and entry is not None and entry.section == "fields":
        return _spelled(
            parent, (*base, "fields", field), key, {"dialects": []}, f"`{key}` spells `{field}`", change.why, config
        )
    if key is None:
        section = "constants" if entry is None or entry.section == "fields" else entry.section
        at = (*base, section, field)
        patch = nested(at, {"value": value, "reason": reason})
        if entry is not None and entry.section == "fields":
            patch |= nested((*base, "fields"), {field: None})
        return Change(f"`{field}` is {value}", patch, change.why, at)
    at = (*base, "fields", field)
    patch = nested(at, {"hf": key, "default": "false", "reason": reason})
    if entry is not None:
        patch |= nested((*base, entry.section), {field: None})
    return Change(f"`{key}` spells `{field}`", patch, change.why, at)


def _alias(parent: ProviderSpec, old: str, new: str, why: str, config: Mapping[str, Any]) -> Change:
    entry, spelling = parent.keys[old]
    told = {name: value for name in ("symbols", "names") if (value := getattr(spelling, name)) is not None}
    what = f"`{old}` is spelled `{new}`"
    return _spelled(parent, tuple(str(p) for p in entry.path), new, {"dialects": [], **told}, what, why, config)


def _spelled(
    parent: ProviderSpec, path: tuple[str, ...], key: str, spelling: Mapping[str, Any], what: str, why: str,
    config: Mapping[str, Any],
) -> Change:  # fmt: skip
    """One more key of a field; instead of the parent's, where the config has those with another value."""
    here: Any = parent.document.tree.data
    for part in (*path, "hf"):
        here = here[part]
    names: list[str] = [here] if isinstance(here, str) else list(here)
    others = {name for name in names if config.get(name) not in (None, config.get(key))}
    if isinstance(here, dict):  # merged with the parent's
        old: dict[str, Any] = {name: None for name in names if name in others}
    else:
        old = {name: {} for name in names if name not in others}
    at = (*path, "hf", key)
    return Change(what, nested((*path, "hf"), {**old, key: {} if others else spelling}), why, at)


def _unknown(spec: ProviderSpec, config: Mapping[str, Any]) -> Iterator[Change]:
    """A place for every config key that the provider does not account for."""
    fields = config_fields()
    for key, value in config.items():
        if key in spec.known_keys() or isinstance(value, dict):  # parts of a config have specs of their own
            continue
        absent = [old for old, (entry, spelling) in spec.keys.items() if not _present(entry.decl, config)]
        likely = max(absent, key=lambda old: alike(old, key), default=None)
        if likely is not None and alike(likely, key) >= _ALIKE:
            yield _alias(spec, likely, key, f"the config has no `{likely}`, and this is {value!r}", config)
        elif key in fields and key not in spec.entries:
            default = fields[key]
            at: tuple[str, ...] = ("fields", key)
            field = {"hf": key}
            if default is not NOT_LITERAL and default is not None:
                field |= {"default": _literal(default), "reason": "default of Megatron-Core's config"}
            yield Change(
                f"`{key}` is a field", nested(at, field), "Megatron-Core's config has a field of that name", at
            )
        else:
            at = ("waived", key)
            waiver = {"reason": "not checked: say why it does not change the model", "accepts": [value]}
            why = "no field of the provider is spelled so; with another value the config is refused"
            yield Change(f"`{key}` is waived", nested(at, waiver), why, at)


def _present(decl: Any, config: Mapping[str, Any]) -> bool:
    return any(config.get(key) is not None for key in decl.hf)


def _literal(value: Any) -> str:
    return repr(value).lower() if isinstance(value, bool) else repr(value)
