"""libyaml and ruamel's own parser: whatever is read quickly is read the same, and everything else is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, SequenceNode

from mapspec import composer
from mapspec.composer import compose, compose_quickly
from mapspec.errors import SpecError
from mapspec.text import parse_nodes, parse_yaml

HERE = Path(__file__).parent
SPECS = sorted([*(HERE.parent / "mappings").rglob("*.yaml"), *(HERE.parent / "providers").rglob("*.yaml")])
FIXTURES = sorted(path for folder in ("lint", "provider", "diff") for path in (HERE / folder).rglob("*.yaml"))

pytestmark = pytest.mark.skipif(composer.CParser is None, reason="libyaml is not installed")


def told(node: Any) -> Any:
    """Everything that a node says: type, value, style, first and last place."""
    if node is None:
        return None
    at = [(m.line, m.column, m.index) for m in (node.start_mark, node.end_mark)]
    if isinstance(node, MappingNode):
        return str(node.tag), at, bool(node.flow_style), [(told(key), told(value)) for key, value in node.value]
    if isinstance(node, SequenceNode):
        return str(node.tag), at, bool(node.flow_style), [told(entry) for entry in node.value]
    return str(node.tag), at, node.style or "", node.value


def slowly(text: str) -> Any:
    return YAML(typ="safe", pure=True).compose(text)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_every_bundled_spec_is_read_quickly_and_the_same(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    quick = compose_quickly(text)
    assert quick is not None
    assert told(quick) == told(slowly(text))


def outcome(read: Callable[[str, str], Any], text: str) -> Any:
    try:
        return read(text, "file.yaml")
    except SpecError as error:
        return error.diagnostics


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_mistakes_are_worded_the_same_without_libyaml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    parse_yaml.cache_clear()
    found = outcome(parse_yaml, text)
    monkeypatch.setattr(composer, "CParser", None)
    parse_yaml.cache_clear()
    assert outcome(parse_yaml, text) == found


# Words that YAML 1.1 and 1.2, or two parsers, might take for different things.
PLAIN = """
a bc yes no on off y n 017 0o17 0x1F 0b11 1:30 12:30:45 1.5 1e3 1e-5 .5 1_000 1__0 .inf -.INF .nan ~ null NULL true True
TRUE False é — あ 😀 '' "" = << 2020-01-01 -- -1 +1 +.5 a{b} x/y.* a:b a#b :: http://x >=1 1. 1.e5 -0 00 08 1e 0o8 0xg
. .. _1 1_ nan Infinity [a] a] a,b -x @a `a %a |x : ? ! !x !=1 &x *x ... ---
"""
WORDS = PLAIN.split()
WORDS += ["x y", '"a\\nb"', '"\\x41\\u00e9"', "'it''s'", "(a, b)", '"a: b"', "a != b", '"{layer}.weight"', "{layer}.w"]
WORDS += [
    "a - b",
    "a: b",
    '"a\n  b"',
    "'a\n\n   b'",
    "a\n   b",
    '"a\\\n  b"',
    "- a",
    "# c",
    "a # c",
    "\xa0",
    "a\tb",
    "\u2028",
]
WORDS += ["&x a", "!!str a", "", " ", "a * b", "a & b", "a *b"]
ENDS = ["", "", "", " # c", "  #", "#c"]


def flow(random: Random, depth: int) -> str:
    kind = random.random()
    if depth <= 0 or kind < 0.5:
        return random.choice(WORDS)
    comma = random.choice([", ", ",", " ,", "\n      , ", ",\n      "])
    last = random.choice(["", "", ",", " "])
    if kind < 0.75:
        return f"[{comma.join(flow(random, depth - 1) for _ in range(random.randint(0, 3)))}{last}]"
    colons = (": ", ": ", ":", " : ")
    items = (
        random.choice(WORDS) + random.choice(colons) + flow(random, depth - 1) for _ in range(random.randint(0, 3))
    )
    return f"{{{comma.join(items)}{last}}}"


def lines(random: Random, indent: str) -> str:
    """The text of a block scalar, rightly or wrongly indented."""
    more = (
        random.choice([indent + "  ", indent + "  ", indent + "   ", indent, ""]) for _ in range(random.randint(0, 4))
    )
    return "".join(f"{space}{random.choice(WORDS)}\n" for space in more)


def block(random: Random, indent: str, depth: int) -> str:
    """What follows a key or a dash."""
    kind = random.random()
    if depth <= 0 or kind < 0.35:
        return f" {flow(random, 2)}{random.choice(ENDS)}\n"
    if kind < 0.45:
        header = random.choice("|>") + random.choice(["", "", "-", "+", "2", "-2"])
        return f" {header}{random.choice(ENDS)}\n{lines(random, indent)}"
    out = random.choice(["\n", "\n", "\n", " # note\n"])
    below = indent + " " * random.choice([2, 2, 4, 1, 0])
    for _ in range(random.randint(1, 3)):
        out += random.choice(["", "", "", "", "\n", f"{below}# comment\n", "# c\n"])
        if kind < 0.75:
            out += below + random.choice(WORDS) + random.choice([":", ":", ":", " :"]) + block(random, below, depth - 1)
        else:
            out += f"{below}-" + block(random, below + "  ", depth - 1)
    return out


def document(random: Random) -> str:
    return "".join(
        f"{random.choice(WORDS)}:{block(random, '', random.randint(0, 4))}" for _ in range(random.randint(1, 3))
    )


@settings(max_examples=300)
@given(
    st.one_of(
        st.randoms(use_true_random=False).map(document),
        st.text(),
        st.lists(st.sampled_from([*WORDS, *":-\n[]{},", ": ", "\n  "])).map("".join),
    )
)
@example("")
@example("a:\n")
@example("a: |\n  \n    b\n")
@example("|\n# c\n")
@example("a: &x 1\nb: *x\n")
@example("*x: 1\n")
@example("%YAML 1.1\n---\na: yes\n")
@example("a: 1\n---\nb: 2\n")
@example("a: 1\n...\n")
@example("a:\tb\n")
@example("a: b\r\nc: d\r\n")
@example("a: b\x85c: d\n")
@example("\ufeffa: b\n")
@example("? a\n: b\n")
@example("a: !!int '1'\n")
@example("a: ! 1\n")
@example("a: 1\na: 2\n")
@example("a: b")
@example("a: \ud800\n")
@example("a: \x00\n")
@example("k" * 1025 + ": a\n")
@example("a: |#c\n")
@example("a: >-#c\n  b\n")
@example("a:\n  - |2#c\n")
def test_what_is_read_quickly_is_what_would_be_read_slowly(text: str) -> None:
    quick = compose_quickly(text)
    if quick is not None:
        assert told(quick) == told(slowly(text))


@pytest.mark.parametrize("text", ["a: 1\nb: [x, {y: é—😀}]\nc:\n  - |\n    t\n  - 'q'\n", "a: yes\nb: 017\nc: 1:30\n"])
def test_common_texts_are_read_quickly(text: str) -> None:
    assert compose_quickly(text) is not None


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "- - "])
def test_nesting_without_end_is_left_to_the_parser_that_counts(opening: str) -> None:
    text = f"a:\n  {opening * 20_000}\n"
    assert compose_quickly(text) is None
    with pytest.raises(SpecError, match="MS001"):
        parse_yaml(text, "deep.yaml")


def test_offsets_are_those_of_characters() -> None:
    text = "é: 'あ😀'\nb: [1, 2]\n"
    assert compose_quickly(text) is not None
    value = parse_nodes(text, "file.yaml").at("é")
    assert value is not None
    assert text[value.start : value.end] == "'あ😀'"


def test_without_libyaml_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SPECS[0].read_text(encoding="utf-8")
    quick = told(compose(text))
    monkeypatch.setattr(composer, "CParser", None)
    assert compose_quickly(text) is None
    assert told(compose(text)) == quick
