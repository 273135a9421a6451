"""What `mapspec diff` finds, as data: changes with their class, place and effect, and what they do to each model.

Renderers (`mapspec.render.diff_*`) read this and nothing else; `as_data` is its JSON form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any

__all__ = [
    "FORMAT_VERSION",
    "Affected",
    "Cause",
    "Change",
    "Earlier",
    "Level",
    "ModelDiff",
    "Part",
    "Place",
    "Report",
    "SpecDiff",
    "State",
    "Through",
    "as_data",
]

FORMAT_VERSION = "1.0"
"""Of the JSON form. The minor part grows with additions, the major part with anything else."""


class Level(StrEnum):
    """How bad a change is, worst first.

    `silent`: both versions run through and mean different values. `breaking`: something that worked is refused.
    `risky`: nothing that is tested here changes, or a default does. `additive`: more works than before.
    `neutral`: nothing that anyone converts changes.
    """

    SILENT = "silent"
    BREAKING = "breaking"
    RISKY = "risky"
    ADDITIVE = "additive"
    NEUTRAL = "neutral"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Level).index(self)


class Earlier(StrEnum):
    """What becomes of checkpoints that were converted with the old version.

    `good`: nothing. `refused`: an error says so. `corrupt`: they are taken without a word, as other values.
    """

    GOOD = "good"
    REFUSED = "refused"
    CORRUPT = "corrupt"


class State(StrEnum):
    """What became of a reference model, or of a spec."""

    IDENTICAL = "identical"
    CHANGED = "changed"
    BROKEN = "broken"
    MENDED = "mended"
    STILL_BROKEN = "still broken"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file of the base or of the head; the path is relative to the root of that side."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Cause:
    """A part of a spec that reads differently: where, and its text on both sides (empty where it is absent)."""

    key: str
    before: str
    after: str
    old: Place | None
    new: Place | None


@dataclass(frozen=True, slots=True)
class Through:
    """A spec that a change reaches because it includes or extends the one that was changed."""

    spec: str
    how: str
    place: Place


@dataclass(frozen=True, slots=True)
class Affected:
    """The tensors of one reference model that a change is about.

    Attributes:
        spec, model: the mapping (or provider), and the reference config it is bound to.
        flavours: choices other than the default one under which the change shows; empty: it shows by default.
        tensors: how many Megatron tensors.
        megatron, hf_before, hf_after: names, collapsed (`layers.{0...51}.x`).
    """

    spec: str
    model: str
    flavours: tuple[str, ...] = ()
    tensors: int = 0
    megatron: tuple[str, ...] = ()
    hf_before: tuple[str, ...] = ()
    hf_after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What a change does to the tensors of one rule, or to one provider field.

    Attributes:
        subject: key of the rule, or name of the field.
        where: block and mounts of the rule; section and origin of the field.
        before, after: what it was and is, in words; sizes are those of the first affected model.
        old, new: the rule's (field's) line on both sides.
        affected: models, the first one being the example that texts are taken from.
    """

    subject: str
    where: str
    before: str
    after: str
    old: Place | None
    new: Place | None
    affected: tuple[Affected, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One change of what specs do.

    Attributes:
        code: key of `mapspec.diff.codes.DIFF_CODES`, for example `DC101`.
        level: of the code.
        fingerprint: 12 hex digits of what changes, independent of line numbers and of the list of models.
        spec, kind: name of the spec that was edited, `mapping` or `provider`.
        message: one line.
        parts: rules or fields, most tensors first.
        causes: the edits that do it.
        earlier, earlier_why: what becomes of checkpoints converted before.
        through: other specs that it reaches.
        details: further lines, for example findings of a model that no longer binds.
        near: a line of the head that is left where something was removed.
        accepted: the reason for which it was accepted, `None` where it was not.
    """

    code: str
    level: Level
    fingerprint: str
    spec: str
    message: str
    parts: tuple[Part, ...] = ()
    causes: tuple[Cause, ...] = ()
    earlier: Earlier = Earlier.GOOD
    earlier_why: str = ""
    through: tuple[Through, ...] = ()
    details: tuple[str, ...] = ()
    kind: str = "mapping"
    near: Place | None = None
    accepted: str | None = None

    @property
    def place(self) -> tuple[Place | None, Place | None]:
        """The first line to look at, on both sides: of the edit, else of the first rule."""
        items = [(c.old, c.new) for c in self.causes] + [(p.old, p.new) for p in self.parts]
        return next(((old, new) for old, new in items if old or new), (None, None))

    @property
    def tensors(self) -> int:
        """Megatron tensors that change, over all models under the default flavours (or the first others)."""
        return sum(affected.tensors for part in self.parts for affected in part.affected)

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """(spec, model) of everything affected, each once."""
        return tuple(dict.fromkeys((a.spec, a.model) for part in self.parts for a in part.affected))


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """One reference model before and after, by the default flavours of the base.

    Attributes:
        kind: `mapping` or `provider`; of a provider, the numbers count fields.
        tensors: (before, after) Megatron tensors (fields).
        same, added, removed, retargeted, reordered, other: Megatron tensors by what happened to them; `other` is a
            parallel cut, a dtype, a form in files.
        unmapped: (before, after) Hugging Face tensors that nothing accounts for; `None` where no such name changed.
        published: whether `unmapped` is counted on the names of the published checkpoint (`tests/keys`), or on those
            that the base knew.
    """

    kind: str
    spec: str
    model: str
    state: State
    tensors: tuple[int, int] = (0, 0)
    same: int = 0
    added: int = 0
    removed: int = 0
    retargeted: int = 0
    reordered: int = 0
    other: int = 0
    unmapped: tuple[int, int] | None = None
    published: bool = False


@dataclass(frozen=True, slots=True)
class SpecDiff:
    """A spec before and after.

    Attributes:
        version: (before, after) `metadata.version`; `None` where the spec is absent.
        suggested: the version that its changes ask for; the old one where nothing changes.
        bumped: whether the file's version is at least that.
        includes: names of the specs that it includes or extends.
        place: the line of the version in the head.
    """

    kind: str
    name: str
    path: str
    state: State
    version: tuple[str | None, str | None]
    suggested: str
    bumped: bool
    includes: tuple[str, ...] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything between two sides.

    Attributes:
        base, head: what was compared, in words.
        changes: worst first.
        stale: fingerprints that were accepted and match no change.
    """

    base: str
    head: str
    specs: tuple[SpecDiff, ...]
    models: tuple[ModelDiff, ...]
    changes: tuple[Change, ...]
    stale: tuple[str, ...] = ()

    @property
    def open(self) -> tuple[Change, ...]:
        """Changes that nobody has accepted."""
        return tuple(change for change in self.changes if change.accepted is None)

    @property
    def counts(self) -> Mapping[Level, int]:
        """Open changes by level, for all levels."""
        found = Counter(change.level for change in self.open)
        return {level: found[level] for level in Level}

    @property
    def edited(self) -> bool:
        """Whether any spec reads differently at all."""
        return any(spec.state is not State.IDENTICAL for spec in self.specs)

    @property
    def refactor(self) -> bool:
        """Specs read differently, and do the same."""
        return self.edited and all(change.level is Level.NEUTRAL for change in self.changes)

    def fails(self, on: str | None) -> bool:
        """Whether open changes reach a threshold: `breaking` (and silent), `risky`, `any` (all but neutral)."""
        worst = {None: -1, "breaking": 1, "risky": 2, "any": 3}[on]
        return any(change.level.rank <= worst for change in self.open)


def as_data(value: Any) -> Any:
    """The JSON form of any part of a report: dictionaries by field name, lists, plain values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_data(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple | list):
        return [as_data(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    return value
