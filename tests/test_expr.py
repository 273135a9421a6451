"""Expressions: a closed grammar that computes what Python computes, and fails in one way only."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapspec.expr import FUNCTIONS, ExprError, MissingKeyError, parse_expr

CONFIG: dict[str, Any] = {"a": 6, "b": 4, "s": "MME*", "l": ["moe", "mlp", "moe"], "n": None, "t": {"u": 3}, "f": False}
NAMES = {"x": 12, "y": 5}


def run(text: str, config: dict[str, Any] = CONFIG) -> Any:
    return parse_expr(text)(config, NAMES.__getitem__)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hf.a * hf.b", 24),
        ("hf.a / 3", 2),
        ("x / hf.b - 1", 2),
        ("-hf.a + 1", -5),
        ("hf.t.u", 3),
        ("default(hf.gone, 7)", 7),
        ("default(hf.n, 7)", 7),
        ("default(hf.f, true)", False),
        ("default(hf.t.gone, 1)", 1),
        ("first(hf.gone, hf.n, hf.a)", 6),
        ("default(first(hf.gone, hf.n), 2)", 2),
        ("present(hf.n)", False),
        ("present(hf.t)", True),
        ("present(hf.gone.deeper)", False),
        ("len(hf.s)", 4),
        ("count(hf.s, 'M')", 2),
        ("count(hf.l, 'moe')", 2),
        ("min(x, y, 9)", 5),
        ("max(hf.a, x)", 12),
        ("'M' in hf.s", True),
        ("'x' not in hf.l", True),
        ("1 if hf.f else 2", 2),
        ("hf.a > 2 and not hf.f", True),
        ("0 < hf.b <= 4", True),
        ("hf.a == 6 or hf.gone", True),
        ("none == hf.n", True),
        ("[1, hf.a]", [1, 6]),
        ("  hf.a  ", 6),
        ("4.0 / 2", 2.0),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert run(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf.a +",
        "hf.a // 2",
        "hf.a ** 2",
        "hf.a % 2",
        "hf['a']",
        "hf.s[0]",
        "lambda: 1",
        "int(3)",
        "x.y",
        "(1, 2)",
        "{1: 2}",
        "f'{x}'",
        "x := 3",
        "hf.a is none",
        "~1",
        "+1",
        "1 if x",
        "default(hf.a)",
        "present()",
        "len(1, 2)",
        "first(*hf.l)",
        "first(x=1)",
        "b'x'",
        "...",
        "1j",
        "len",
        "first + 1",
        "hf.a; hf.b",
        "import os",
        "a\0b",
        "[i for i in x]",
        "(" * 500 + "1" + ")" * 500,
        "-" * 5000 + "1",
        "9" * 5000,
        "1" + "+1" * 3000,
        "__import__('os')",
        "hf.a.(b)",
    ],
)
def test_what_is_outside_of_the_grammar(text: str) -> None:
    with pytest.raises(ExprError):
        parse_expr(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf.a / 5",
        "hf.a / 0",
        "hf.s + 1",
        "true + 1",
        "-hf.s",
        "hf.a < hf.s",
        "1 in 2",
        "len(3)",
        "count(3, 1)",
        "max(3)",
        "min([])",
        "max(1, 'a')",
        "hf.gone",
        "hf.a.deeper",
        "first(hf.gone, hf.n)",
        "[1] in hf",
        "'x' in hf.n",
        "1e308 * 1e308 / 3",
        "1" + "0" * 400 + " * 1.5",
    ],
)
def test_what_cannot_be_computed(text: str) -> None:
    expr = parse_expr(text)
    with pytest.raises(ExprError):
        expr(CONFIG, NAMES.__getitem__)


def test_a_missing_key_is_named_with_its_place() -> None:
    with pytest.raises(MissingKeyError) as caught:
        run("hf.a + hf.t.gone")
    assert caught.value.keys == ("t.gone",)
    assert caught.value.column == 7
    with pytest.raises(MissingKeyError) as caught:
        run("first(hf.p, hf.q)")
    assert caught.value.keys == ("p", "q")


def test_keys_and_names() -> None:
    expr = parse_expr("default(hf.a.b, x) + len(hf.c) if true else y")
    assert expr.keys == {"a.b", "c"}
    assert expr.names == {"x", "y"}


WORDS = [
    *FUNCTIONS,
    "hf.a",
    "hf.gone",
    "hf.s",
    "hf.l",
    "hf",
    "x",
    "1",
    "0",
    "2.5",
    "'M'",
    "none",
    "true",
    "if",
    "else",
    "and",
    "or",
    "not",
    "in",
    "is",
    "lambda",
    "for",
    "==",
    "<",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "(",
    ")",
    "[",
    "]",
    ",",
    ".",
    "{",
    "}",
    ":",
    "=",
    "@",
    "**",
    "\\",
    "\0",
    "é",
    "f'",
    "\n",
    "#",
    "await",
    "yield",
]


@given(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join) | st.text(max_size=20))
def test_nothing_but_an_expression_error_escapes(text: str) -> None:
    with suppress(ExprError):
        parse_expr(text)(CONFIG, lambda name: NAMES.get(name, 1))


INTS = st.recursive(
    st.sampled_from(["1", "7", "hf.a", "hf.b", "x", "y"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} < {t[2]} else {t[0]} * 2)")
        | st.tuples(inner, inner).map(lambda t: f"max({t[0]}, min({t[1]}, 9))")
    ),
    max_leaves=8,
)


@given(INTS)
def test_arithmetic_agrees_with_python(text: str) -> None:
    class Hf:
        a, b = 6, 4

    expected = eval(text, {"hf": Hf, "max": max, "min": min}, NAMES)
    assert run(text) == expected


@given(st.integers(-50, 50), st.integers(-50, 50))
def test_division_is_exact_or_refused(a: int, b: int) -> None:
    config = {"p": a, "q": b}
    if b and a % b == 0:
        assert run("hf.p / hf.q", config) == a // b
    else:
        with pytest.raises(ExprError, match="evenly"):
            run("hf.p / hf.q", config)
