"""One scope with one config: its values, axes and dimensions as numbers, each computed when something needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mapspec.arrange import parse_arrangement, unroll
from mapspec.axes import BoundAxis, bind_axes, bind_axis
from mapspec.bound import BoundDim, Choices
from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.expr import Expr, ExprError, MissingKeyError, parse_expr
from mapspec.schema import v1
from mapspec.scope import Scope
from mapspec.text import Path_

__all__ = ["BoundScope"]


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


_MOST_REPEATS = 1_000_000


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _part(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any] | None:
    """The part of the config below the keys of `path`, `None` where there is none."""
    here: Any = config
    for key in path:
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else None
