"""Names as patterns that name each of them, and no other."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from mapspec.collapse import braced, collapse


def expand(pattern: str) -> set[str]:
    """Every name that a pattern stands for."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            choices.append([part])
            continue
        words = []
        for word in part.split(","):
            first, dots, last = word.partition("...")
            words += [str(n) for n in range(int(first), int(last) + 1)] if dots else [word]
        choices.append(words)
    return {"".join(chosen) for chosen in itertools.product(*choices)}


_NAMES = st.lists(
    st.builds(
        "layers.{}.{}.{}.weight".format,
        st.integers(0, 12),
        st.sampled_from(["mixer", "norm", "mlp"]),
        st.one_of(st.sampled_from(["q_proj", "k_proj", "z"]), st.integers(0, 4)),
    ),
    unique=True,
    max_size=40,
)


@given(_NAMES)
def test_patterns_name_exactly_the_names(names: list[str]) -> None:
    patterns = collapse(names)
    named = [expand(pattern) for pattern, _ in patterns]
    assert set().union(*named) == set(names)
    assert [len(group) for group in named] == [count for _, count in patterns]


@given(_NAMES)
def test_braces_change_nothing_of_what_is_named(names: list[str]) -> None:
    patterns = [pattern for pattern, _ in collapse(names)]
    named = [expand(pattern) for pattern in braced(patterns)]
    assert set().union(*named) == set(names)
    assert sum(map(len, named)) == len(names)


def test_neighbours_that_differ_in_one_part_become_one() -> None:
    stem = "decoder.layers.{0...51}.mixer.in_proj.weight."
    assert braced([stem + part for part in ("z", "x", "B")]) == [stem + "{z,x,B}"]
    names = [f"layers.0.mixer.{part}_proj.weight" for part in "qkv"]
    assert braced(names) == ["layers.0.mixer.{q_proj,k_proj,v_proj}.weight"]
    apart = ["conv.weight.x", "conv.weight.B", "conv.bias.x", "conv.bias.B"]
    assert braced(apart) == ["conv.weight.{x,B}", "conv.bias.{x,B}"]
    assert braced(["a.{0...3}.b", "a.7.b"]) == ["a.{0...3}.b", "a.7.b"]
