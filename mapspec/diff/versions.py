"""Which version a spec should have after its changes, and whether its file says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mapspec.diff.model import Change, Level, Part, Place, SpecDiff, State
from mapspec.diff.parts import fingerprint, level_of

__all__ = ["Reading", "spec_diffs", "suggest", "unbumped"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A spec on one side, as far as versions go. `place`: the line of its version; `includes`: names of others."""

    path: str
    version: str | None
    place: Place | None
    includes: tuple[str, ...] = ()


def suggest(version: str, worst: Level | None) -> str:
    """The version that a change asks for: major for silent and breaking ones, minor for risky and additive ones."""
    major, minor, patch = (int(part) for part in version.split("."))
    if worst in (Level.SILENT, Level.BREAKING):
        return f"{major + 1}.0.0"
    if worst in (Level.RISKY, Level.ADDITIVE):
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch}"


def spec_diffs(
    pairs: Iterable[tuple[str, str, Reading | None, Reading | None, bool, bool]], changes: Iterable[Change]
) -> tuple[SpecDiff, ...]:
    """Every spec with the version that its changes ask for.

    Args:
        pairs: (kind, name, before, after, same text, can be read).
        changes: what was found; a change counts for the spec that is edited, and for those it reaches.
    """
    changes = tuple(changes)
    out = []
    for kind, name, old, new, identical, readable in pairs:
        here = new or old
        assert here is not None
        versions = (old.version if old else None, new.version if new else None)
        levels = [
            c.level for c in changes if _of(c, kind) and (c.spec == name or any(t.spec == name for t in c.through))
        ]
        worst = min(levels, key=lambda level: level.rank, default=None)
        suggested = suggest(versions[0], worst) if versions[0] else versions[1] or ""
        bumped = versions[1] is None or versions[0] is None or _parts(versions[1]) >= _parts(suggested)
        state = State.IDENTICAL if identical and worst is None else State.CHANGED
        if old is None:
            state = State.ADDED
        elif new is None:
            state = State.REMOVED
        elif not readable:
            state = State.BROKEN
        out.append(
            SpecDiff(
                kind, name, here.path, state, versions, suggested, bumped, here.includes, new.place if new else None
            )
        )
    return tuple(out)


def _of(change: Change, kind: str) -> bool:
    return change.kind == kind


def unbumped(specs: Iterable[SpecDiff]) -> Iterator[Change]:
    """DC901 for every spec whose version did not move as far as it should."""
    for spec in specs:
        if spec.bumped or spec.state in (State.BROKEN, State.REMOVED):
            continue
        was, now = spec.version
        part = Part(spec.name, f"metadata.version of the {spec.kind}", str(now), spec.suggested, None, spec.place)
        message = f"{spec.kind} {spec.name} {was} should become {spec.suggested}; the file says {now}"
        print_ = fingerprint("DC901", spec.name, [spec.kind], [(str(was), spec.suggested)])
        yield Change("DC901", level_of("DC901"), print_, spec.name, message, (part,), kind=spec.kind)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
