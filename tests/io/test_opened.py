"""Files of a checkpoint that are open."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from mapspec.io.opened import _together, opened

RANGES = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 9000)), max_size=12).map(
    lambda found: [(start, start + length) for start, length in sorted(found)]
)


@given(RANGES)
def test_ranges_near_each_other_are_one(ranges: list[tuple[int, int]]) -> None:
    found = list(_together(ranges))
    wanted = {byte for start, stop in ranges for byte in range(start, stop)}
    held = {byte for start, stop in found for byte in range(start, stop)}
    assert wanted <= held
    assert len(held) <= len(wanted) + 4096 * len(ranges)
    assert all(start > before + 4096 for (_, before), (start, _) in pairwise(found))


def test_what_will_be_read_is_asked_for(tmp_path: Path) -> None:
    """Ranges that a damaged checkpoint lists may lie anywhere; their own check says so."""
    path = tmp_path / "data"
    path.write_bytes(bytes(100_000))
    asked: list[tuple[int, int]] = []
    with opened(path) as file, mock.patch("os.posix_fadvise", lambda fd, at, n, advice: asked.append((at, n))):
        file.warm([(0, 100), (150, 200), (50_000, 50_001), (99_999, 1 << 70), (1 << 70, 1 << 71)])
    assert asked == [(0, 200), (50_000, 1), (99_999, 1)]
    with opened(path) as file:
        file.warm([(0, 100)])
        assert file.read(99_998, 5) == bytes(2)
