"""What the inventory of a published model says, and how mistakes are answered. Needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mapspec.bind import Choices, bind
from mapspec.errors import SpecError
from mapspec.inventory import Cut, local_inventory, pipeline_stages
from mapspec.io.json_config import read_config
from mapspec.link import link_spec
from mapspec.provider.pattern import parse_pattern
from mapspec.ranks import Shard
from mapspec.render.inventory import inventory_report
from mapspec.table import Table, build_table

CONFIGS = Path(__file__).parent.parent / "configs"
NANO, SUPER = CONFIGS / "nemotron-3-nano-30b-a3b.json", CONFIGS / "nemotron-3-super-120b-a12b.json"


@pytest.fixture(scope="module")
def table() -> Table:
    return build_table(bind(link_spec("nemotron_h"), read_config(NANO), Choices()))


def test_a_cut_tensor_knows_its_whole(table: Table) -> None:
    found = {t.name: t for t in local_inventory(table, Shard(tp_size=2, ep_rank=3, ep_size=8, etp_size=1))}
    in_proj = found["decoder.layers.0.mixer.in_proj.weight"]
    assert (in_proj.shape, in_proj.global_shape) == ((5152, 2688), (10304, 2688))  # behaviour seen in real runs
    assert in_proj.cut == Cut(0, "tensor", ("z", "x", "B", "C", "dt"))
    assert in_proj.nbytes == 5152 * 2688 * 2
    expert = found["decoder.layers.1.mlp.experts.linear_fc2.weight15"]
    assert expert.global_name == "decoder.layers.1.mlp.experts.linear_fc2.weight63"
    assert (expert.shape, expert.cut) == ((2688, 1856), Cut(1, "expert_tensor"))
    assert "decoder.layers.1.mlp.experts.linear_fc2.weight16" not in found
    assert found["decoder.layers.1.mlp.router.expert_bias"].dtype == "float32"
    assert found["decoder.final_norm.weight"].cut is None


def test_stages_number_their_layers_from_zero(table: Table) -> None:
    found = local_inventory(table, pp_layers=range(26, 52), first_stage=False)
    names = {t.name: t.global_name for t in found}
    assert not any(t.pattern.startswith("embedding") for t in found)
    assert {n for n in names if not n.startswith("decoder.layers.")} == {
        "decoder.final_norm.weight",
        "output_layer.weight",
    }
    layers = {int(n.split(".")[2]) for n in names if n.startswith("decoder.layers.")}
    assert layers == set(range(26))
    assert names["decoder.layers.0.self_attention.linear_qkv.weight"] == (
        "decoder.layers.26.self_attention.linear_qkv.weight"
    )


def test_all_ranks_together_hold_the_model(table: Table) -> None:
    """Every canonical tensor is held in full: EP and PP deal tensors out, TP cuts them."""
    held: dict[str, int] = {}
    stages = pipeline_stages(parse_pattern("ME" * 10 + "*" * 6 + "-" * 26), 2)
    for i, layers in enumerate(stages):
        for ep in range(4):
            for t in local_inventory(
                table, Shard(tp_size=2, ep_rank=ep, ep_size=4), pp_layers=layers, first_stage=i == 0, last_stage=i == 1
            ):
                held[t.global_name] = t.numel * (2 if t.cut else 1)
    assert held == {row.megatron: row.numel for row in table.rows}


def test_names_follow_the_version_of_megatron() -> None:
    for version, name in (((0, 18), "conv1d.weight"), ((0, 19), "conv1d_weight"), ((0, 20), "conv1d_weight")):
        report = json.loads(inventory_report("nemotron_h", NANO, fmt="json", megatron_core=version))
        assert report["megatron_core"] == ".".join(map(str, version))
        names = [t["name"] for t in report["stages"][0]["tensors"]]
        assert f"decoder.layers.0.mixer.{name}" in names
        assert sum("conv1d" in n and n.endswith("weight") for n in names) == 23


def test_report_follows_the_fields() -> None:
    text = inventory_report(None, SUPER, ["norms=separate", "moe_grouped_gemm=false"], tp=2, ep=8, pp=4)
    assert "norms separate, conv" in text
    assert "experts sequential" in text
    assert "parallel sizes: tensor 2, expert 8, expert tensor 1" in text
    assert "pipeline stage 1: decoder layers 22 to 43, here 0 to 21\npipeline stage 2: decoder layers 44 to 65" in text
    assert "decoder.layers.{layer}.input_layernorm.weight" in text
    assert text.count("mtp.layers.{block}.eh_proj.weight") == 1
    last = inventory_report(None, SUPER, tp=2, pp=4, pp_rank=3)
    assert "embedding.word_embeddings.weight" in last  # its copy feeds the prediction blocks
    assert last.count("pipeline stage") == 1


def test_report_formats_agree() -> None:
    data = json.loads(inventory_report("nemotron_h", NANO, fmt="json", ep=4))
    assert data["format_version"]
    assert data["kind"] == "inventory"
    tensors = data["stages"][0]["tensors"]
    in_markdown = inventory_report("nemotron_h", NANO, fmt="md", ep=4)
    assert f"{len(tensors):,} tensors" in in_markdown
    assert "| `decoder.layers.{layer}.mlp.experts.linear_fc1.weight{expert}` | 1856x2688 |" in in_markdown
    assert "736" in in_markdown  # 23 layers x 32 local experts


def test_a_tied_output_layer_is_named_as_the_copy_it_is() -> None:
    config = read_config(NANO) | {"tie_word_embeddings": True}
    table = build_table(bind(link_spec("nemotron_h"), config, Choices()))
    assert not any(t.name == "output_layer.weight" for t in local_inventory(table))
    last = local_inventory(table, pp_layers=range(26, 52), first_stage=False)
    (copy,) = [t for t in last if t.name == "output_layer.weight"]
    assert copy.global_name == "embedding.word_embeddings.weight"


@pytest.mark.parametrize(
    ("sizes", "code"),
    [({"tp": 3}, "MS430"), ({"ep": 3}, "MS430"), ({"pp": 5}, "MS430")],
)
def test_sizes_that_do_not_divide(sizes: dict[str, int], code: str) -> None:
    with pytest.raises(SpecError) as caught:
        inventory_report("nemotron_h", NANO, **sizes)
    assert caught.value.diagnostics[0].code == code


def test_stages_by_number_and_by_hand() -> None:
    def spans(text: str, *sizes: int | None) -> list[tuple[int, int]]:
        return [(r.start, r.stop) for r in pipeline_stages(parse_pattern(text), *sizes)]

    assert spans("MMMM", 2) == [(0, 2), (2, 4)]
    assert spans("M|MM|M/*E", 3) == [(0, 1), (1, 3), (3, 4)]
    assert spans("MMMMM", 3, 1, None) == [(0, 1), (1, 3), (3, 5)]
    assert spans("MMMMM", 3, 1, 2) == [(0, 1), (1, 3), (3, 5)]
    assert spans("M|", 2) == [(0, 1), (1, 1)]
    for text, sizes, code in (("MMM", (2,), "MS430"), ("M|M", (3,), "MS433"), ("MMM", (2, 1, 1), "MS430")):
        with pytest.raises(SpecError) as caught:
            spans(text, *sizes)
        assert caught.value.diagnostics[0].code == code


def test_layers_that_the_model_lacks(table: Table) -> None:
    with pytest.raises(SpecError, match="layers 50 to 59, but the model has layers 0 to 51") as caught:
        local_inventory(table, pp_layers=range(50, 60))
    assert caught.value.diagnostics[0].code == "MS451"


def test_modules_of_no_known_stage(table: Table) -> None:
    foreign = replace(table, rows=(replace(table.rows[0], megatron="vision_model.patches.weight"),))
    assert local_inventory(foreign)[0].name == "vision_model.patches.weight"  # one stage holds everything
    with pytest.raises(SpecError, match=r"`vision_model\.patches\.weight` belongs to no pipeline stage") as caught:
        local_inventory(foreign, last_stage=False)
    assert caught.value.diagnostics[0].code == "MS450"


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; from mapspec.render.inventory import inventory_report; "
        f"inventory_report('nemotron_h', {str(NANO)!r}); sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
