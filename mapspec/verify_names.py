"""The verifier after linking: every name in a mapping is declared, every pattern and expression can be read.

Later stages rely on it: they look names up without asking whether they exist.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from mapspec.arrange import ArrangementError, parse_arrangement
from mapspec.circles import circles
from mapspec.diagnostics import Diagnostic, Note
from mapspec.expr import RESERVED
from mapspec.names import Pattern, parse_name
from mapspec.schema import v1
from mapspec.scope import Scope
from mapspec.text import Path_
from mapspec.verify_parts import PartVerifier

__all__ = ["verify_names"]


def verify_names(scope: Scope, lost: Mapping[str, set[str]] | None = None) -> list[Diagnostic]:
    """Everything in the scope's document that names what does not exist or cannot be read.

    Args:
        scope: the mapping.
        lost: section -> names of entries that are declared, but could not be read.
    """
    return sorted(set(_Verifier(scope, lost or {}).all()), key=Diagnostic.sort_key)


class _Verifier(PartVerifier):
    def all(self) -> Iterator[Diagnostic]:
        yield from self.declared_once()
        for name, path, ring in circles(self.spec):
            yield self.found("MS209", f"`{name}` is computed from itself: {ring}", path, of_key=True)
        for name, text in self.spec.values.items():
            yield from self.expression(text, ("values", name))
        for name, flavour in self.spec.flavours.items():
            yield from self.flavour(flavour, ("flavours", name))
        for name, axis in self.spec.axes.items():
            yield from self.axis(axis, ("axes", name))
        for name, dim in self.spec.dims.items():
            yield from self.dim(dim, ("dims", name))
        for name, role in self.spec.roles.items():
            yield from self.expression(role.dtype, ("roles", name, "dtype"))
        yield from self.kinds()
        for name, block in self.spec.blocks.items():
            yield from self.block(block, ("blocks", name))
        for name, mount in self.spec.mounts.items():
            # One mistake in a mount may look like several, so its holes are counted only where all else is right.
            wrong = list(self.mount(mount, ("mounts", name)))
            if wrong or self.lost.get("axes"):
                yield from wrong
            else:
                yield from self.holes_missing(mount, ("mounts", name))
        for name, tie in self.spec.tied.items():
            yield from self.plain(name, "a tied weight", ("tied", name), of_key=True)
            yield from self.plain(tie.to, "a tied weight", ("tied", name, "to"))
            yield from self.expression(tie.when, ("tied", name, "when"))
        for section in ("passthrough", "ignore_hf", "ignore_megatron"):
            for name in getattr(self.spec, section):
                found = self.pattern(name, (section, name), of_key=True)
                yield from (d for d in found if isinstance(d, Diagnostic))
        for name, include in self.spec.include.items():
            if include.when is not None:
                yield from self.expression(include.when, ("include", name, "when"))
            yield from self.spelled(include.flavours, ("include", name))
            for mount_name, remount in include.remount.items():
                yield from self.spelled(remount.flavours, ("include", name, "remount", mount_name))

    # --- sections ----------------------------------------------------------------------------------------------

    def declared_once(self) -> Iterator[Diagnostic]:
        first: dict[str, str] = {}
        for section in ("values", "flavours", "axes", "dims"):
            for name in getattr(self.spec, section):
                if name in RESERVED:
                    message = f"`{name}` is a word of the expression language; nothing can be called so"
                    yield self.found("MS203", message, (section, name), of_key=True)
                if name in first:
                    note = Note(f"declared in `{first[name]}` too", self.tree.span((first[name], name), of_key=True))
                    message = f"`{name}` is declared twice; expressions could not tell the two apart"
                    yield replace(self.found("MS203", message, (section, name), of_key=True), notes=(note,))
                first.setdefault(name, section)

    def flavour(self, flavour: v1.Flavour, path: Path_) -> Iterator[Diagnostic]:
        yield from self.known(flavour.default, flavour.choices, "choice", (*path, "default"))
        for version, choice in flavour.before.items():
            yield from self.known(choice, flavour.choices, "choice", (*path, "before", version))
            if not re.fullmatch(r"\d+\.\d+", version):
                message = f"`{version}` is no version of Megatron-Core"
                yield self.found("MS104", message, (*path, "before", version), of_key=True, help='for example "0.19"')
        for choice, name in flavour.detect.items():
            yield from self.known(choice, flavour.choices, "choice", (*path, "detect", choice), of_key=True)
            found = self.pattern(name, (*path, "detect", choice))
            yield from (d for d in found if isinstance(d, Diagnostic))
        earlier = itertools.takewhile(lambda entry: entry[0] != path[-1], self.spec.flavours.items())
        for other, declared in earlier:
            for choice in sorted(set(declared.choices) & set(flavour.choices)):
                message = f"choice `{choice}` belongs to flavour `{other}` too; rules could not tell which is meant"
                note = Note("the other flavour", self.tree.span(("flavours", other, "choices")))
                finding = self.found("MS203", message, (*path, "choices", flavour.choices.index(choice)))
                yield replace(finding, notes=(note,))

    def axis(self, axis: v1.Axis, path: Path_) -> Iterator[Diagnostic]:
        given = [key for key in ("size", "pattern", "ravel") if getattr(axis, key) is not None]
        if len(given) != 1:
            message = f"axis `{path[-1]}` needs exactly one of `size`, `pattern` and `ravel`"
            yield self.found("MS205", message, path, of_key=True)
        if axis.size is not None:
            yield from self.expression(axis.size, (*path, "size"))
        for i, text in enumerate(axis.pattern or ()):
            yield from self.expression(text, (*path, "pattern", i))
        for key in ("length", "when"):
            text = getattr(axis, key)
            if text is not None:
                yield from self.expression(text, (*path, key))
                if axis.pattern is None:
                    yield self.found("MS205", f"`{key}` goes with `pattern`", (*path, key), of_key=True)
        if axis.ravel is not None and axis.ravel[0] == axis.ravel[1]:
            yield self.found("MS205", "an axis is made of two others", (*path, "ravel"))
        for i, name in enumerate(axis.ravel or ()):
            yield from self.known(name, self.axes, "axis", (*path, "ravel", i))
            if name in self.spec.axes and self.spec.axes[name].ravel:
                yield self.found("MS205", f"`{name}` is itself made of other axes", (*path, "ravel", i))

    def dim(self, dim: v1.Dim, path: Path_) -> Iterator[Diagnostic]:
        if (dim.size is None) == (dim.segments is None):
            message = f"dim `{path[-1]}` needs either `size` or `segments`"
            yield self.found("MS205", message, path, of_key=True)
        if dim.size is not None:
            yield from self.expression(dim.size, (*path, "size"))
        for name, text in (dim.segments or {}).items():
            yield from self.expression(text, (*path, "segments", name))
        for key in ("order", "split_by", "stored_by"):
            if dim.segments is None and getattr(dim, key) not in (None, "whole"):
                yield self.found("MS205", f"`{key}` goes with `segments`", (*path, key))
        if dim.split_by == "segment" and dim.split is None:
            yield self.found("MS205", "`split_by: segment` goes with `split`", (*path, "split_by"))
        if dim.pad is not None and dim.segments is not None:
            yield self.found("MS205", "a fused dimension cannot be padded", (*path, "pad"))
        if dim.order is not None and dim.segments is not None:
            yield from self.order(dim.order, dim.segments, (*path, "order"))

    def order(self, text: str, segments: Iterable[str], path: Path_) -> Iterator[Diagnostic]:
        try:
            nodes = parse_arrangement(text)
        except ArrangementError as error:
            yield self.found("MS204", f"`{text}`: {error}", path, text=text, column=error.column)
            return
        used = frozenset[str]().union(*(node.segments() for node in nodes))
        for name in sorted(used - set(segments)):
            yield from self.known(name, segments, "segment", path, text=text)
        for name in sorted(set(segments) - used):
            yield self.found("MS204", f"segment `{name}` does not occur in `{text}`", path)
        for name in sorted(frozenset[str]().union(*(node.counts() for node in nodes))):
            counts = {*self.values, *self.dims, *self.axes}
            yield from self.known(name, counts, "value", path, text=text)

    def kinds(self) -> Iterator[Diagnostic]:
        first: dict[str, str] = {}
        for name, kind in self.spec.kinds.items():
            for i, symbol in enumerate(kind.symbols):
                if symbol in first:
                    message = f"symbol `{symbol}` already means `{first[symbol]}`"
                    note = Note("the other kind", self.tree.span(("kinds", first[symbol], "symbols")))
                    yield replace(self.found("MS203", message, ("kinds", name, "symbols", i)), notes=(note,))
                first.setdefault(symbol, name)
            for i, block in enumerate(kind.blocks):
                yield from self.known(block, self.blocks, "block", ("kinds", name, "blocks", i))

    def block(self, block: v1.Block, path: Path_) -> Iterator[Diagnostic]:
        if block.when is not None:
            yield from self.expression(block.when, (*path, "when"))
        for i, axis in enumerate(block.wildcards):
            yield from self.known(axis, self.axes, "axis", (*path, "wildcards", i))
        for name, rule in block.tensors.items():
            yield from self.rule(name, rule, block, (*path, "tensors", name))
        for i, objects in enumerate(block.objects):
            at = (*path, "objects", i)
            if objects.each is not None:
                yield from self.known(objects.each, self.axes, "axis", (*at, "each"))
            if objects.when is not None:
                yield from self.expression(objects.when, (*at, "when"))
            for k, text in enumerate(objects.names):
                yield from self.plain(text, "an object", (*at, "names", k))

    def rule(self, name: str, rule: v1.Rule, block: v1.Block, path: Path_) -> Iterator[Diagnostic]:
        if rule.when is not None:
            yield from self.expression(rule.when, (*path, "when"))
        yield from self.known(rule.role, self.roles, "role", (*path, "role"))
        patterns = [*self.holes(name, block.wildcards, path, of_key=True)]
        patterns += self.hf_names(rule.hf, rule, block, (*path, "hf"))
        if rule.stored is not None:
            patterns += self.holes(rule.stored, block.wildcards, (*path, "stored"))
        for choice, spelling in rule.flavours.items():
            at = (*path, "flavours", choice)
            yield from self.known_choice(choice, at, of_key=True)
            for key in ("megatron", "stored"):
                text = getattr(spelling, key)
                if text is not None:
                    patterns += self.holes(text, block.wildcards, (*at, key))
            if spelling.hf is not None:
                patterns += self.hf_names(spelling.hf, rule, block, (*at, "hf"))
        yield from (p for p in patterns if isinstance(p, Diagnostic))
        yield from self.spelled_twice(rule.flavours, path)
        open_ended = {p.rest is not None for p in patterns if isinstance(p, Pattern)}
        if len(open_ended) > 1:
            yield self.found("MS201", "`**` has to stand on both sides or on none", path, of_key=True)
        if rule.shape is None and True not in open_ended:
            help_ = "list the dimensions of one position, outermost first, for example `shape: [hidden]`"
            yield self.found("MS103", f"`shape` is missing in `{name}`", path, of_key=True, help=help_)
        for i, dim in enumerate(rule.shape or ()):
            if not dim.isdigit():
                yield from self.known(dim, self.dims, "dim", (*path, "shape", i))
        if len(self.fused(rule)) > 1:
            yield self.found("MS205", "only one dimension of a weight can be fused", (*path, "shape"))
        cut = [d for d in rule.shape or () if d in self.spec.dims and self.spec.dims[d].split]
        if len(cut) > 1:
            message = f"`{cut[0]}` and `{cut[1]}` are both split; parallelism cuts one dimension of a weight"
            yield self.found("MS205", message, (*path, "shape"))

    def spelled(self, flavours: Mapping[str, v1.Prefixes], path: Path_) -> Iterator[Diagnostic]:
        """What is wrong with the choices that spell prefixes."""
        for choice in flavours:
            yield from self.known_choice(choice, (*path, "flavours", choice), of_key=True)
        yield from self.spelled_twice(flavours, path)

    def spelled_twice(self, flavours: Mapping[str, v1.Spelling | v1.Prefixes], path: Path_) -> Iterator[Diagnostic]:
        """Choices of two flavours that can be active together and spell the same name: none of them would win."""
        owner = {choice: name for name, flavour in self.spec.flavours.items() for choice in flavour.choices}
        first: dict[str, str] = {}
        for choice, spelling in flavours.items():
            for side in spelling.model_fields_set:
                other = first.setdefault(side, choice)
                if owner.get(other) != owner.get(choice) and {other, choice} <= set(owner):
                    message = f"`{other}` and `{choice}` both spell `{side}`, and can be chosen together"
                    note = Note("the other spelling", self.tree.span((*path, "flavours", other, side)))
                    found = self.found("MS210", message, (*path, "flavours", choice, side))
                    yield replace(found, notes=(note,), help="make them choices of one flavour")

    def fused(self, rule: v1.Rule) -> list[v1.Dim]:
        dims = [self.spec.dims[d] for d in rule.shape or () if d in self.spec.dims]
        return [dim for dim in dims if dim.segments is not None]

    def hf_names(
        self, hf: str | dict[str, str], rule: v1.Rule, block: v1.Block, path: Path_
    ) -> Sequence[Pattern | Diagnostic]:
        if isinstance(hf, str):
            return [*self.holes(hf, block.wildcards, path)]
        out: list[Pattern | Diagnostic] = []
        fused = self.fused(rule)
        segments = set(fused[0].segments or ()) if fused else set()
        if not fused and self.lost.get("dims", set()) & set(rule.shape or ()):
            return []  # the segments are not known
        if not fused:
            message = "one name per segment needs a dimension with `segments` in `shape`"
            out.append(self.found("MS204", message, path, of_key=True))
        else:
            for segment in sorted(segments - set(hf)):
                out.append(self.found("MS204", f"segment `{segment}` has no Hugging Face name", path, of_key=True))
            for segment in sorted(set(hf) - segments):
                out += self.known(segment, segments, "segment", (*path, segment), of_key=True)
        for segment, text in hf.items():
            out += self.holes(text, block.wildcards, (*path, segment))
        return out

    def mount(self, mount: v1.Mount, path: Path_) -> Iterator[Diagnostic]:
        if mount.when is not None:
            yield from self.expression(mount.when, (*path, "when"))
        if bool(mount.blocks) == bool(mount.kinds_of):
            message = f"mount `{path[-1]}` needs either `blocks` or `kinds_of`"
            yield self.found("MS205", message, path, of_key=True)
        for i, block in enumerate(mount.blocks):
            yield from self.known(block, self.blocks, "block", (*path, "blocks", i))
        if mount.kinds_of is not None:
            yield from self.known(mount.kinds_of, self.axes, "axis", (*path, "kinds_of"))
            axis = self.spec.axes.get(mount.kinds_of)
            if axis is not None and axis.pattern is None:
                yield self.found("MS205", f"axis `{mount.kinds_of}` has no `pattern`, so no kinds", (*path, "kinds_of"))
        for i, name in enumerate(mount.wildcards):
            yield from self.known(name, self.axes, "axis", (*path, "wildcards", i))
        prefixes: list[tuple[str, Path_]] = [(mount.megatron, (*path, "megatron")), (mount.hf, (*path, "hf"))]
        if mount.stored is not None:
            prefixes.append((mount.stored, (*path, "stored")))
        for choice, spelling in mount.flavours.items():
            for key in ("megatron", "hf", "stored"):
                text = getattr(spelling, key)
                if text is not None:
                    prefixes.append((text, (*path, "flavours", choice, key)))
        yield from self.spelled(mount.flavours, path)
        yield from self.stored_holes(prefixes, path)
        counted: set[str] = set()
        for text, at in prefixes:
            for found in self.holes(text, mount.wildcards, at):
                if isinstance(found, Diagnostic):
                    yield found
                    continue
                holes = found.named(mount.wildcards).holes
                counted |= {
                    part for h in holes if h in self.spec.axes for part in (h, *(self.spec.axes[h].ravel or ()))
                }
                if found.rest is not None:
                    yield self.found("MS201", f"name `{text}`: a prefix does not end in `**`", at)
        for name in mount.pin:
            yield from self.known(name, self.axes, "axis", (*path, "pin", name), of_key=True)
            if name in self.spec.axes and name not in counted and not self.lost.get("axes"):
                message = f"`{name}` is in neither prefix of mount `{path[-1]}`, so there is nothing to pin"
                yield self.found("MS205", message, (*path, "pin", name), of_key=True)

    def stored_holes(self, prefixes: Iterable[tuple[str, Path_]], path: Path_) -> Iterator[Diagnostic]:
        """Axes that a prefix in torch_dist counts and no Megatron prefix does: nothing would be their position."""
        written: dict[str, list[tuple[Pattern, Path_]]] = {}
        for text, at in prefixes:
            found = (p for p in self.pattern(text, at) if isinstance(p, Pattern))
            written.setdefault(str(at[-1]), []).extend((pattern, at) for pattern in found)
        known = {hole for pattern, _ in written.get("megatron", ()) for hole in pattern.holes}
        for pattern, at in written.get("stored", ()):
            for hole in pattern.holes:
                if hole not in known:
                    message = f"`stored` counts `{hole}`, which the Megatron prefix of mount `{path[-1]}` does not"
                    yield self.found("MS205", message, at)

    def holes_missing(self, mount: v1.Mount, path: Path_) -> Iterator[Diagnostic]:
        """Positions of a mount that would all get one name: an axis that is counted, and no hole that tells it."""
        told: dict[str, set[str]] = {}
        stored = mount.megatron if mount.stored is None else mount.stored
        for side, text in (("megatron", mount.megatron), ("hf", mount.hf), ("stored", stored)):
            holes = parse_name(text).named(mount.wildcards).holes
            told[side] = {part for hole in holes for part in self.spec.axes[hole].ravel or (hole,)}
        # In files a tensor may hold all positions; of layers of different kinds it cannot.
        by_kind = {mount.kinds_of} if mount.kinds_of else set()
        sides = [("megatron", by_kind | told["megatron"] | told["hf"]), ("hf", by_kind)]
        sides += [("stored", by_kind)] if mount.stored is not None else []
        for side, needed in sides:
            for axis in sorted(needed - told[side] - set(mount.pin)):
                text = getattr(mount, side)
                message = f"the prefix `{text}` has no `{{{axis}}}`, so all positions of `{axis}` get the same names"
                written = (*path, side) in self.tree.values
                yield self.found("MS211", message, (*path, side) if written else path, of_key=not written)
