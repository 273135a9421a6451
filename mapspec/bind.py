"""Linked spec + one HF config -> bound rules: every size a number, every condition decided, every choice made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mapspec.arrange import parse_arrangement, unroll
from mapspec.axes import BoundAxis, Position, bind_axes, bind_axis, ravel
from mapspec.bound import Bound, BoundDim, BoundObjects, BoundRule, Choices, Side
from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.errors import SpecError
from mapspec.expr import Expr, ExprError, MissingKeyError, parse_expr
from mapspec.names import Pattern, join, parse_name
from mapspec.schema import v1
from mapspec.scope import Linked, Scope, spelled
from mapspec.tensors import DTYPES
from mapspec.text import Path_

__all__ = ["Bound", "BoundDim", "BoundObjects", "BoundRule", "BoundScope", "Choices", "Side", "bind"]


def bind(linked: Linked, config: Mapping[str, Any], choices: Choices | None = None) -> Bound:
    """Decide everything that depends on the config.

    Args:
        linked: the spec.
        config: contents of config.json.
        choices: the user's decisions.

    Raises:
        SpecError: keys that the config lacks (MS401), values that do not fit (MS402 to MS407), collected.
    """
    choices = choices or Choices()
    flavours = choose_flavours(linked, choices)
    found: list[Diagnostic] = []
    by_id: dict[str, BoundScope] = {}
    for scope in linked.scopes:
        # A scope that does not exist for this config is not computed at all: its part of the config is absent.
        if all(p.id in by_id and by_id[p.id].holds(e, span) for p, e, span in scope.conditions):
            by_id[scope.id] = BoundScope(scope, config, flavours, choices, found)
    live = [scope for scope in by_id.values() if scope.has_config]
    rules = [rule for scope in live for rule in scope.rules()]
    objects = [o for scope in live for o in scope.objects()]
    ties = tuple(tie for scope in live for tie in scope.ties())
    sections = ("passthrough", "ignore_hf", "ignore_megatron")
    listed = {name: tuple(x for scope in live for x in scope.listed(name)) for name in sections}
    asked = choices.padded_vocab_size
    if asked is not None and not any(dim.padded for rule in rules for dim in rule.dims or ()):
        message = f"no dimension of this mapping can be padded, so not to {asked} rows either"
        span = linked.top.span("dims", of_key=True)
        help_ = "mark the dimension with `pad: vocabulary`, or leave --padded-vocab-size out"
        found.append(Diagnostic("MS406", message, span, help=help_))
    if found:
        raise SpecError(_merged(found))
    return Bound(linked, config, choices, flavours, tuple(rules), tuple(objects), ties, **listed)


def _merged(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """The findings in order; a key that the config lacks is one finding, however many places need it."""
    out: dict[object, Diagnostic] = {}
    for d in sorted(set(found), key=Diagnostic.sort_key):
        # The message up to the comma names the key.
        key = d.message.split(", which", 1)[0] if d.code == "MS401" else d
        if key in out:
            out[key] = out[key].with_note("needed here too", d.span)
        else:
            out[key] = d
    return list(out.values())


def choose_flavours(linked: Linked, choices: Choices) -> dict[str, str]:
    """The choice of every flavour: the user's, else the default of the Megatron-Core version.

    Raises:
        SpecError: MS407 for a flavour or choice that does not exist.
    """
    declared = linked.flavours()
    found = []
    for name, choice in choices.flavours.items():
        if name not in declared:
            help_ = f"there are: {', '.join(sorted(declared)) or 'none'}"
            message = f"`{linked.name}` has no flavour `{name}`"
            hint = nearest(name, declared)
            found.append(Diagnostic("MS407", message, where=f"--flavour {name}={choice}", hint=hint, help=help_))
        elif choice not in declared[name].choices:
            help_ = f"there are: {', '.join(declared[name].choices)}"
            message = f"flavour `{name}` has no choice `{choice}`"
            hint = nearest(choice, declared[name].choices)
            found.append(Diagnostic("MS407", message, where=f"--flavour {name}={choice}", hint=hint, help=help_))
    if found:
        raise SpecError(found)
    out = {}
    for name, flavour in declared.items():
        older = [
            (version, choice)
            for text, choice in flavour.before.items()
            if choices.megatron_version < (version := tuple(int(part) for part in text.split(".")))
        ]
        out[name] = choices.flavours.get(name) or (min(older)[1] if older else flavour.default)
    return out


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What the names at a mount begin with."""

    megatron: Pattern
    hf: Pattern
    stored: Pattern


class BoundScope:
    """Computes the names of one scope on demand, each once, and collects what cannot be computed."""

    def __init__(
        self, scope: Scope, config: Mapping[str, Any], flavours: Mapping[str, str], choices: Choices,
        found: list[Diagnostic],
    ) -> None:  # fmt: skip
        self.scope = scope
        self.spec = scope.spec
        self.all_flavours = flavours
        # Another scope's switches may have the names of this one's values and choices.
        self.flavours = {name: choice for name, choice in flavours.items() if name in scope.spec.flavours}
        self.active = scope.active(flavours)
        self.choices = choices
        self.found = found
        self.config = next((path for path in scope.configs if _part(config, path) is not None), scope.configs[0])
        part = _part(config, self.config)
        self.has_config = part is not None
        self.hf: Mapping[str, Any] = {} if part is None else part
        self.values: dict[str, Any] = {}
        self.running: list[str] = []
        self.axes: dict[str, BoundAxis] = {}
        self.dims: dict[str, BoundDim | None] = {}
        if self.has_config:
            bind_axes(self)
        else:
            keys = [".".join(path) for path in scope.configs]
            listed = f"no `{keys[0]}`" if len(keys) == 1 else "none of " + ", ".join(f"`{key}`" for key in keys)
            help_ = "is this the config of another model? an include that not every model has takes a `when`"
            notes = tuple(Note("included here", at) for at in reversed(scope.chain[:-1]))
            self.found.append(
                Diagnostic("MS401", f"the config has {listed}", scope.config_span, notes=notes, help=help_)
            )

    # --- values ------------------------------------------------------------------------------------------------

    def lookup(self, name: str) -> Any:
        """The value of a name of this scope."""
        if name in self.flavours:
            return self.flavours[name]
        if name not in self.values:
            if name in self.running:
                ring = " -> ".join([*self.running[self.running.index(name) :], name])
                raise ExprError(f"it is computed from itself: {ring}")
            self.running.append(name)
            try:
                self.values[name] = self.compute(name)
            finally:
                self.running.pop()
        return self.values[name]

    def compute(self, name: str) -> Any:
        spec = self.spec
        if name in spec.values:
            return self.compute_text(spec.values[name], ("values", name))
        if name in spec.axes:
            return bind_axis(self, name).size
        dim = spec.dims[name]
        if dim.size is not None:
            return self.compute_text(dim.size, ("dims", name, "size"))
        sizes = self.sizes(name, dim)
        return sum(sizes[segment] for segment in self.order(name, dim))

    def compute_text(self, text: str, path: Path_) -> Any:
        """The value of an expression of the spec. What goes wrong is known to have gone wrong there."""
        try:
            return parse_expr(text)(self.hf, self.lookup)
        except ExprError as error:
            error.origin = error.origin or (text, self.scope.span(*path))
            raise

    def sizes(self, name: str, dim: v1.Dim) -> dict[str, int]:
        """Rows of each segment."""
        out = {}
        for segment, text in (dim.segments or {}).items():
            path = ("dims", name, "segments", segment)
            size = self.compute_text(text, path)
            if not _is_count(size):
                raise ExprError(
                    f"segment `{segment}` is {size!r}, not a number of elements", origin=(text, self.scope.span(*path))
                )
            out[segment] = size
        return out

    def order(self, name: str, dim: v1.Dim) -> tuple[str, ...]:
        """The segments as they lie on the Megatron side."""
        if dim.segments is None:
            return ("",)
        text = dim.order or " ".join(dim.segments)

        def count(word: str) -> int:
            times = self.lookup(word)
            if not _is_count(times) or times > _MOST_REPEATS:
                span = self.scope.span("dims", name, "order")
                raise ExprError(f"`{word}` is {times!r}, not a number of repetitions", origin=(text, span))
            return int(times)

        return unroll(parse_arrangement(text), count)

    def evaluate(self, text: str, span: Span, *, what: str = "value") -> Any:
        """The value of an expression, or `None` with a finding where it cannot be computed."""
        try:
            return parse_expr(text)(self.hf, self.lookup)
        except MissingKeyError as error:
            text, span = error.origin or (text, span)
            keys = [".".join((*self.config, key)) for key in error.keys]
            listed = f"no `{keys[0]}`" if len(keys) == 1 else "none of " + ", ".join(f"`{key}`" for key in keys)
            help_ = f"add it to config.json, or wrap it in the spec: default(hf.{error.key}, ...)"
            hint = next((h for key in error.keys if (h := nearest(key, [str(k) for k in self.hf]))), None)
            span = span.part(text, error.column, len(f"hf.{keys[0]}") if len(keys) == 1 else 0)
            self.report("MS401", f"the config has {listed}, which `{text}` needs", span, hint=hint, help=help_)
        except ExprError as error:
            text, span = error.origin or (text, span)
            self.report("MS402", f"this {what} cannot be computed: {error}", span)
        return None

    def report(self, code: str, message: str, span: Span, *, hint: str | None = None, help: str | None = None) -> None:
        notes = tuple(Note("included here", at) for at in reversed(self.scope.chain))
        self.found.append(Diagnostic(code, message, span, hint=hint, help=help, notes=notes))

    def holds(self, expr: Expr | str | None, span: Span) -> bool:
        """Whether a condition holds; no condition always does."""
        if expr is None:
            return True
        text = expr.text if isinstance(expr, Expr) else expr
        return bool(self.evaluate(text, span, what="condition"))

    def dim(self, name: str, span: Span) -> BoundDim | None:
        """A dimension with its numbers; `None` with a finding where it has none."""
        if name.isdigit():
            return BoundDim(name, int(name), {"": int(name)}, ("",))
        if name not in self.dims:
            self.dims[name] = self.bind_dim(name, self.spec.dims[name])
        return self.dims[name]

    def bind_dim(self, name: str, dim: v1.Dim) -> BoundDim | None:
        span = self.scope.span("dims", name)
        size = self.evaluate(name, span, what="size")
        if size is None:
            return None
        if not _is_count(size):
            self.report("MS402", f"dim `{name}` is {size!r}, not a number of elements", span)
            return None
        padded = None
        if dim.pad is not None and self.choices.padded_vocab_size is not None:
            padded = self.choices.padded_vocab_size
            if padded < size:
                message = f"the padded vocabulary of {padded} is smaller than the vocabulary of {size}"
                self.report("MS406", message, span)
        if dim.segments is None:
            return BoundDim(name, size, {"": size}, ("",), dim.split, pads=dim.pad is not None, padded=padded)
        return BoundDim(
            name, size, self.sizes(name, dim), self.order(name, dim), dim.split, dim.split_by, dim.stored_by
        )

    # --- rules -------------------------------------------------------------------------------------------------

    def mounts(self) -> Iterator[tuple[str, v1.Mount, Prefixes]]:
        """Live mounts with their prefixes."""
        for name, mount in self.spec.mounts.items():
            if not self.holds(mount.when, self.scope.span("mounts", name, "when")):
                continue
            megatron = self.mounted(name, mount, "megatron", spelled(mount, "megatron", self.active))
            hf = self.mounted(name, mount, "hf", spelled(mount, "hf", self.active))
            stored = spelled(mount, "stored", self.active)
            in_files = megatron if stored is None else self.mounted(name, mount, "megatron", stored)
            yield name, mount, Prefixes(megatron, hf, in_files)

    def mounted(self, name: str, mount: v1.Mount, side: Literal["megatron", "hf"], text: str | None) -> Pattern:
        """A prefix of a mount within that of the scope."""
        outer = self.scope.prefix(side, self.all_flavours, name)
        return join(outer, parse_name(text or "").named(mount.wildcards))

    def placed(self) -> Iterator[tuple[str, str, v1.Block, Prefixes, tuple[Position, ...]]]:
        """(mount, block name, block, prefixes, positions) of every live block at every live mount."""
        for name, mount, prefixes in self.mounts():
            positions = self.positions(name, mount, prefixes)
            for block_name, block in self.spec.blocks.items():
                if mount.kinds_of is not None:
                    kinds = {k for k, kind in self.spec.kinds.items() if block_name in kind.blocks}
                    axis = self.axes[mount.kinds_of]
                    here = tuple(p for p in positions if axis.kinds[p[mount.kinds_of]] in kinds)
                else:
                    here = positions if block_name in mount.blocks else ()
                if here and self.holds(block.when, self.scope.span("blocks", block_name, "when")):
                    yield name, block_name, block, prefixes, here

    def positions(self, name: str, mount: v1.Mount, prefixes: Prefixes) -> tuple[Position, ...]:
        """The values of all axes of a mount, position by position."""
        used = dict.fromkeys((*prefixes.megatron.holes, *prefixes.hf.holes))
        raveled = {a: self.axes[a].ravel for a in used if self.axes[a].ravel is not None}
        base = list(dict.fromkeys(b for a in used for b in (raveled.get(a) or (a,))))
        if mount.kinds_of is not None and mount.kinds_of not in base:
            base.append(mount.kinds_of)
        ranges: list[Sequence[int]] = []
        for axis in base:
            size = self.axes[axis].size
            at = mount.pin.get(axis)
            if at is None:
                ranges.append(range(size))
            else:
                fixed = 0 if at == "first" else size - 1 if at == "last" else int(at)
                if size and fixed >= size:
                    message = f"`{axis}` has {size} positions, so none is pinned by {fixed} (the first is 0)"
                    self.report("MS402", message, self.scope.span("mounts", name, "pin", axis))
                ranges.append((fixed,) if 0 <= fixed < size else ())
        out = []
        for values in itertools.product(*ranges):
            position = dict(zip(base, values, strict=True))
            for axis, pair in raveled.items():
                assert pair is not None
                position[axis] = ravel(position[pair[0]], position[pair[1]], self.axes[pair[1]].size)
            out.append(position)
        return tuple(out)

    def rules(self) -> Iterator[BoundRule]:
        for mount, block_name, block, prefixes, positions in self.placed():
            for key, rule in block.tensors.items():
                path = ("blocks", block_name, "tensors", key)
                if self.holds(rule.when, self.scope.span(*path, "when")):
                    bound = self.rule(mount, block_name, block, key, rule, prefixes, positions)
                    if bound is not None:
                        yield bound

    def rule(
        self, mount: str, block_name: str, block: v1.Block, key: str, rule: v1.Rule,
        prefixes: Prefixes, positions: tuple[Position, ...],
    ) -> BoundRule | None:  # fmt: skip
        path = ("blocks", block_name, "tensors", key)
        spellings = [s for choice, s in rule.flavours.items() if choice in self.active]
        name = next((s.megatron for s in spellings if s.megatron is not None), key)
        hf_names = next((s.hf for s in spellings if s.hf is not None), rule.hf)
        stored = next((s.stored for s in spellings if s.stored is not None), rule.stored) or name
        span = self.scope.span(*path, of_key=True)
        sides = {None: hf_names} if isinstance(hf_names, str) else dict(hf_names)
        hf_side = tuple(
            Side(
                join(prefixes.hf, parse_name(text).named(block.wildcards)),
                segment,
                self.scope.span(*path, "hf", *filter(None, [segment])),
            )
            for segment, text in sides.items()
        )
        megatron_side = Side(join(prefixes.megatron, parse_name(name).named(block.wildcards)), None, span)
        stored_side = Side(join(prefixes.stored, parse_name(stored).named(block.wildcards)), None, span)
        dims: list[BoundDim] | None = None
        if rule.shape is not None:
            dims = []
            for i, dim_name in enumerate(rule.shape):
                dim = self.dim(dim_name, self.scope.span(*path, "shape", i))
                if dim is None:
                    return None
                dims.append(dim)
        role = self.spec.roles[rule.role]
        dtype = self.evaluate(role.dtype, self.scope.span("roles", rule.role, "dtype"), what="dtype")
        if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
            self.report("MS402", f"`{dtype}` is no dtype", self.scope.span("roles", rule.role, "dtype"))
        own = dict.fromkeys(
            h for side in (megatron_side, stored_side, *hf_side) for h in side.pattern.holes if h not in positions[0]
        )
        if own:
            ranges = [range(self.axes[a].size) for a in own]
            inner = [dict(zip(own, values, strict=True)) for values in itertools.product(*ranges)]
            positions = tuple({**position, **more} for position in positions for more in inner)
        return BoundRule(
            key, span, self.scope.id, mount, block_name, megatron_side, hf_side, stored_side,
            None if dims is None else tuple(dims), role, rule.role, str(dtype).removeprefix("torch."),
            self.axes, positions, rule.note,
        )  # fmt: skip

    def objects(self) -> Iterator[BoundObjects]:
        for _, block_name, block, prefixes, positions in self.placed():
            for i, objects in enumerate(block.objects):
                if self.holds(objects.when, self.scope.span("blocks", block_name, "objects", i, "when")):
                    names = tuple(join(prefixes.stored, parse_name(text)) for text in objects.names)
                    # Where torch_dist stacks the positions of the mount, it numbers their objects.
                    stacked = [a for a in prefixes.megatron.holes if a not in prefixes.stored.holes]
                    axis = objects.each or next(iter(stacked), None)
                    each = None if axis is None else self.axes[axis]
                    yield BoundObjects(names, each, positions)

    def ties(self) -> Iterator[tuple[Pattern, Pattern, Span]]:
        for name, tie in self.spec.tied.items():
            if self.holds(tie.when, self.scope.span("tied", name, "when")):
                prefix = self.scope.prefix("megatron", self.all_flavours)
                span = self.scope.span("tied", name, of_key=True)
                yield join(prefix, parse_name(name)), join(prefix, parse_name(tie.to)), span

    def listed(self, section: str) -> Iterator[tuple[Pattern, str, Span]]:
        side: Literal["megatron", "hf"] = "megatron" if section == "ignore_megatron" else "hf"
        prefix = self.scope.prefix(side, self.all_flavours)
        for name, reason in getattr(self.spec, section).items():
            yield join(prefix, parse_name(name)), reason, self.scope.span(section, name, of_key=True)


_MOST_REPEATS = 1_000_000


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _part(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any] | None:
    """The part of the config below the keys of `path`, `None` where there is none."""
    here: Any = config
    for key in path:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else None
