"""`mapspec diff`: two sides -> everything that changes, worst first."""

from __future__ import annotations

from collections.abc import Sequence

from mapspec.diff.accepted import Accepted
from mapspec.diff.changes import changes_of, ranked
from mapspec.diff.declared import compare_declared
from mapspec.diff.loaded import ProviderVersion, Version
from mapspec.diff.mappings import MappingDiff, compare_mapping
from mapspec.diff.model import ModelDiff, Place, Report
from mapspec.diff.parts import Found, Store
from mapspec.diff.providers import compare_provider
from mapspec.diff.sides import Side, SpecFile
from mapspec.diff.versions import Reading, spec_diffs, unbumped

__all__ = ["compare"]


def compare(base: Side, head: Side, accepted: Accepted | None = None) -> Report:
    """Everything that changes between two sides.

    Args:
        base, head: see `mapspec.diff.sides.open_sides`.
        accepted: changes that were looked at and wanted.
    """
    store = Store()
    same_configs = base.configs() == head.configs()
    owners = {side.relative(s.path): s.name for side in (base, head) for s in side.specs.values()}
    pairs: list[tuple[str, str, Reading | None, Reading | None, bool, bool]] = []
    models: list[ModelDiff] = []
    mappings: list[MappingDiff] = []
    keys = sorted({*base.specs, *head.specs}, key=lambda key: (key[0], [*head.specs, *base.specs].index(key)))
    for kind, name in keys:
        files = base.specs.get((kind, name)), head.specs.get((kind, name))
        if None not in files and same_configs and _same_text(base, head, files):
            continue
        load = Version.load if kind == "mapping" else ProviderVersion.load
        old, new = (None if f is None else load(side, f) for side, f in zip((base, head), files, strict=True))
        identical = False
        if isinstance(old, Version) and isinstance(new, Version):
            result = compare_mapping(old, new, store, owners)
            mappings.append(result)
            models += result.models
            identical = result.identical
        elif isinstance(old, ProviderVersion) and isinstance(new, ProviderVersion):
            models += compare_provider(old, new, store, owners)
            identical = old.texts == new.texts
        else:
            shown = files[1] or files[0]
            assert shown is not None
            code = "DC210" if new is None else "DC403"
            old_place, new_place = (
                None if f is None else Place(s.relative(f.path), 1) for s, f in zip((base, head), files, strict=True)
            )
            found = Found(
                code, (kind, name), shown.name, shown.name, "", "", old_place, new_place, where=[kind], kind=kind
            )
            store.add(found)
        readable = new is None or not new.findings
        here = files[1] or files[0]
        assert here is not None
        pairs.append((kind, here.name, _reading(old), _reading(new), identical, readable))
    for result in mappings:
        compare_declared(result, store)
    _refactors(pairs, store, base, head)
    changes = changes_of(store)
    specs = spec_diffs(pairs, changes)
    changes = ranked((*changes, *unbumped(specs)))
    stale: tuple[str, ...] = ()
    if accepted is not None:
        changes, stale = accepted.applied(changes)
    return Report(base.label, head.label, specs, tuple(models), changes, stale)


def _same_text(base: Side, head: Side, files: tuple[SpecFile | None, SpecFile | None]) -> bool:
    old, new = files
    return old is not None and new is not None and base.sources(old) == head.sources(new)


def _refactors(
    pairs: Sequence[tuple[str, str, Reading | None, Reading | None, bool, bool]], store: Store, base: Side, head: Side
) -> None:
    """DC501 for every spec whose own text differs, and of which nothing else was found."""
    for kind, name, old, new, _, _ in pairs:
        files = tuple(side.specs.get((kind, name)) or side.specs.get((kind, "")) for side in (base, head))
        if old is None or new is None or files[0] is None or files[1] is None:
            continue
        told = any(
            f.kind == kind and (f.owner == files[1].name or files[1].name in f.through) for f in store.found.values()
        )
        if not told and files[0].path.read_bytes() != files[1].path.read_bytes():
            store.add(Found("DC501", (kind, name), files[1].name, new.path, kind=kind))


def _reading(version: Version | ProviderVersion | None) -> Reading | None:
    if version is None:
        return None
    path = version.side.relative(version.file.path)
    if isinstance(version, ProviderVersion):
        if version.spec is None:
            return Reading(path, None, None)
        metadata, span = version.spec.model.metadata, version.spec.span("metadata", "version")
        extended = version.spec.model.extends
        named = () if extended is None else (extended.partition("@")[0],)
        return Reading(path, metadata.version, version.side.place(span), named)
    if version.linked is None:
        return Reading(path, None, None)
    top = version.linked.top
    parent = () if top.spec.extends is None else (top.spec.extends.partition("@")[0],)
    included = (include.mapping.partition("@")[0] for include in top.spec.include.values())
    return Reading(path, version.version, version.side.place(top.span("metadata", "version")), (*parent, *included))
