"""The closed expression language of specs: sizes, conditions and values taken from an HF config.

Expressions are written like Python and cannot do anything but compute:

    hf.a.b                      a config key; absent is an error unless wrapped in one of the next three
    default(x, y)               y where x is absent or null
    first(x, y, ...)            the first that is neither absent nor null
    present(x)                  whether x is there and not null
    len(x)  min(..)  max(..)    as usual
    count(x, y)                 how often the item or symbol y occurs in the list or string x
    + - *  and  /               integers; `/` has to divide evenly
    == != < <= > >=  in  and or not  'text'  numbers  true false none  a if c else b
"""

from __future__ import annotations

import ast
import keyword
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from mapspec.diagnostics import Span

__all__ = ["FUNCTIONS", "RESERVED", "Expr", "ExprError", "MissingKeyError", "parse_expr"]

# Function -> how many arguments it takes at least and at most.
_ARITY: dict[str, tuple[int, int]] = {
    "count": (2, 2),
    "default": (2, 2),
    "first": (1, 99),
    "len": (1, 1),
    "max": (1, 99),
    "min": (1, 99),
    "present": (1, 1),
}
FUNCTIONS = tuple(_ARITY)
_MAX_DEPTH = 60  # far more than anyone writes, far less than what exhausts Python's stack
_CONSTANTS: dict[str, Any] = {
    "true": True,
    "false": False,
    "none": None,
    "True": True,
    "False": False,
    "None": None,
}

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: bool(a == b),
    ast.NotEq: lambda a, b: bool(a != b),
    ast.Lt: lambda a, b: bool(a < b),
    ast.LtE: lambda a, b: bool(a <= b),
    ast.Gt: lambda a, b: bool(a > b),
    ast.GtE: lambda a, b: bool(a >= b),
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}

RESERVED = frozenset({"hf", *FUNCTIONS, *_CONSTANTS, *keyword.kwlist})
"""Words that mean something in expressions, so that nothing can be called by them."""


class ExprError(ValueError):
    """An expression cannot be read or computed.

    Attributes:
        column: where in the text, from 0.
        origin: text and place of the expression, where that is not the one that was asked for but one it needs.
    """

    def __init__(self, message: str, column: int = 0, *, origin: tuple[str, Span] | None = None) -> None:
        super().__init__(message)
        self.column = column
        self.origin = origin


class MissingKeyError(ExprError):
    """A config key that the expression needs is absent.

    Attributes:
        keys: dotted paths below `hf`, of which one would do.
    """

    def __init__(self, keys: tuple[str, ...], column: int) -> None:
        listed = ", ".join(f"`{key}`" for key in keys)
        super().__init__(f"the config has {'no' if len(keys) == 1 else 'none of'} {listed}", column)
        self.keys = keys

    @property
    def key(self) -> str:
        """The key that was looked for first."""
        return self.keys[0]


@dataclass(frozen=True)
class Expr:
    """A parsed expression. Equal texts are equal expressions."""

    text: str

    @cached_property
    def tree(self) -> ast.expr:
        """The syntax tree; made once, checked by `parse_expr`."""
        return _parse(self.text)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names other than `hf`, functions and constants that the expression uses."""
        known = {"hf", *FUNCTIONS, *_CONSTANTS}
        return frozenset(n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and n.id not in known)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Dotted config keys below `hf` that the expression reads."""
        found = set()
        for node in ast.walk(self.tree):
            path = _config_path(node)
            if path:
                found.add(path)
        return frozenset(k for k in found if not any(o != k and o.startswith(k + ".") for o in found))

    def __call__(self, hf: Mapping[str, Any], lookup: Callable[[str], Any]) -> Any:
        """Compute the value. `lookup` gives the value of a name.

        Raises:
            MissingKeyError: a config key is absent and not wrapped.
            ExprError: types do not fit, or a division leaves a remainder.
        """
        return _Evaluator(hf, lookup).run(self.tree)


@cache
def parse_expr(text: str) -> Expr:
    """Read an expression, rejecting everything outside the closed grammar.

    Raises:
        ExprError: with the column of what is not part of the language.
    """
    expr = Expr(text)
    try:
        tree = expr.tree
    except SyntaxError as error:
        raise ExprError("this is no expression of the spec language", max((error.offset or 1) - 1, 0)) from None
    except (ValueError, RecursionError, MemoryError):
        # Null characters, numbers of thousands of digits, thousands of brackets.
        raise ExprError("this is no expression of the spec language") from None
    _check_depth(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        _check(node, text.strip(), called)
    return expr


def _parse(text: str) -> ast.expr:
    with warnings.catch_warnings():
        # What Python thinks of `'\\d'` or `1if` is of no interest to the author of a spec.
        warnings.simplefilter("ignore")
        return ast.parse(text.strip(), mode="eval").body


def _check_depth(tree: ast.expr) -> None:
    level: list[ast.AST] = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise ExprError("this is nested too deeply")


def _check(node: ast.AST, text: str, called: set[int]) -> None:
    column = getattr(node, "col_offset", 0)
    here = ast.get_source_segment(text, node) or text
    if isinstance(node, ast.Call):
        _check_call(node, column)
    elif isinstance(node, ast.Name):
        if node.id in FUNCTIONS and id(node) not in called:
            raise ExprError(f"`{node.id}` is a function; it is written `{node.id}(...)`", column)
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, str | int | float | bool | None):
            raise ExprError(f"`{here}` is no value of the spec language", column)
    elif isinstance(node, ast.Attribute):
        if _config_path(node) is None:
            raise ExprError("only `hf` has parts; `.` is for keys of the config", column)
    elif isinstance(node, ast.BinOp):
        if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            raise ExprError("the operators are + - * and / (which has to divide evenly)", column)
    elif isinstance(node, ast.UnaryOp):
        if not isinstance(node.op, ast.Not | ast.USub):
            raise ExprError("the unary operators are `not` and `-`", column)
    elif isinstance(node, ast.Compare):
        if any(type(op) not in _COMPARE for op in node.ops):
            raise ExprError("comparisons are == != < <= > >= and `in`", column)
    elif not isinstance(
        node, ast.BoolOp | ast.IfExp | ast.List | ast.Load | ast.operator | ast.unaryop | ast.boolop | ast.cmpop
    ):
        raise ExprError(f"`{here}` is not part of the spec language", column)


def _check_call(node: ast.Call, column: int) -> None:
    if not isinstance(node.func, ast.Name):
        raise ExprError(f"this cannot be called; functions are {', '.join(FUNCTIONS)}", column)
    if node.func.id not in _ARITY:
        raise ExprError(f"`{node.func.id}` is no function; there are {', '.join(FUNCTIONS)}", column)
    if node.keywords:
        raise ExprError("functions take no named arguments", column)
    least, most = _ARITY[node.func.id]
    if not least <= len(node.args) <= most:
        count = str(least) if least == most else f"{least} or more"
        noun = "argument" if count == "1" else "arguments"
        raise ExprError(f"`{node.func.id}` takes {count} {noun}, not {len(node.args)}", column)


def _config_path(node: ast.AST) -> str | None:
    """`a.b` for the node of `hf.a.b`, else `None`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if parts and isinstance(node, ast.Name) and node.id == "hf":
        return ".".join(reversed(parts))
    return None


class _Evaluator:
    def __init__(self, hf: Mapping[str, Any], lookup: Callable[[str], Any]) -> None:
        self.hf = hf
        self.lookup = lookup

    def run(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                if node.id in _CONSTANTS:
                    return _CONSTANTS[node.id]
                return self.lookup(node.id) if node.id != "hf" else dict(self.hf)
            case ast.Attribute():
                return self.config(node)
            case ast.List():
                return [self.run(item) for item in node.elts]
            case ast.IfExp():
                return self.run(node.body) if self.run(node.test) else self.run(node.orelse)
            case ast.BoolOp():
                wanted = isinstance(node.op, ast.Or)
                return next((wanted for v in node.values if bool(self.run(v)) is wanted), not wanted)
            case ast.UnaryOp():
                value = self.run(node.operand)
                if isinstance(node.op, ast.Not):
                    return not value
                if not _is_number(value):
                    raise ExprError(f"`{ast.unparse(node)}`: {value!r} is no number", node.col_offset)
                return -value
            case ast.Compare():
                return self.compare(node)
            case ast.BinOp():
                return self.binary(node)
            case ast.Call():
                return self.call(node)
        raise AssertionError(f"parse_expr lets no {type(node).__name__} through")

    def config(self, node: ast.Attribute) -> Any:
        path = _config_path(node)
        assert path is not None, "parse_expr checked it"
        value: Any = self.hf
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise MissingKeyError((path,), node.col_offset)
            value = value[key]
        return value

    def compare(self, node: ast.Compare) -> bool:
        left = self.run(node.left)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.run(right_node)
            try:
                if not _COMPARE[type(op)](left, right):
                    return False
            except TypeError:
                text = f"`{ast.unparse(node)}` compares {left!r} with {right!r}"
                raise ExprError(text, node.col_offset) from None
            left = right
        return True

    def binary(self, node: ast.BinOp) -> Any:
        left, right = self.run(node.left), self.run(node.right)
        text = f"`{ast.unparse(node)}` with {left!r} and {right!r}"
        if not (_is_number(left) and _is_number(right)):
            raise ExprError(f"{text}: both sides have to be numbers", node.col_offset)
        try:
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            if isinstance(node.op, ast.Mult):
                return left * right
            if right == 0 or left % right:
                raise ExprError(f"{text}: it does not divide evenly", node.col_offset)
            return int(left // right)
        except OverflowError:
            raise ExprError(f"{text}: the numbers are too large", node.col_offset) from None

    def call(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)
        name, args = node.func.id, node.args
        if name in ("default", "first", "present"):
            for arg in args:
                value = self.maybe(arg)
                if name == "present":
                    return value is not None
                if value is not None:
                    return value
            if name == "first":
                raise MissingKeyError(tuple(ast.unparse(a).removeprefix("hf.") for a in args), node.col_offset)
            return None
        values = [self.run(arg) for arg in args]
        try:
            if name == "len":
                return len(*values)
            if name == "count":
                return values[0].count(values[1])
            return min(*values) if name == "min" else max(*values)
        except (TypeError, AttributeError, ValueError):
            raise ExprError(f"`{ast.unparse(node)}` does not fit {values!r}", node.col_offset) from None

    def maybe(self, node: ast.expr) -> Any:
        """The value, or `None` where a config key on the way is absent."""
        try:
            return self.run(node)
        except MissingKeyError:
            return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
