"""Records that are made by the hundred thousand are values, as frozen dataclasses are."""

from __future__ import annotations

import pickle
from dataclasses import replace

from mapspec.tensors import Chunk


def test_records_are_values() -> None:
    one = Chunk(((0, 2),), "a", 0, 4)
    assert one == Chunk(((0, 2),), "a", 0, 4)
    assert len({one, Chunk(((0, 2),), "a", 0, 4), replace(one, offset=8)}) == 2
    assert pickle.loads(pickle.dumps(one)) == one


def test_records_are_small() -> None:
    assert not hasattr(Chunk((), "a", 0, 1), "__dict__")
