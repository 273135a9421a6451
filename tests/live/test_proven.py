"""Binding and proving happen once for the same model, spec and config."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from mapspec.errors import SpecError
from mapspec.live import proven
from mapspec.live.opening import choose
from mapspec.prove import Proof

CONFIG = json.loads((Path(__file__).parents[1] / "configs/nemotron-3-nano-4b.json").read_text())


@pytest.fixture(autouse=True)
def empty() -> None:
    proven._tables.clear()


def table(config: dict[str, object] | None = None, rows: int = 64, spec: str | None = None, tp: int = 1) -> object:
    linked, bound_config, choices = choose(config or CONFIG, [], where="test", spec=spec, flavours=None, sets=())
    return proven.table_for(linked, bound_config, choices, {"decoder.final_norm.weight": (rows,)}, tp)


def test_the_work_is_done_once_for_the_same_model() -> None:
    with (
        mock.patch.object(proven, "prove", wraps=proven.prove) as prove,
        mock.patch.object(proven, "choose_for_model", wraps=proven.choose_for_model) as choose_for_model,
    ):
        first = table()
        assert all(table() is first for _ in range(5))
        assert (prove.call_count, choose_for_model.call_count) == (1, 1)
        table(rows=65)  # another model
        table(tp=2)
        assert prove.call_count == 3
        assert table({**CONFIG, "intermediate_size": 2 * CONFIG["intermediate_size"]}) is not first
        assert prove.call_count == 4
        assert len(proven._tables) == 2


def test_a_spec_that_was_edited_is_read_again(tmp_path: Path) -> None:
    spec = tmp_path / "variant.yaml"
    text = "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: {}\n  version: 1.0.0\nextends: nemotron_h@1\n"
    spec.write_text(text.format("before"))
    first = table(spec=str(spec))
    assert table(spec=str(spec)) is first
    spec.write_text(text.format("edited"))
    second = table(spec=str(spec))
    assert second is not first
    assert second.bound.linked.name.startswith("edited")  # type: ignore[attr-defined]


def test_what_is_not_proven_is_not_kept() -> None:
    bad = mock.Mock(spec=Proof, findings=(mock.Mock(one_line=lambda: "no"),))
    with mock.patch.object(proven, "prove", return_value=bad), pytest.raises(SpecError):
        table()
    assert not proven._tables
