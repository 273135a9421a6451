"""Regions against brute force: every element labelled with its place, moved, and found where it belongs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapspec.arrange import ArrangementError, Node, parse_arrangement, unroll
from mapspec.axes import ravel, unravel
from mapspec.boxes import intersect, tiling_fault
from mapspec.collapse import collapse, ranges
from mapspec.regions import Piece, Slot, clip, compose, flip, pair
from mapspec.tensors import Box, box_shape, whole

# --- arrangements ----------------------------------------------------------------------------------------------


@st.composite
def arrangements(draw: st.DrawFn, depth: int = 2) -> tuple[str, list[str]]:
    """The text of an arrangement, and what it stands for."""
    texts, segments = [], []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.booleans()):
            text, inner = draw(arrangements(depth=depth - 1))
            count = draw(st.sampled_from([("2", 2), ("groups", 3), ("0", 0)]))
            texts.append(f"{count[0]} * ({text})")
            segments += inner * count[1]
        else:
            name = draw(st.sampled_from(["q", "k", "v_2"]))
            texts.append(name)
            segments.append(name)
    return draw(st.sampled_from([" ", "  "])).join(texts), segments


@given(arrangements())
def test_arrangements_are_written_out(case: tuple[str, list[str]]) -> None:
    text, segments = case
    assert unroll(parse_arrangement(text), {"groups": 3}.__getitem__) == tuple(segments)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 0),
        ("q)", 1),
        ("2 * (q", 6),
        ("2 * q", 0),
        ("* (q)", 0),
        ("(q)", 0),
        ("q + k", 2),
        ("2 * ()", 5),
        ("2 *", 0),
    ],
)
def test_what_is_no_arrangement(text: str, column: int) -> None:
    with pytest.raises(ArrangementError) as caught:
        parse_arrangement(text)
    assert caught.value.column == column


@given(st.text(alphabet="qk2 *()+", max_size=14) | st.just("2*(" * 500))
def test_nothing_but_an_arrangement_error_comes_out(text: str) -> None:
    try:
        nodes = parse_arrangement(text)
    except ArrangementError:
        return
    assert all(isinstance(node, Node) for node in nodes)


# --- pieces ----------------------------------------------------------------------------------------------------


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in box)


def move(pieces: tuple[Piece, ...], lefts: list[np.ndarray], shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The right tensors that the pieces make of the left ones; -1 where none lands."""
    out = [np.full(shape, -1) for shape in shapes]
    for piece in pieces:
        target = out[piece.right][slices(piece.right_box)]
        assert (target == -1).all(), "nothing is written twice"
        target[...] = lefts[piece.left][slices(piece.left_box)]
    return out


SIZES = st.fixed_dictionaries({name: st.integers(1, 3) for name in "qkv"})


@st.composite
def sides(draw: st.DrawFn) -> tuple[list[Slot], list[Slot], list[Slot], dict[str, int], int]:
    """The same segments three times: in groups, one tensor each, and all after one another."""
    groups, width, sizes = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(SIZES)
    names = draw(st.permutations("qkv"))
    order = tuple(names) * groups

    def slot(segments: tuple[str, ...]) -> Slot:
        return Slot((sum(sizes[s] for s in segments), width), segments, sizes, 0)

    split = [slot((name,) * groups) for name in draw(st.permutations("qkv"))]
    joined = [slot(tuple(name for name in "qkv" for _ in range(groups)))]
    return [slot(order)], split, joined, sizes, groups


def labels(side: list[Slot]) -> list[np.ndarray]:
    """Each element's segment, occurrence, row and column as one number, worked out row by row."""
    seen = dict.fromkeys("qkv", 0)
    out = []
    for slot in side:
        rows = []
        for segment in slot.order:
            for row in range(slot.sizes[segment]):
                start = ("qkv".index(segment) * 10 + seen[segment]) * 1000 + row * 10
                rows.append([start + column for column in range(slot.shape[1])])
            seen[segment] += 1
        out.append(np.array(rows))
    return out


@given(sides())
def test_pairing_joins_equal_occurrences(case: tuple[list[Slot], list[Slot], list[Slot], dict[str, int], int]) -> None:
    for left in case[:3]:
        for right in case[:3]:
            moved = move(pair(left, right), labels(left), [slot.shape for slot in right])
            for got, wanted in zip(moved, labels(right), strict=True):
                np.testing.assert_array_equal(got, wanted)


@given(sides())
def test_flipping_is_the_inverse(case: tuple[list[Slot], list[Slot], list[Slot], dict[str, int], int]) -> None:
    left, right = case[:2]
    pieces = pair(left, right)
    there = move(pieces, labels(left), [slot.shape for slot in right])
    back = move(flip(pieces), there, [slot.shape for slot in left])
    np.testing.assert_array_equal(back[0], labels(left)[0])
    assert flip(flip(pieces)) == pieces
    for number, slot in enumerate(right):
        assert tiling_fault(slot.shape, [p.right_box for p in pieces if p.right == number]) is None


@given(sides())
def test_composing_is_moving_twice(case: tuple[list[Slot], list[Slot], list[Slot], dict[str, int], int]) -> None:
    left, middle, right = case[:3]
    direct = move(compose(pair(left, middle), pair(middle, right)), labels(left), [slot.shape for slot in right])
    np.testing.assert_array_equal(direct[0], labels(right)[0])


def test_neighbours_are_merged() -> None:
    sizes = {"z": 2, "x": 3}
    both = [Slot((5, 4), ("z", "x"), sizes, 0)]
    assert pair(both, both) == (Piece(0, ((0, 5), (0, 4)), 0, ((0, 5), (0, 4))),)


def test_padding_is_in_no_piece() -> None:
    [piece] = pair([Slot((5, 2), ("",), {"": 5}, 0)], [Slot((8, 2), ("",), {"": 8}, 0)])
    assert piece.right_box == ((0, 5), (0, 2))


def test_scalars_are_paired() -> None:
    scalar = [Slot((), ("",), {"": 1}, -1)]
    assert pair(scalar, scalar) == (Piece(0, (), 0, ()),)
    assert tiling_fault((), [()]) is None
    assert tiling_fault((), []) is not None
    assert tiling_fault((), [(), ()]) is not None


BOXES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda t: (min(t), max(t))), min_size=2, max_size=2
).map(tuple)


@given(BOXES, BOXES)
def test_intersection(a: Box, b: Box) -> None:
    one, two = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
    one[slices(a)] = True
    two[slices(b)] = True
    both = np.zeros((5, 5), bool)
    common = intersect(a, b)
    if common is not None:
        both[slices(common)] = True
        assert math.prod(box_shape(common)) > 0
    np.testing.assert_array_equal(both, one & two)


@given(sides(), st.data())
def test_clipping_keeps_what_lies_in_the_box(
    case: tuple[list[Slot], list[Slot], list[Slot], dict[str, int], int], data: st.DataObject
) -> None:
    left, right = case[1], case[0]
    rows, columns = right[0].shape
    start = data.draw(st.integers(0, rows - 1))
    box = ((start, data.draw(st.integers(start + 1, rows))), (0, columns))
    clipped = tuple(c for piece in pair(left, right) if (c := clip(piece, box)) is not None)
    wanted = np.full(right[0].shape, -1)
    wanted[slices(box)] = labels(right)[0][slices(box)]
    np.testing.assert_array_equal(move(clipped, labels(left), [right[0].shape])[0], wanted)


@given(st.lists(BOXES, max_size=5), st.integers(1, 4), st.integers(1, 4))
def test_tiling_faults_against_counting(boxes: list[Box], rows: int, columns: int) -> None:
    count = np.zeros((8, 8), int)
    for box in boxes:
        count[slices(box)] += 1
    inside = all(b <= n for box in boxes for (_, b), n in zip(box, (rows, columns), strict=True))
    tiled = inside and (count[:rows, :columns] == 1).all() and count.sum() == rows * columns
    assert (tiling_fault((rows, columns), boxes) is None) == tiled


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_any_cut_of_a_tensor_tiles_it(rows: int, columns: int, data: st.DataObject) -> None:
    def cut(box: Box, depth: int) -> list[Box]:
        axis = data.draw(st.integers(0, 1))
        a, b = box[axis]
        if not depth or b - a < 2:
            return [box]
        at = data.draw(st.integers(a + 1, b - 1))
        first, second = list(box), list(box)
        first[axis], second[axis] = (a, at), (at, b)
        return [*cut(tuple(first), depth - 1), *cut(tuple(second), depth - 1)]

    boxes = data.draw(st.permutations(cut(whole((rows, columns)), 3)))
    assert tiling_fault((rows, columns), boxes) is None
    assert tiling_fault((rows, columns), boxes[1:]) is not None
    assert tiling_fault((rows, columns), [*boxes, boxes[0]]) is not None


# --- axes and collapsed names ----------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 9), st.data())
def test_unravel_is_the_inverse_of_ravel(outer: int, size: int, data: st.DataObject) -> None:
    inner = data.draw(st.integers(0, size - 1))
    assert unravel(ravel(outer, inner, size), size) == (outer, inner)


@given(st.integers(0, 500), st.integers(1, 9))
def test_ravel_is_the_inverse_of_unravel(flat: int, size: int) -> None:
    assert ravel(*unravel(flat, size), size) == flat


def expand(pattern: str) -> list[str]:
    """Every name of a collapsed pattern."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    body, _, tail = rest.partition("}")
    numbers: list[int] = []
    for run in body.split(","):
        first, _, last = run.partition("...")
        numbers += range(int(first), int(last or first) + 1)
    return [f"{head}{n}{name}" for n in numbers for name in expand(tail)]


NAMES = st.builds(
    "{}.{}.x.{}.weight{}".format,
    st.sampled_from("ab"),
    st.integers(0, 4),
    st.integers(0, 11),
    st.sampled_from(["", "0", "3"]),
) | st.sampled_from(["head.weight", "conv1d.weight", "a.1.A_log", "radio2.5"])


@given(st.lists(NAMES, max_size=40))
def test_collapsed_names_expand_to_exactly_the_given_ones(names: list[str]) -> None:
    patterns = collapse(names)
    expanded = [name for pattern, _ in patterns for name in expand(pattern)]
    assert sorted(expanded) == sorted(set(names))
    assert [count for _, count in patterns] == [len(expand(pattern)) for pattern, _ in patterns]


def test_ranges() -> None:
    assert ranges([3, 0, 1, 2, 7, 9, 10, 11, 5]) == "0...3,5,7,9...11"
    assert ranges([1, 2]) == "1,2"
