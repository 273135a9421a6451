"""The inventory names what the real HybridModel holds, on one rank and cut over several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fixtures_hf import VARIANTS, TinyModel, write_tiny
from megatron.core import parallel_state
from oracle import build_for, megatron_pattern, read_hf, spawn

from mapspec.backends.reference_parallel import ParallelSizes, one_process_group, process_groups
from mapspec.bind import Choices, bind
from mapspec.inventory import local_inventory, pipeline_stages
from mapspec.link import link_spec
from mapspec.provider.pattern import parse_pattern
from mapspec.ranks import Shard
from mapspec.table import Table, build_table

pytestmark = pytest.mark.megatron

MODELS: dict[str, TinyModel] = {**VARIANTS, "tied_mtp": VARIANTS["mtp2"].but(tied=True)}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: read_hf(write_tiny(model, root / name))[1] for name, model in MODELS.items()}


def table_for(
    config: Mapping[str, Any], *, norms: str = "fused", experts: str = "sequential", conv_names: str | None = None
) -> Table:
    flavours = {"norms": norms, "experts": experts}
    version = (0, 18) if conv_names == "dotted" else (0, 19)
    return build_table(bind(link_spec("nemotron_h"), config, Choices(flavours, version)))


def held_by(model: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter and persistent buffer."""
    found = {
        name: tuple(value.shape)
        for name, value in model.state_dict(keep_vars=True).items()
        if torch.is_tensor(value) and not name.endswith("_extra_state")
    }
    assert {name for name, _ in model.named_parameters()} <= found.keys()
    return found


def expected_on(table: Table, sizes: ParallelSizes, ranks: tuple[int, ...], pattern: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape that the inventory promises for the rank (tp, pp, ep, etp)."""
    tp, pp, ep, etp = ranks
    shard = Shard(tp, sizes.tp, ep, sizes.ep, etp, sizes.expert_tensor)
    layers = pipeline_stages(parse_pattern(pattern), sizes.pp)[pp]
    found = local_inventory(table, shard, pp_layers=layers, first_stage=pp == 0, last_stage=pp == sizes.pp - 1)
    names = {tensor.name: tensor.shape for tensor in found}
    assert len(names) == len(found), "a name twice"
    return names


@pytest.mark.parametrize(
    "switches",
    [
        {"norms": "fused", "experts": "grouped"},
        {"norms": "separate", "experts": "sequential"},
        {"norms": "fused", "experts": "sequential", "conv_names": "dotted"},
    ],
    ids=lambda s: "-".join(s.values()),
)
@pytest.mark.parametrize("name", MODELS)
def test_one_rank(configs: dict[str, dict[str, Any]], name: str, switches: dict[str, Any]) -> None:
    config = configs[name]
    with one_process_group():
        model = build_for(config, **switches)
    found = local_inventory(table_for(config, **switches))
    assert {t.name: t.shape for t in found} == held_by(model)
    assert [t.name for t in found] == [t.global_name for t in found]


CASES: list[tuple[str, ParallelSizes, tuple[int, ...], dict[str, str]]] = [
    ("latent", ParallelSizes(tp=2), (), {}),
    ("mtp_mamba", ParallelSizes(tp=4), (), {"norms": "separate"}),
    ("moe", ParallelSizes(ep=2), (), {"experts": "grouped"}),
    ("latent", ParallelSizes(ep=4), (), {"experts": "sequential"}),
    ("mtp1", ParallelSizes(tp=2, ep=2, etp=2), (), {"experts": "grouped"}),
    ("mtp1", ParallelSizes(tp=2, ep=2), (), {"experts": "sequential", "norms": "separate"}),
    ("mtp2", ParallelSizes(pp=2), (1,), {}),
    ("dense", ParallelSizes(pp=4), (), {}),
    ("tied", ParallelSizes(pp=2), (1,), {}),
    ("tied_mtp", ParallelSizes(pp=2), (2,), {"experts": "grouped"}),
    ("latent", ParallelSizes(tp=2, pp=2, ep=2), (3,), {"experts": "grouped"}),
]


def report(rank: int, configs: dict[str, Any]) -> list[tuple[tuple[int, ...], dict[str, tuple[int, ...]]]]:
    """Build this rank's model of every case; (place in the groups, what it holds) for each."""
    parallel_state.destroy_model_parallel()
    out = []
    for name, sizes, cuts, switches in CASES:
        with process_groups(sizes):
            place = (
                parallel_state.get_tensor_model_parallel_rank(),
                parallel_state.get_pipeline_model_parallel_rank(),
                parallel_state.get_expert_model_parallel_rank(),
                parallel_state.get_expert_tensor_parallel_rank(),
            )
            out.append((place, held_by(build_for(configs[name], cuts=cuts, **switches))))
    return out


def test_every_rank_of_many(configs: dict[str, dict[str, Any]]) -> None:
    ranks = spawn(report, 4, configs)
    for i, (name, sizes, cuts, switches) in enumerate(CASES):
        table = table_for(configs[name], **switches)
        pattern = megatron_pattern(configs[name], cuts)
        places = set()
        for found in ranks:
            place, held = found[i]
            places.add(place[1:3])
            assert expected_on(table, sizes, place, pattern) == held, (name, sizes, place)
        assert len(places) == sizes.pp * sizes.ep, "every stage and every expert-parallel rank was seen"
