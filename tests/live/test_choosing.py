"""What a live model decides about a mapping, and what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mapspec.bind import Choices, bind
from mapspec.errors import SpecError
from mapspec.link import link_spec
from mapspec.live.choosing import choose_for_model
from mapspec.live.names import skeleton
from mapspec.table import build_table

CONFIG = json.loads((Path(__file__).parent.parent / "configs" / "nemotron-h-every-option.json").read_text())


@pytest.mark.parametrize("norms", ["fused", "separate"])
@pytest.mark.parametrize("experts", ["grouped", "sequential"])
def test_names_decide_the_flavours(norms: str, experts: str) -> None:
    linked = link_spec("nemotron_h")
    wanted = {"norms": norms, "experts": experts}
    table = build_table(bind(linked, CONFIG, Choices(wanted)))
    shapes = {skeleton(row.megatron): row.shape for row in table.rows}
    bound = choose_for_model(linked, CONFIG, Choices(), shapes, 1)
    assert {name: bound.flavours[name] for name in wanted} == wanted


def test_a_rule_that_only_a_checkpoint_could_fill_is_refused(tmp_path: Path) -> None:
    spec = tmp_path / "variant.yaml"
    spec.write_text(
        "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: variant\n  version: 1.0.0\nextends: nemotron_h@1\n"
        "blocks:\n  tower:\n    tensors:\n      tower.**:\n        hf: tower.**\n"
        "mounts:\n  tower:\n    blocks: [tower]\n"
    )
    with pytest.raises(SpecError) as caught:
        choose_for_model(link_spec(str(spec)), CONFIG, Choices(), {}, 1)
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS759"
    assert finding.span is not None
    assert finding.span.path == str(spec)
