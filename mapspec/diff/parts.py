"""Collecting what is found for single models, and joining it into changes that a reviewer reads once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mapspec.collapse import collapse
from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.edits import Edit
from mapspec.diff.model import Affected, Change, Earlier, Level, Part, Place, Through

__all__ = ["Found", "Names", "Store", "change_of", "fingerprint"]


@dataclass(slots=True)
class Names:
    """Tensors of one model that a finding is about."""

    flavours: list[str] = field(default_factory=list)
    tensors: int = 0
    megatron: list[str] = field(default_factory=list)
    hf_before: list[str] = field(default_factory=list)
    hf_after: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """One thing that happens to the tensors of one rule, in all models.

    Attributes:
        identity: equal for what is the same finding in another model.
        owner: the spec that is edited.
        block, where: the rule's block, and the mounts that place it; or other words on where it is.
        models: (spec, model) -> the tensors there.
        through: specs that it reaches.
    """

    code: str
    identity: tuple[str, ...]
    owner: str
    subject: str
    before: str = ""
    after: str = ""
    old: Place | None = None
    new: Place | None = None
    block: str = ""
    where: list[str] = field(default_factory=list)
    edits: dict[tuple[str, str], Edit] = field(default_factory=dict)
    models: dict[tuple[str, str], Names] = field(default_factory=dict)
    through: dict[str, Through] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    earlier: tuple[Earlier, str] | None = None
    kind: str = "mapping"

    def part(self) -> Part:
        """As it is reported."""
        affected = tuple(
            Affected(
                spec, model, tuple(names.flavours), names.tensors, _collapsed(names.megatron),
                _collapsed(names.hf_before), _collapsed(names.hf_after),
            )
            for (spec, model), names in self.models.items()
        )  # fmt: skip
        where = ", ".join(dict.fromkeys(f"`{word}`" if self.block else word for word in self.where))
        where = f"block `{self.block}` at {where}" if self.block else where
        return Part(self.subject, where, self.before, self.after, self.old, self.new, affected)

    @property
    def tensors(self) -> int:
        """Over all models."""
        return sum(names.tensors for names in self.models.values())


def _collapsed(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(pattern for pattern, _ in collapse(names))


class Store:
    """All findings, each once; and which rules (file, block, key) some reference model needs, or shows to differ."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, tuple[str, ...]], Found] = {}
        self.alive: set[tuple[str, str, str]] = set()
        self.touched: set[tuple[str, str, str]] = set()

    def get(self, code: str, identity: tuple[str, ...], make: Callable[[], Found]) -> Found:
        key = (code, identity)
        if key not in self.found:
            self.found[key] = make()
        return self.found[key]

    def add(self, found: Found) -> Found:
        return self.found.setdefault((found.code, found.identity), found)


def fingerprint(code: str, spec: str, subjects: Sequence[str], facts: Iterable[Sequence[str]]) -> str:
    """12 hex digits of what changes: the class, the spec, the rules or fields, and the edits or effects."""
    content = json.dumps([code, spec, sorted(subjects), sorted(list(fact) for fact in facts)])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def change_of(group: Sequence[Found], message: str, earlier: tuple[Earlier, str]) -> Change:
    """One change of findings that belong together."""
    ordered = sorted(group, key=lambda f: (-f.tensors, f.subject))
    first = ordered[0]
    edits = {key: edit for f in ordered for key, edit in f.edits.items()}
    through = {name: t for f in ordered for name, t in f.through.items()}
    if edits:
        facts = [(e.file, e.cause.key, e.cause.before, e.cause.after) for e in edits.values()]
    else:
        facts = [("", f.subject, f.before, f.after) for f in ordered]
    return Change(
        code=first.code,
        level=level_of(first.code),
        fingerprint=fingerprint(first.code, first.owner, [f.subject for f in ordered], facts),
        spec=first.owner,
        message=message,
        parts=tuple(f.part() for f in ordered),
        causes=tuple(edit.cause for edit in edits.values()),
        earlier=earlier[0],
        earlier_why=earlier[1],
        through=tuple(through.values()),
        kind=first.kind,
        near=next((edit.near for edit in edits.values()), None),
        details=tuple(dict.fromkeys(line for f in ordered for line in f.details)),
    )


def level_of(code: str) -> Level:
    """How bad a class is."""
    return DIFF_CODES[code].level
