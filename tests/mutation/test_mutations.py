"""Every mistake of `mutants` is caught by a check that users run; docs/mutations.md says by which.

`UPDATE_GOLDEN=1 pytest tests/mutation` writes that table anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import CHECKS, PASSED, Checkpoints, Outcome, examine
from mutants import MUTANTS, Mutant

from mapspec.logits import compare
from mapspec.nogc import gc_paused

pytestmark = [pytest.mark.megatron, pytest.mark.slow, pytest.mark.xdist_group("mutation")]

TABLE = Path(__file__).resolve().parents[2] / "docs" / "mutations.md"
CONTROLS = (
    Mutant("nothing changed"),
    Mutant("nothing changed, tied", model="tied"),
    Mutant("nothing changed, padded vocabulary", model="odd_vocab", padded=256),
    Mutant("nothing changed, --dtype bfloat16", model="bf16", dtype="bfloat16"),
)
HEAD = """# What catches a mistake in a mapping

Written by `UPDATE_GOLDEN=1 pytest tests/mutation`; the test compares this table with what it finds. Every line is one
mistake: in the text of `mappings/nemotron_h.yaml`, or, marked with *, one that a spec cannot express, made in the
tensors as a faulty program would make it. The model is tiny and square wherever it can be, so that shapes give nothing
away.

The checks, in the order in which one runs them:

* **lint**: `mapspec lint` on the spec, bound to two made-up configs and the model's own.
* **plan**, **convert**: the commands of those names. Coverage and proof; nothing is known of what the numbers mean.
* **round trip**: there and back with the same mistake, then `mapspec verify`. Run to show how little it proves.
* **verify**: `mapspec verify` of the Hugging Face folder against a checkpoint that Megatron-Core wrote itself. With *
  and with `--dtype`: against what the faulty conversion wrote.
* **strict load**, **logits**, **cuts**: `mapspec verify --logits` of the Hugging Face folder against what the faulty
  conversion wrote: Megatron-Core's own strict load into the real model; logits and hidden states against
  transformers; what a rank at tensor parallel size 2 gets by the spec, against what Megatron-Core's model of that
  rank stores.

`-`: passes. Empty: not reached. The first lines change nothing and pass everything; every other line is caught.
"""


@pytest.fixture(scope="module")
def one_floor_per_checkpoint() -> Iterator[None]:
    """The Hugging Face side is the same for all mutants of a model: run it once."""
    kept: dict[Path, Any] = {}
    original = compare.run_with_floor

    def remembered(source: Any, *rest: Any) -> Any:
        if source.root not in kept:
            kept[source.root] = original(source, *rest)
        return kept[source.root]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_with_floor", remembered)
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("mutation"))


@pytest.fixture(scope="module")
def outcomes(
    checkpoints: Checkpoints, one_floor_per_checkpoint: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    work = tmp_path_factory.mktemp("work") / "mutant"
    with gc_paused():  # many small objects that stay, in a process with much in it: a third of the time
        return {mutant.name: examine(mutant, checkpoints, work) for mutant in (*CONTROLS, *MUTANTS)}


def table(outcomes: dict[str, Outcome]) -> str:
    """docs/mutations.md."""
    lines = [HEAD, "| mistake | " + " | ".join(CHECKS) + " | first caught by |", "|" + " --- |" * (len(CHECKS) + 2)]
    for mutant in (*CONTROLS, *MUTANTS):
        outcome = outcomes[mutant.name]
        cells = ["-" if (said := outcome.said.get(check, "")) == PASSED else said for check in CHECKS]
        name = mutant.name + (" *" if mutant.tensors else "")
        lines.append("| " + " | ".join([name, *cells, outcome.first or "nothing, as it should be"]) + " |")
    return "\n".join(lines) + "\n"


def test_every_mutant_is_caught(outcomes: dict[str, Outcome]) -> None:
    assert [mutant.name for mutant in MUTANTS if not outcomes[mutant.name].first] == []


def test_the_unchanged_mapping_passes_every_check(outcomes: dict[str, Outcome]) -> None:
    for control in CONTROLS:
        said = {check: what for check, what in outcomes[control.name].said.items() if what != PASSED}
        assert said == {}, control.name


def test_a_round_trip_misses_what_is_symmetric(outcomes: dict[str, Outcome]) -> None:
    blind = [m.name for m in MUTANTS if outcomes[m.name].said.get("round trip") == PASSED]
    assert len(blind) > len(MUTANTS) / 2
    assert "k and v exchanged" in blind


def test_logits_alone_see_every_misplaced_value(outcomes: dict[str, Outcome]) -> None:
    """Whoever has no checkpoint of Megatron-Core's own to compare with."""
    for mutant in MUTANTS:
        said = outcomes[mutant.name].said
        if "exchanged" in mutant.name and "logits" in said:
            assert said["logits"] != PASSED, mutant.name


def test_the_table_in_the_docs_is_what_was_found(outcomes: dict[str, Outcome]) -> None:
    text = table(outcomes)
    if os.environ.get("UPDATE_GOLDEN"):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.is_file(), "docs/mutations.md is not there; write it with UPDATE_GOLDEN=1 pytest tests/mutation"
    assert TABLE.read_text(encoding="utf-8") == text, "docs/mutations.md differs; if meant, UPDATE_GOLDEN=1"
