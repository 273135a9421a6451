"""Changes that were looked at and wanted: a file of fingerprints, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ruamel.yaml import YAML

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.diff.model import Change
from mapspec.errors import DiffError
from mapspec.text import read_yaml

__all__ = ["ACCEPTED", "Accepted", "accept", "read_accepted"]

ACCEPTED = ".mapspec-accepted.yaml"
_HEAD = """\
# Changes of what specs do that were looked at and wanted. `mapspec diff --accept FINGERPRINT --reason ...` adds one.
# An entry stops counting when the change is another one; remove entries that `mapspec diff` calls stale.
"""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Fingerprint -> reason."""

    reasons: Mapping[str, str]

    def applied(self, changes: Iterable[Change]) -> tuple[tuple[Change, ...], tuple[str, ...]]:
        """The changes with their reasons, and the fingerprints that match none."""
        marked = tuple(replace(change, accepted=self.reasons.get(change.fingerprint)) for change in changes)
        known = {change.fingerprint for change in marked}
        return marked, tuple(f for f in self.reasons if f not in known)


def read_accepted(path: Path) -> Accepted:
    """The accepted changes of a file; none where it does not exist.

    Raises:
        DiffError: MS857 for an entry without a reason, or a file of another form.
        SpecError: MS001, MS002 for what is no YAML.
    """
    if not path.is_file():
        return Accepted({})
    tree = read_yaml(path)
    entries = tree.data.get("accepted") or {}
    found = []
    if not isinstance(entries, dict) or set(tree.data) - {"accepted"}:
        message = "this file has one key, `accepted`: fingerprint -> class, change and reason"
        raise DiffError(Diagnostic("MS857", message, tree.span(())))
    reasons = {}
    for key, entry in entries.items():
        reason = entry.get("reason") if isinstance(entry, dict) else None
        if not isinstance(reason, str) or len(reason.strip()) < _LEAST:
            message = f"`{key}` is accepted without a reason"
            help_ = f"write `reason:` with at least {_LEAST} characters: why is the change right?"
            found.append(Diagnostic("MS857", message, tree.span(("accepted", key), of_key=True), help=help_))
        else:
            reasons[str(key)] = reason
    if found:
        raise DiffError(found)
    return Accepted(reasons)


_LEAST = 8


def accept(path: Path, changes: Iterable[Change], fingerprints: Iterable[str], reason: str) -> list[Change]:
    """Write changes into the file of accepted ones.

    Returns:
        Those that were added.

    Raises:
        DiffError: MS857 without a reason, MS858 for a fingerprint that no change has.
    """
    if len(reason.strip()) < _LEAST:
        help_ = f"write --reason with at least {_LEAST} characters: why is the change right?"
        raise DiffError(Diagnostic("MS857", "a change is accepted with a reason", where="--reason", help=help_))
    known = {change.fingerprint: change for change in changes}
    added = []
    for wanted in dict.fromkeys(fingerprints):
        if wanted not in known:
            help_ = f"there are: {', '.join(known)}" if known else "nothing changes"
            message = f"no change has the fingerprint `{wanted}`"
            raise DiffError(
                Diagnostic("MS858", message, where=f"--accept {wanted}", hint=nearest(wanted, known), help=help_)
            )
        added.append(known[wanted])
    yaml = YAML()
    yaml.width = 4096
    data = yaml.load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if data is None:
        data = yaml.load(_HEAD + "accepted: {}\n")
        data["accepted"] = {}
    for change in added:
        entry = {"class": change.code, "spec": change.spec, "change": change.message, "reason": reason.strip()}
        data["accepted"][change.fingerprint] = entry
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(data, file)
    return added
