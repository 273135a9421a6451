"""`mapspec diff`: two sides -> everything that changes, worst first."""

from __future__ import annotations

from mapspec.diff.accepted import Accepted
from mapspec.diff.changes import changes_of, ranked
from mapspec.diff.mappings import Version, compare_mapping
from mapspec.diff.model import ModelDiff, Report
from mapspec.diff.parts import Found, Store
from mapspec.diff.sides import Side
from mapspec.diff.versions import Reading, spec_diffs, unbumped

__all__ = ["compare"]


def compare(base: Side, head: Side, accepted: Accepted | None = None) -> Report:
    """Everything that changes between two sides.

    Args:
        base, head: see `mapspec.diff.sides.open_sides`.
        accepted: changes that were looked at and wanted.
    """
    store = Store()
    models: list[ModelDiff] = []
    pairs: dict[str, tuple[Version | None, Version | None, bool]] = {}
    names = dict.fromkeys(name for kind, name in (*head.specs, *base.specs) if kind == "mapping")
    owners = {side.relative(spec.path): spec.name for side in (base, head) for spec in side.specs.values()}
    same_configs = base.configs() == head.configs()
    for name in names:
        old_file, new_file = base.specs.get(("mapping", name)), head.specs.get(("mapping", name))
        if old_file and new_file and same_configs and base.sources(old_file) == head.sources(new_file):
            continue
        old = None if old_file is None else Version.load(base, old_file)
        new = None if new_file is None else Version.load(head, new_file)
        identical = False
        if old is not None and new is not None:
            result = compare_mapping(old, new, store, owners)
            models += result.models
            identical = result.identical
        elif old is not None:
            store.add(Found("DC210", (name,), name, name, where=["mapping"], old=None))
        elif new is not None:
            store.add(Found("DC403", (name,), name, name, where=["mapping"]))
        pairs[name] = (old, new, identical)
    for name, (old, new, identical) in pairs.items():
        told = any(f.owner == name or name in f.through for f in store.found.values())
        if not identical and not told and old is not None and new is not None:
            edited = old.texts.get(base.relative(old.file.path)) != new.texts.get(head.relative(new.file.path))
            if edited:
                store.add(Found("DC501", (name,), name, head.relative(new.file.path)))
    changes = changes_of(store)
    specs = spec_diffs(
        (
            ("mapping", name, _reading(old), _reading(new), identical, new is None or new.linked is not None)
            for name, (old, new, identical) in pairs.items()
        ),
        changes,
    )
    changes = ranked((*changes, *unbumped(specs)))
    stale: tuple[str, ...] = ()
    if accepted is not None:
        changes, stale = accepted.applied(changes)
    return Report(base.label, head.label, specs, tuple(models), changes, stale)


def _reading(version: Version | None) -> Reading | None:
    if version is None:
        return None
    if version.linked is None:
        return Reading(version.side.relative(version.file.path), None, None)
    top = version.linked.top
    span = top.span("metadata", "version")
    included = (include.mapping.partition("@")[0] for include in top.spec.include.values())
    extended = () if top.spec.extends is None else (top.spec.extends.partition("@")[0],)
    path = version.side.relative(version.file.path)
    return Reading(path, version.version, version.side.place(span), (*extended, *included))
