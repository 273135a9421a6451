"""The unified layer pattern of Megatron-Core: `main|main/mtp/mtp`, taken apart and put together.

`|` ends a pipeline stage, each `/` begins a multi-token prediction block; all blocks are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError

__all__ = ["HybridPattern", "fold_mtp", "parse_pattern", "split_fields"]

LAYERS = "M*-E"
_OTHERS = {"G": "gated delta net", "D": "sparse attention", "+": "multi-head latent attention"}


@dataclass(frozen=True, slots=True)
class HybridPattern:
    """Attributes: stages (layers of each pipeline stage), mtp (layers of one block, or ""), blocks (how many)."""

    stages: tuple[str, ...]
    mtp: str = ""
    blocks: int = 0

    @property
    def main(self) -> str:
        """Layers of the decoder, without stage borders."""
        return "".join(self.stages)

    def __str__(self) -> str:
        return "/".join(["|".join(self.stages), *[self.mtp] * self.blocks])


def parse_pattern(text: str) -> HybridPattern:
    """Take a unified pattern apart.

    Raises:
        SpecError: unknown symbols, unequal blocks, stage borders inside a block (MS433).
    """
    main, *blocks = text.split("/")
    while blocks and not blocks[-1]:
        blocks.pop()
    found = []
    for part, allowed in [(main, LAYERS + "|"), *((block, LAYERS) for block in blocks)]:
        for i, symbol in enumerate(part):
            if symbol not in allowed:
                found.append(_finding(text, _about(symbol, i, part)))
                break
    for i, block in enumerate(blocks):
        if block != blocks[0]:
            message = f"block {i + 1} after `/` is `{block}`, the first is `{blocks[0]}`; all are alike"
            found.append(_finding(text, message))
    if not main.replace("|", ""):
        found.append(_finding(text, "the decoder has no layers"))
    if found:
        raise SpecError(found)
    return HybridPattern(tuple(main.split("|")), blocks[0] if blocks else "", len(blocks))


def _about(symbol: str, position: int, part: str) -> str:
    if symbol == "|":
        return f"`|` at position {position} of `{part}`: multi-token prediction lives on the last stage as a whole"
    more = f" ({_OTHERS[symbol]} is no layer of this family)" if symbol in _OTHERS else ""
    return f"symbol `{symbol}` at position {position} of `{part}`{more}; layers are {' '.join(LAYERS)}"


def _finding(pattern: str, message: str) -> Diagnostic:
    shown = pattern if len(pattern) <= 80 else f"{pattern[:77]}..."
    return Diagnostic("MS433", f"`hybrid_layer_pattern`: {message}", where=shown)


def fold_mtp(pattern: HybridPattern, fields: Mapping[str, Any]) -> HybridPattern:
    """The pattern with the MTP blocks that the fields ask for.

    Raises:
        SpecError: fields and pattern contradict each other (MS432); both are named.
    """
    depth, wanted = fields.get("mtp_num_layers"), fields.get("mtp_hybrid_override_pattern")
    repeated = bool(fields.get("mtp_use_repeated_layer"))
    mtp = pattern.mtp or (wanted or "" if depth else "")
    if pattern.mtp and wanted and pattern.mtp != wanted:
        message = f"`hybrid_layer_pattern` has blocks `{pattern.mtp}`, `mtp_hybrid_override_pattern` is `{wanted}`"
        raise SpecError(Diagnostic("MS432", message, help="set one of the two; they mean the same"))
    if depth and not mtp:
        message = f"`mtp_num_layers` is {depth}, but `mtp_hybrid_override_pattern` does not spell a block"
        raise SpecError(Diagnostic("MS432", message, help='for example mtp_hybrid_override_pattern = "*E"'))
    if pattern.blocks and depth and not repeated and depth != pattern.blocks:
        message = f"`mtp_num_layers` is {depth}, but `hybrid_layer_pattern` has {pattern.blocks} blocks after `/`"
        help_ = "make them agree; with `mtp_use_repeated_layer` one stored block is applied `mtp_num_layers` times"
        raise SpecError(Diagnostic("MS432", message, help=help_))
    blocks = depth or pattern.blocks
    return HybridPattern(pattern.stages, mtp if blocks else "", blocks)


def split_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with the pattern of the decoder alone: what `fold_mtp` merged is apart again, stage borders are gone."""
    out = dict(fields)
    text = out.get("hybrid_layer_pattern")
    if isinstance(text, str):
        pattern = parse_pattern(text)
        out["hybrid_layer_pattern"] = pattern.main
        if pattern.blocks:
            out["mtp_hybrid_override_pattern"] = pattern.mtp
            if not out.get("mtp_num_layers"):
                out["mtp_num_layers"] = pattern.blocks
    return out
