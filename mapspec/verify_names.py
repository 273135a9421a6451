"""The verifier after linking: every name in a mapping is declared, every pattern and expression can be read.

Later stages rely on it: they look names up without asking whether they exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mapspec.arrange import ArrangementError, parse_arrangement
from mapspec.diagnostics import Diagnostic, Note, nearest
from mapspec.expr import ExprError, parse_expr
from mapspec.link import Scope
from mapspec.names import NameSyntaxError, Pattern, parse_name
from mapspec.schema import v1
from mapspec.text import Path_

__all__ = ["verify_names"]


def verify_names(scope: Scope) -> list[Diagnostic]:
    """Everything in the scope's document that names what does not exist or cannot be read."""
    return sorted(set(_Verifier(scope).all()), key=Diagnostic.sort_key)


class _Verifier:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.spec = scope.spec
        self.tree = scope.document.tree
        spec = self.spec
        self.namespace = {*spec.values, *spec.dims, *spec.axes, *spec.flavours}
        self.choices = {choice for flavour in spec.flavours.values() for choice in flavour.choices}

    def all(self) -> Iterator[Diagnostic]:
        yield from self.declared_once()
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
            yield from self.mount(mount, ("mounts", name))
        for name, tie in self.spec.tied.items():
            yield from self.pattern(name, ("tied", name), of_key=True)
            yield from self.pattern(tie.to, ("tied", name, "to"))
            yield from self.expression(tie.when, ("tied", name, "when"))
        for section in ("passthrough", "ignore_hf", "ignore_megatron"):
            for name in getattr(self.spec, section):
                yield from self.pattern(name, (section, name), of_key=True)
        for name, include in self.spec.include.items():
            if include.when is not None:
                yield from self.expression(include.when, ("include", name, "when"))

    # --- small parts -------------------------------------------------------------------------------------------

    def found(
        self, code: str, message: str, path: Path_, *, of_key: bool = False, hint: str | None = None,
        help: str | None = None, column: int | None = None,
    ) -> Diagnostic:  # fmt: skip
        span = self.tree.span(path, of_key=of_key)
        if column is not None and span.end_col:
            # Within a plain scalar the text of an expression starts where the value starts.
            span = replace(span, col=min(span.col + column, span.end_col - 1))
        return Diagnostic(code, message, span, hint=hint, help=help)

    def known(
        self, name: str, valid: Iterable[str], what: str, path: Path_, *, of_key: bool = False
    ) -> Iterator[Diagnostic]:
        valid = sorted(valid)
        if name not in valid:
            help_ = f"there are: {', '.join(valid)}" if valid else f"this spec declares no {what}"
            yield self.found(
                "MS202", f"there is no {what} `{name}`", path, of_key=of_key, hint=nearest(name, valid), help=help_
            )

    def expression(self, text: str, path: Path_) -> Iterator[Diagnostic]:
        try:
            expr = parse_expr(text)
        except ExprError as error:
            yield self.found("MS206", f"`{text}`: {error}", path, column=error.column)
            return
        for name in sorted(expr.names - self.namespace):
            hint = nearest(name, self.namespace) or (f"hf.{name}" if name.islower() else None)
            message = f"`{name}` is no value, dim, axis or flavour of this spec"
            yield self.found("MS202", message, path, hint=hint, help="keys of config.json are written `hf.key`")

    def pattern(self, text: str, path: Path_, *, of_key: bool = False) -> Iterator[Diagnostic]:
        try:
            parse_name(text)
        except NameSyntaxError as error:
            yield self.found("MS201", f"name `{text}`: {error}", path, of_key=of_key)

    # --- sections ----------------------------------------------------------------------------------------------

    def declared_once(self) -> Iterator[Diagnostic]:
        first: dict[str, str] = {}
        for section in ("values", "flavours", "axes", "dims"):
            for name in getattr(self.spec, section):
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
            yield from self.pattern(name, (*path, "detect", choice))
        for other_name, other in self.spec.flavours.items():
            if other is not flavour and path[-1] < other_name:
                for choice in sorted(set(other.choices) & set(flavour.choices)):
                    message = (
                        f"choice `{choice}` belongs to flavour `{other_name}` too; rules could not tell which is meant"
                    )
                    yield self.found("MS203", message, (*path, "choices"))

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
        for i, name in enumerate(axis.ravel or ()):
            yield from self.known(name, self.spec.axes, "axis", (*path, "ravel", i))
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
            yield self.found("MS204", f"`{text}`: {error}", path, column=error.column)
            return
        used = frozenset[str]().union(*(node.segments() for node in nodes))
        for name in sorted(used - set(segments)):
            yield from self.known(name, segments, "segment", path)
        for name in sorted(set(segments) - used):
            yield self.found("MS204", f"segment `{name}` does not occur in `{text}`", path)
        for name in sorted(frozenset[str]().union(*(node.counts() for node in nodes))):
            yield from self.known(name, {*self.spec.values, *self.spec.dims, *self.spec.axes}, "value", path)

    def kinds(self) -> Iterator[Diagnostic]:
        first: dict[str, str] = {}
        for name, kind in self.spec.kinds.items():
            for i, symbol in enumerate(kind.symbols):
                if symbol in first:
                    message = f"symbol `{symbol}` already means `{first[symbol]}`"
                    yield self.found("MS203", message, ("kinds", name, "symbols", i))
                first.setdefault(symbol, name)
            for i, block in enumerate(kind.blocks):
                yield from self.known(block, self.spec.blocks, "block", ("kinds", name, "blocks", i))

    def block(self, block: v1.Block, path: Path_) -> Iterator[Diagnostic]:
        if block.when is not None:
            yield from self.expression(block.when, (*path, "when"))
        for i, axis in enumerate(block.wildcards):
            yield from self.known(axis, self.spec.axes, "axis", (*path, "wildcards", i))
        for name, rule in block.tensors.items():
            yield from self.rule(name, rule, block, (*path, "tensors", name))
        for i, objects in enumerate(block.objects):
            at = (*path, "objects", i)
            if objects.each is not None:
                yield from self.known(objects.each, self.spec.axes, "axis", (*at, "each"))
            if objects.when is not None:
                yield from self.expression(objects.when, (*at, "when"))
            for k, text in enumerate(objects.names):
                yield from self.pattern(text, (*at, "names", k))

    def rule(self, name: str, rule: v1.Rule, block: v1.Block, path: Path_) -> Iterator[Diagnostic]:
        if rule.when is not None:
            yield from self.expression(rule.when, (*path, "when"))
        yield from self.known(rule.role, self.spec.roles, "role", (*path, "role"))
        patterns = [*self.holes(name, block.wildcards, path, of_key=True)]
        patterns += self.hf_names(rule.hf, rule, block, (*path, "hf"))
        if rule.stored is not None:
            patterns += self.holes(rule.stored, block.wildcards, (*path, "stored"))
        for choice, spelling in rule.flavours.items():
            at = (*path, "flavours", choice)
            yield from self.known(choice, self.choices, "choice of a flavour", at, of_key=True)
            for key in ("megatron", "stored"):
                text = getattr(spelling, key)
                if text is not None:
                    patterns += self.holes(text, block.wildcards, (*at, key))
            if spelling.hf is not None:
                patterns += self.hf_names(spelling.hf, rule, block, (*at, "hf"))
        yield from (p for p in patterns if isinstance(p, Diagnostic))
        open_ended = {p.rest is not None for p in patterns if isinstance(p, Pattern)}
        if len(open_ended) > 1:
            yield self.found("MS201", "`**` has to stand on both sides or on none", path, of_key=True)
        if rule.shape is None and True not in open_ended:
            help_ = "list the dimensions of one position, outermost first, for example `shape: [hidden]`"
            yield self.found("MS103", f"`shape` is missing in `{name}`", path, of_key=True, help=help_)
        for i, dim in enumerate(rule.shape or ()):
            if not dim.isdigit():
                yield from self.known(dim, self.spec.dims, "dim", (*path, "shape", i))
        if len(self.fused(rule)) > 1:
            yield self.found("MS205", "only one dimension of a weight can be fused", (*path, "shape"))

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

    def holes(
        self, text: str, wildcards: Sequence[str], path: Path_, *, of_key: bool = False
    ) -> Iterator[Pattern | Diagnostic]:
        """The pattern of a name with its wildcards named, and what is wrong with its holes."""
        try:
            pattern = parse_name(text)
        except NameSyntaxError as error:
            yield self.found("MS201", f"name `{text}`: {error}", path, of_key=of_key)
            return
        yield pattern
        unnamed = [hole for hole in pattern.holes if hole.startswith("_")]
        if len(unnamed) > len(wildcards):
            message = f"name `{text}` has {len(unnamed)} `*`, but `wildcards` names {len(wildcards)} axes"
            help_ = "write `{axis}` instead of `*`, or say in `wildcards` which axes the `*` stand for"
            yield self.found("MS208", message, path, of_key=of_key, help=help_)
        for hole in pattern.holes:
            if not hole.startswith("_"):
                yield from self.known(hole, self.spec.axes, "axis", path, of_key=of_key)

    def mount(self, mount: v1.Mount, path: Path_) -> Iterator[Diagnostic]:
        if mount.when is not None:
            yield from self.expression(mount.when, (*path, "when"))
        if bool(mount.blocks) == bool(mount.kinds_of):
            message = f"mount `{path[-1]}` needs either `blocks` or `kinds_of`"
            yield self.found("MS205", message, path, of_key=True)
        for i, block in enumerate(mount.blocks):
            yield from self.known(block, self.spec.blocks, "block", (*path, "blocks", i))
        if mount.kinds_of is not None:
            yield from self.known(mount.kinds_of, self.spec.axes, "axis", (*path, "kinds_of"))
            axis = self.spec.axes.get(mount.kinds_of)
            if axis is not None and axis.pattern is None:
                yield self.found("MS205", f"axis `{mount.kinds_of}` has no `pattern`, so no kinds", (*path, "kinds_of"))
        for i, name in enumerate(mount.wildcards):
            yield from self.known(name, self.spec.axes, "axis", (*path, "wildcards", i))
        for name in mount.pin:
            yield from self.known(name, self.spec.axes, "axis", (*path, "pin", name), of_key=True)
        prefixes: list[tuple[str, Path_]] = [(mount.megatron, (*path, "megatron")), (mount.hf, (*path, "hf"))]
        for choice, spelling in mount.flavours.items():
            yield from self.known(choice, self.choices, "choice of a flavour", (*path, "flavours", choice), of_key=True)
            for key in ("megatron", "hf"):
                text = getattr(spelling, key)
                if text is not None:
                    prefixes.append((text, (*path, "flavours", choice, key)))
        for text, at in prefixes:
            yield from (d for d in self.holes(text, mount.wildcards, at) if isinstance(d, Diagnostic))
