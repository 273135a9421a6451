"""A bound scope -> its rules at every live mount, with the names and positions that they have there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mapspec.axes import Position, ravel
from mapspec.bind_values import BoundScope
from mapspec.bound import BoundDim, BoundObjects, BoundRule, Side
from mapspec.diagnostics import Span
from mapspec.names import Pattern, join, parse_name
from mapspec.schema import v1
from mapspec.scope import spelled
from mapspec.tensors import DTYPES

__all__ = ["ScopeRules"]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What the names at a mount begin with."""

    megatron: Pattern
    hf: Pattern
    stored: Pattern


class ScopeRules:
    """What one scope declares: rules, objects, ties, and names that are passed through or ignored.

    Args:
        at: the scope. It collects the findings.
    """

    def __init__(self, at: BoundScope) -> None:
        self.at = at
        # Of positions and further axes; the experts of a layer have several weights, and thousands of positions.
        self._inner: dict[tuple[int, tuple[str, ...]], tuple[tuple[Position, ...], tuple[Position, ...]]] = {}

    def mounts(self) -> Iterator[tuple[str, v1.Mount, Prefixes]]:
        """Live mounts with their prefixes."""
        for name, mount in self.at.spec.mounts.items():
            if not self.at.holds(mount.when, self.at.scope.span("mounts", name, "when")):
                continue
            megatron = self.mounted(name, mount, "megatron", spelled(mount, "megatron", self.at.active))
            hf = self.mounted(name, mount, "hf", spelled(mount, "hf", self.at.active))
            stored = spelled(mount, "stored", self.at.active)
            in_files = megatron if stored is None else self.mounted(name, mount, "megatron", stored)
            yield name, mount, Prefixes(megatron, hf, in_files)

    def mounted(self, name: str, mount: v1.Mount, side: Literal["megatron", "hf"], text: str | None) -> Pattern:
        """A prefix of a mount within that of the scope."""
        outer = self.at.scope.prefix(side, self.at.all_flavours, name)
        return join(outer, parse_name(text or "").named(mount.wildcards))

    def placed(self) -> Iterator[tuple[str, str, v1.Block, Prefixes, tuple[Position, ...]]]:
        """(mount, block name, block, prefixes, positions) of every live block at every live mount."""
        for name, mount, prefixes in self.mounts():
            positions = self.positions(name, mount, prefixes)
            for block_name, block in self.at.spec.blocks.items():
                if mount.kinds_of is not None:
                    kinds = {k for k, kind in self.at.spec.kinds.items() if block_name in kind.blocks}
                    axis = self.at.axes[mount.kinds_of]
                    here = tuple(p for p in positions if axis.kinds[p[mount.kinds_of]] in kinds)
                else:
                    here = positions if block_name in mount.blocks else ()
                if here and self.at.holds(block.when, self.at.scope.span("blocks", block_name, "when")):
                    yield name, block_name, block, prefixes, here

    def positions(self, name: str, mount: v1.Mount, prefixes: Prefixes) -> tuple[Position, ...]:
        """The values of all axes of a mount, position by position."""
        used = dict.fromkeys((*prefixes.megatron.holes, *prefixes.hf.holes))
        raveled = {a: self.at.axes[a].ravel for a in used if self.at.axes[a].ravel is not None}
        base = list(dict.fromkeys(b for a in used for b in (raveled.get(a) or (a,))))
        if mount.kinds_of is not None and mount.kinds_of not in base:
            base.append(mount.kinds_of)
        ranges: list[Sequence[int]] = []
        for axis in base:
            size = self.at.axes[axis].size
            at = mount.pin.get(axis)
            if at is None:
                ranges.append(range(size))
            else:
                fixed = 0 if at == "first" else size - 1 if at == "last" else int(at)
                if size and fixed >= size:
                    message = f"`{axis}` has {size} positions, so none is pinned by {fixed} (the first is 0)"
                    self.at.report("MS402", message, self.at.scope.span("mounts", name, "pin", axis))
                ranges.append((fixed,) if 0 <= fixed < size else ())
        out = []
        for values in itertools.product(*ranges):
            position = dict(zip(base, values, strict=True))
            for axis, pair in raveled.items():
                assert pair is not None
                position[axis] = ravel(position[pair[0]], position[pair[1]], self.at.axes[pair[1]].size)
            out.append(position)
        return tuple(out)

    def rules(self) -> Iterator[BoundRule]:
        for mount, block_name, block, prefixes, positions in self.placed():
            for key, rule in block.tensors.items():
                path = ("blocks", block_name, "tensors", key)
                if self.at.holds(rule.when, self.at.scope.span(*path, "when")):
                    bound = self.rule(mount, block_name, block, key, rule, prefixes, positions)
                    if bound is not None:
                        yield bound

    def inner(self, positions: tuple[Position, ...], axes: tuple[str, ...]) -> tuple[Position, ...]:
        """Each of the positions with every value of further axes; for equal arguments the same object."""
        known = self._inner.get((id(positions), axes))
        if known is None:  # the positions are kept, so that their identity is not given to others
            ranges = [range(self.at.axes[axis].size) for axis in axes]
            inner = [dict(zip(axes, values, strict=True)) for values in itertools.product(*ranges)]
            known = positions, tuple([{**position, **more} for position in positions for more in inner])
            self._inner[id(positions), axes] = known
        return known[1]

    def rule(
        self, mount: str, block_name: str, block: v1.Block, key: str, rule: v1.Rule,
        prefixes: Prefixes, positions: tuple[Position, ...],
    ) -> BoundRule | None:  # fmt: skip
        path = ("blocks", block_name, "tensors", key)
        spellings = [s for choice, s in rule.flavours.items() if choice in self.at.active]
        name = next((s.megatron for s in spellings if s.megatron is not None), key)
        hf_names = next((s.hf for s in spellings if s.hf is not None), rule.hf)
        stored = next((s.stored for s in spellings if s.stored is not None), rule.stored) or name
        span = self.at.scope.span(*path, of_key=True)
        sides = {None: hf_names} if isinstance(hf_names, str) else dict(hf_names)
        hf_side = tuple(
            Side(
                join(prefixes.hf, parse_name(text).named(block.wildcards)),
                segment,
                self.at.scope.span(*path, "hf", *filter(None, [segment])),
            )
            for segment, text in sides.items()
        )
        megatron_side = Side(join(prefixes.megatron, parse_name(name).named(block.wildcards)), None, span)
        stored_side = Side(join(prefixes.stored, parse_name(stored).named(block.wildcards)), None, span)
        dims: list[BoundDim] | None = None
        if rule.shape is not None:
            dims = []
            for i, dim_name in enumerate(rule.shape):
                dim = self.at.dim(dim_name, self.at.scope.span(*path, "shape", i))
                if dim is None:
                    return None
                dims.append(dim)
        role = self.at.spec.roles[rule.role]
        dtype = self.at.evaluate(role.dtype, self.at.scope.span("roles", rule.role, "dtype"), what="dtype")
        if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
            self.at.report("MS402", f"`{dtype}` is no dtype", self.at.scope.span("roles", rule.role, "dtype"))
        own = dict.fromkeys(
            h for side in (megatron_side, stored_side, *hf_side) for h in side.pattern.holes if h not in positions[0]
        )
        if own:
            positions = self.inner(positions, tuple(own))
        return BoundRule(
            key, span, self.at.scope.id, mount, block_name, megatron_side, hf_side, stored_side,
            None if dims is None else tuple(dims), role, rule.role, str(dtype).removeprefix("torch."),
            self.at.axes, positions, rule.note,
        )  # fmt: skip

    def objects(self) -> Iterator[BoundObjects]:
        for _, block_name, block, prefixes, positions in self.placed():
            for i, objects in enumerate(block.objects):
                if self.at.holds(objects.when, self.at.scope.span("blocks", block_name, "objects", i, "when")):
                    names = tuple(join(prefixes.stored, parse_name(text)) for text in objects.names)
                    # Where torch_dist stacks the positions of the mount, it numbers their objects.
                    stacked = [a for a in prefixes.megatron.holes if a not in prefixes.stored.holes]
                    axis = objects.each or next(iter(stacked), None)
                    each = None if axis is None else self.at.axes[axis]
                    yield BoundObjects(names, each, positions)

    def ties(self) -> Iterator[tuple[Pattern, Pattern, Span]]:
        for name, tie in self.at.spec.tied.items():
            if self.at.holds(tie.when, self.at.scope.span("tied", name, "when")):
                prefix = self.at.scope.prefix("megatron", self.at.all_flavours)
                span = self.at.scope.span("tied", name, of_key=True)
                yield join(prefix, parse_name(name)), join(prefix, parse_name(tie.to)), span

    def listed(self, section: str) -> Iterator[tuple[Pattern, str, Span]]:
        side: Literal["megatron", "hf"] = "megatron" if section == "ignore_megatron" else "hf"
        prefix = self.at.scope.prefix(side, self.at.all_flavours)
        for name, reason in getattr(self.at.spec, section).items():
            yield join(prefix, parse_name(name)), reason, self.at.scope.span(section, name, of_key=True)
