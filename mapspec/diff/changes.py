"""From findings to changes: what belongs together, what it means, how bad it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mapspec.diff.codes import DIFF_CODES
from mapspec.diff.model import Change, Earlier
from mapspec.diff.parts import Found, Store, change_of

__all__ = ["changes_of", "ranked"]

_GOOD, _REFUSED, _CORRUPT = Earlier.GOOD, Earlier.REFUSED, Earlier.CORRUPT
_BACK = "converted back, they give a Hugging Face checkpoint with other values in these tensors"

# Class -> what becomes of checkpoints that were converted before, and why.
EARLIER: dict[str, tuple[Earlier, str]] = {
    "DC101": (_CORRUPT, f"they load without a word, with the values exchanged; {_BACK}"),
    "DC102": (_CORRUPT, f"they load without a word, with the elements in the old order; {_BACK}"),
    "DC103": (
        _REFUSED,
        "they hold a tensor that the new version does not know: converting them back stops at the plan",
    ),
    "DC104": (_CORRUPT, f"they load without a word, with the weights in each other's places; {_BACK}"),
    "DC105": (_GOOD, "files hold whole tensors; only live models of several ranks differ"),
    "DC106": (_GOOD, "they hold the dtype that they were written with"),
    "DC107": (_CORRUPT, "they load without a word, into a model that computes something else"),
    "DC201": (
        _REFUSED,
        "they hold a tensor that the new version does not know: converting them back stops at the plan",
    ),
    "DC202": (_GOOD, "their Megatron side is the same; converted back, they have the new names"),
    "DC203": (_REFUSED, "the torch_dist key that is looked for is not there"),
    "DC204": (_REFUSED, "their tensors have the old shape"),
    "DC205": (_GOOD, "files hold whole tensors; live models of several ranks are refused"),
    "DC206": (_REFUSED, "they lack the tensor"),
    "DC207": (_GOOD, "keys in files are the same; live models with the old names are refused"),
    "DC208": (_REFUSED, "nothing is converted for this model"),
    "DC209": (_REFUSED, "nothing is converted with this spec"),
    "DC210": (_REFUSED, "the spec that their mapspec.json names is gone"),
    "DC211": (_REFUSED, "a model with other shapes does not load them"),
    "DC212": (_REFUSED, "they hold a tensor more or less than is looked for"),
    "DC213": (_GOOD, "name the spec with --spec"),
    "DC214": (_GOOD, "they are the same; commands that name the choice are refused"),
    "DC215": (_GOOD, "name the old choice with --flavour"),
    "DC216": (_REFUSED, "a strict load of Megatron-Core asks for other byte objects; convert again, or load without"),
}


def changes_of(store: Store) -> tuple[Change, ...]:
    """All changes, worst first."""
    changes = []
    for code in DIFF_CODES:
        found = [f for f in store.found.values() if f.code == code]
        for group in _groups(code, found):
            changes.append(change_of(group, _message(code, group), _earlier(code, group)))
    return ranked(_distinct(changes))


def ranked(changes: Iterable[Change]) -> tuple[Change, ...]:
    """What is broken comes first: nothing else can be said of it. Then by level, class and size."""
    broken = ("DC209", "DC208")
    return tuple(
        sorted(changes, key=lambda c: (c.code not in broken, c.level.rank, c.code, -c.tensors, c.spec, c.message))
    )


def _distinct(changes: Sequence[Change]) -> Iterator[Change]:
    """Changes of one class on one edit get fingerprints of their own."""
    seen: dict[str, int] = {}
    for change in changes:
        seen[change.fingerprint] = seen.get(change.fingerprint, 0) + 1
        number = seen[change.fingerprint]
        yield change if number == 1 else replace(change, fingerprint=f"{change.fingerprint}-{number}")


def _groups(code: str, found: Sequence[Found]) -> list[list[Found]]:
    """Findings that are one change: those with an edit in common, and tensors that are exchanged with each other."""
    groups: list[list[Found]] = []
    marks: list[set[object]] = []
    for f in found:
        mine: set[object] = set(f.edits) or {f.identity}
        if code == "DC101":
            mine |= {name for names in f.models.values() for name in (*names.hf_before, *names.hf_after)}
        joined, rest, rest_marks = [f], [], []
        for group, mark in zip(groups, marks, strict=True):
            if mark & mine and group[0].owner == f.owner:
                joined, mine = group + joined, mine | mark
            else:
                rest.append(group)
                rest_marks.append(mark)
        groups, marks = [*rest, joined], [*rest_marks, mine]
    return groups


def _earlier(code: str, group: Sequence[Found]) -> tuple[Earlier, str]:
    if code == "DC215" and any(line.startswith("by default: DC20") for f in group for line in f.details):
        pass
    return group[0].earlier or EARLIER.get(code, (_GOOD, "nothing changes for them"))


def _message(code: str, group: Sequence[Found]) -> str:
    """One line: what happens to how many tensors of how many models."""
    first = max(group, key=lambda f: f.tensors)
    subjects = list(dict.fromkeys(f"`{f.subject}`" for f in group))
    listed = " and ".join(subjects) if len(subjects) <= 2 else f"{subjects[0]} and {len(subjects) - 1} more"
    models = {model for f in group for model in f.models}
    size = _size(first, models, group)
    texts = {
        "DC101": f"{listed} {'take' if len(subjects) > 1 else 'takes'} exchanged values{_exchange(group)}",
        "DC102": f"{listed}: elements in another order",
        "DC103": f"{listed}: mapped before, now {first.after.partition(':')[0]}",
        "DC104": f"{listed}: the same names, paired in another way",
        "DC105": f"{listed}: ranks get other elements",
        "DC106": f"{listed}: its dtype is no longer kept",
        "DC107": f"{listed}: {first.before} is now {first.after}, and no shape shows it",
        "DC201": f"{listed}: mapped before, now nothing takes it",
        "DC202": f"{listed}: made of another Hugging Face tensor",
        "DC203": f"{listed}: another key in torch_dist",
        "DC204": f"{listed}: another shape",
        "DC205": f"{listed}: parallelism cuts it in another way",
        "DC206": f"{listed}: needed now, and was not",
        "DC207": f"{listed}: another parameter name, the same key in files",
        "DC208": f"{first.subject} no longer works",
        "DC209": f"{first.subject} cannot be read any more",
        "DC210": f"the {first.where[0] if first.where else 'spec'} {first.subject} is gone",
        "DC211": f"{listed}: {first.before} is now {first.after}, and shapes depend on it",
        "DC212": f"{listed}: {first.before} before, now {first.after}",
        "DC213": f"architecture {listed} is no longer listed",
        "DC214": f"flavour {listed}: {first.before} before, now {first.after}",
        "DC215": f"flavour {listed}: the default was {first.before}, now {first.after}",
        "DC216": f"{listed}: other byte objects",
        "DC217": f"{listed}: fewer dtypes, or never cast",
        "DC301": f"the condition of {listed} reads differently, and no reference model shows what that does",
        "DC302": f"{listed}: a rule that no reference model needs",
        "DC303": f"config key {listed} is no longer read",
        "DC304": f"{listed}: {first.before} is now {first.after}, for runs that do not set it",
        "DC305": f"{listed}: {first.before} before, now {first.after}",
        "DC306": f"{listed} is no reference model any more",
        "DC307": f"Megatron-Core {first.subject}: {first.before} before, now {first.after}",
        "DC308": f"config key {listed}: {first.before} before, now {first.after}",
        "DC309": f"{listed} of the exported config.json: {first.before} before, now {first.after}",
        "DC401": f"{listed}: {first.before} before, now {first.after}",
        "DC402": f"{listed}: mapped now, and was not",
        "DC403": f"new {first.where[0] if first.where else 'spec'} {first.subject}",
        "DC404": f"{listed}: new",
        "DC501": f"{first.subject} reads differently and does the same",
        "DC502": f"{listed}: a note or reason reads differently",
        "DC503": f"the config of {listed} differs; both sides are bound to the new one",
        "DC901": f"{first.subject} should be {first.after}, the file says {first.before}",
    }
    return texts[code] + size


def _exchange(group: Sequence[Found]) -> str:
    """What is taken now, of the first rule: of a fused tensor, the segments that differ."""
    first = max(group, key=lambda f: f.tensors)
    before, after = first.before.split(", "), first.after.split(", ")
    if len(before) != len(after):
        return f": {first.after}"
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    return ": " + ", ".join(f"{b} (was {a.rpartition('<- ')[2]})" for a, b in pairs)


def _size(first: Found, models: set[tuple[str, str]], group: Sequence[Found]) -> str:
    if not models:
        return ""
    most = max(sum(f.models[m].tensors for f in group if m in f.models) for m in models)
    count = f"{len(models)} model{'s' if len(models) != 1 else ''}"
    if not most:
        return f" ({count})"
    return (
        f" ({count}, up to {most:,} tensor{'s' if most != 1 else ''} each)"
        if len(models) > 1
        else (f" ({count}, {most:,} tensor{'s' if most != 1 else ''})")
    )
