"""Every code that mapspec can print, in one place. `mapspec rule CODE` shows an entry."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "Code"]


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of finding.

    Attributes:
        name: readable after "allow", for example `unknown-key`.
        what: what the check looks at and why it matters.
        fix: what to do.
    """

    name: str
    what: str
    fix: str


# Ranges: 0xx text, 1xx schema, 2xx names, 3xx linking, 4xx config and provider, 5xx coverage and proof,
# 60x-64x Hugging Face folders, 65x-69x torch_dist folders, 7xx conversion, 8xx verification.
CODES: dict[str, Code] = {
    "MS601": Code(
        "not-a-checkpoint",
        "The folder holds neither a Hugging Face checkpoint nor a Megatron-Core one.",
        "Point at the folder with config.json, or at the folder with .metadata or iter_*.",
    ),
}
