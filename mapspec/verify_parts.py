"""What is asked of a name, an expression or a pattern wherever one stands in a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.expr import ExprError, parse_expr
from mapspec.names import NameSyntaxError, Pattern, parse_name
from mapspec.scope import Scope
from mapspec.text import Path_

__all__ = ["PartVerifier"]


class PartVerifier:
    """The names that a scope declares, and questions that every section asks of them.

    Args:
        scope: the mapping.
        lost: section -> names of entries that are declared, but could not be read.
    """

    def __init__(self, scope: Scope, lost: Mapping[str, set[str]]) -> None:
        self.scope = scope
        self.spec = scope.spec
        self.tree = scope.document.tree
        spec = self.spec
        self.lost = lost
        self.values = {*spec.values, *lost.get("values", ())}
        self.dims = {*spec.dims, *lost.get("dims", ())}
        self.axes = {*spec.axes, *lost.get("axes", ())}
        self.roles = {*spec.roles, *lost.get("roles", ())}
        self.blocks = {*spec.blocks, *lost.get("blocks", ())}
        self.namespace = {*self.values, *self.dims, *self.axes, *spec.flavours, *lost.get("flavours", ())}
        self.choices = {choice for flavour in spec.flavours.values() for choice in flavour.choices}

    def found(
        self, code: str, message: str, path: Path_, *, of_key: bool = False, hint: str | None = None,
        help: str | None = None, text: str = "", column: int | None = None, width: int = 0,
    ) -> Diagnostic:  # fmt: skip
        """A finding at a path; with `text` and `column`, at that place within what is written there."""
        span = self.tree.span(path, of_key=of_key)
        if column is not None:
            span = span.part(text, column, width)
        return Diagnostic(code, message, span, hint=hint, help=help)

    def known(
        self, name: str, valid: Iterable[str], what: str, path: Path_, *, of_key: bool = False, text: str = ""
    ) -> Iterator[Diagnostic]:
        """A finding if `name`, which stands at the path (within `text`, if given), is none of the valid ones."""
        valid = sorted(valid)
        if name not in valid:
            help_ = f"there are: {', '.join(valid)}" if valid else f"this spec declares no {what}"
            message, hint, column = f"there is no {what} `{name}`", nearest(name, valid), _word(name, text)
            yield self.found(
                "MS202", message, path, of_key=of_key, hint=hint, help=help_, text=text, column=column, width=len(name)
            )

    def known_choice(self, choice: str, path: Path_, *, of_key: bool) -> Iterator[Diagnostic]:
        if not self.lost.get("flavours"):  # the choices of a lost flavour are not known
            yield from self.known(choice, self.choices, "choice", path, of_key=of_key)

    def expression(self, text: str, path: Path_) -> Iterator[Diagnostic]:
        try:
            expr = parse_expr(text)
        except ExprError as error:
            yield self.found("MS206", f"`{text}`: {error}", path, text=text, column=error.column)
            return
        for name in sorted(expr.names - self.namespace):
            hint = nearest(name, self.namespace) or (f"hf.{name}" if name.islower() else None)
            message = f"`{name}` is no value, dim, axis or flavour of this spec"
            help_ = "keys of config.json are written `hf.key`"
            column = _word(name, text)
            yield self.found("MS202", message, path, hint=hint, help=help_, text=text, column=column, width=len(name))

    def pattern(self, text: str, path: Path_, *, of_key: bool = False) -> Iterator[Pattern | Diagnostic]:
        """The pattern of a name, or why it is none."""
        try:
            yield parse_name(text)
        except NameSyntaxError as error:
            yield self.found("MS201", f"name `{text}`: {error}", path, of_key=of_key, text=text, column=error.column)

    def plain(self, text: str, what: str, path: Path_, *, of_key: bool = False) -> Iterator[Diagnostic]:
        """What is wrong with a name that cannot have holes."""
        for found in self.pattern(text, path, of_key=of_key):
            if isinstance(found, Diagnostic):
                yield found
            elif found.occurrences:
                yield self.found("MS201", f"name `{text}`: the name of {what} has no holes", path, of_key=of_key)

    def holes(
        self, text: str, wildcards: Sequence[str], path: Path_, *, of_key: bool = False
    ) -> Iterator[Pattern | Diagnostic]:
        """The pattern of a name, and what is wrong with its holes."""
        for pattern in self.pattern(text, path, of_key=of_key):
            yield pattern
            if isinstance(pattern, Diagnostic):
                return
            if len(pattern.unnamed) > len(wildcards):
                n, m = len(pattern.unnamed), len(wildcards)
                message = f"name `{text}` has {n} `*`, but `wildcards` names {m or 'no'} {'axis' if m == 1 else 'axes'}"
                help_ = "write `{axis}` instead of `*`, or say in `wildcards` which axes the `*` stand for"
                yield self.found("MS208", message, path, of_key=of_key, help=help_)
            for hole in pattern.holes:
                if not hole.startswith("_"):
                    yield from self.known(hole, self.axes, "axis", path, of_key=of_key, text=text)


def _word(name: str, text: str) -> int | None:
    """Where `name` stands as a word in `text`."""
    found = re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)
    return found.start() if found else None
