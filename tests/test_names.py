"""Names: filling and matching are inverses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapspec.names import Hole, NameSyntaxError, Pattern, join, parse_name

TEXT = st.text(alphabet="abz_.-%1", min_size=1, max_size=5).filter(lambda text: not text.isdecimal())
HOLES = st.sampled_from(["layer", "expert", "Block_2"])


@st.composite
def patterns(draw: st.DrawFn, *, rest: bool = True) -> Pattern:
    """Texts and holes by turns, perhaps with a rest at the end."""
    parts: list[str | Hole] = []
    for _ in range(draw(st.integers(0, 3))):
        parts += [draw(TEXT), Hole(draw(HOLES))]
    if draw(st.booleans()) or not parts:
        parts.append(draw(TEXT))
        if rest and draw(st.booleans()):
            parts.append(Hole("rest", rest=True))
    return Pattern(tuple(parts))


@given(patterns())
def test_a_pattern_reads_back_from_its_text(pattern: Pattern) -> None:
    assert parse_name(str(pattern)) == pattern


@given(patterns(), st.data())
def test_matching_is_the_inverse_of_filling(pattern: Pattern, data: st.DataObject) -> None:
    values: dict[str, int | str] = {hole: data.draw(st.integers(0, 1200)) for hole in pattern.holes}
    if pattern.rest:
        values[pattern.rest] = data.draw(st.text(alphabet="ab.0", min_size=1, max_size=4))
    name = pattern.fill(values)
    assert pattern.match(name)
    captured = pattern.captures(name)
    assert captured is not None
    assert pattern.fill(captured) == name
    assert captured == values


@given(patterns(), st.text(alphabet="abz_.-%10", max_size=12))
def test_what_matches_is_filled_from_its_captures(pattern: Pattern, name: str) -> None:
    captured = pattern.captures(name)
    assert pattern.match(name) == (captured is not None)
    if captured is not None:
        assert pattern.fill(captured) == name


@pytest.mark.parametrize(
    "name", ["layers.01.weight", "layers..weight", "layers.1.weightx", "xlayers.1.weight", "layers.1.weight\n"]
)
def test_patterns_are_anchored_and_indices_canonical(name: str) -> None:
    assert not parse_name("layers.{layer}.weight").match(name)


def test_a_repeated_hole_has_one_value() -> None:
    pattern = parse_name("a.{i}.b.{i}")
    assert pattern.captures("a.3.b.3") == {"i": 3}
    assert pattern.captures("a.3.b.4") is None


def test_a_pattern_without_holes_matches_itself() -> None:
    assert parse_name("lm_head.weight").match("lm_head.weight")
    assert parse_name("lm_head.weight").captures("lm_head.weight") == {}


def test_an_index_of_thousands_of_digits_is_no_index() -> None:
    assert not parse_name("a.{i}").match("a." + "9" * 5000)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("a.***", 2), ("a.{", 2), ("a.{b", 2), ("a}", 1), ("{a}{b}", 3), ("{a}*", 3), ("{a}12{b}", 5), ("**.a", 0),
        ("a.{**x}.b", 3), ("{1a}", 0), ("{}", 0), ("{a-b}", 0),
    ],
)  # fmt: skip
def test_what_is_no_name(text: str, column: int) -> None:
    with pytest.raises(NameSyntaxError) as caught:
        parse_name(text)
    assert caught.value.column == column


@given(st.text(alphabet="ab{}*.1_ ", max_size=12))
def test_nothing_but_a_syntax_error_comes_out(text: str) -> None:
    try:
        pattern = parse_name(text)
    except NameSyntaxError as error:
        position = error.column
    else:
        position = 0
        assert pattern.regex.fullmatch(pattern.fill(dict.fromkeys(pattern.occurrences, 7)))
    assert 0 <= position <= len(text)


@given(patterns(rest=False), patterns())
def test_joining(prefix: Pattern, name: Pattern) -> None:
    both = join(prefix, name)
    values: dict[str, int | str] = dict.fromkeys(both.occurrences, 3)
    assert both.fill(values) == f"{prefix.fill(values)}.{name.fill(values)}"
    assert join(Pattern(()), name) == name
    assert join(name, Pattern(())) == name


def test_wildcards_are_named_in_order() -> None:
    pattern = parse_name("layers.*.experts.*.weight")
    assert len(pattern.unnamed) == 2
    assert str(pattern.named(["layer", "expert"])) == "layers.{layer}.experts.{expert}.weight"
    assert pattern.named(["layer"]).holes[0] == "layer"
