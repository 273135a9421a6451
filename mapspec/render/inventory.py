"""The parameter inventory of the Megatron-Core model, stage by stage: what `mapspec provider --inventory` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mapspec.amounts import human_bytes
from mapspec.bind import Choices, bind
from mapspec.inventory import LocalTensor, local_inventory, pipeline_stages
from mapspec.link import link_spec
from mapspec.provider.installed import megatron_version
from mapspec.provider.pattern import parse_pattern
from mapspec.provider.provider import Provider
from mapspec.provider.render import _overrides
from mapspec.ranks import Shard
from mapspec.render.grid import as_json, draw_grid
from mapspec.table import Table, build_table

__all__ = ["Inventory", "Stage", "inventory_of", "inventory_report", "render_inventory"]

_COLUMNS = ("parameter", "local shape", "dtype", "cut", "tensors", "elements")


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage, as its ranks have it that are number `shard.ep_rank` in the expert-parallel group.

    Attributes:
        rank: number of the stage.
        layers: global numbers of its decoder layers.
        tensors: parameters and persistent buffers.
    """

    rank: int
    layers: range
    tensors: tuple[LocalTensor, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The inventory of a model.

    Attributes:
        model: what it is of, for the heading.
        megatron: version of Megatron-Core whose names these are.
        flavours: switches of the mapping that decide names.
        shard: the rank within its stage.
        stages: the pipeline stages, or those that were asked for.
    """

    model: str
    megatron: str
    flavours: Mapping[str, str]
    shard: Shard
    stages: tuple[Stage, ...]


def inventory_of(
    provider: Provider, *, megatron_core: tuple[int, int] | None = None, ep_rank: int = 0, pp_rank: int | None = None
) -> Inventory:
    """The inventory of the model that a provider builds; the parallel sizes are the provider's fields.

    Args:
        provider: overridden as wanted; it is finalized.
        megatron_core: version whose names are wanted; by default the installed one, 0.19 without one.
        ep_rank: expert-parallel rank; it decides which experts the local ones are.
        pp_rank: one pipeline stage only.

    Raises:
        SpecError: findings of `finalize()`, or of binding the mapping to the config.
    """
    provider.finalize()
    fields = provider.fields
    spec = provider.resolved.spec
    version = megatron_core or _installed()
    table = _table(provider, version)
    shard = Shard(
        tp_size=fields["tensor_model_parallel_size"], ep_rank=ep_rank, ep_size=fields["expert_model_parallel_size"],
        etp_rank=0, etp_size=fields["expert_tensor_parallel_size"],
    )  # fmt: skip
    ends = (fields.get(f"num_layers_in_{end}_pipeline_stage") for end in ("first", "last"))
    size = fields["pipeline_model_parallel_size"]
    ranges = pipeline_stages(parse_pattern(fields["hybrid_layer_pattern"]), size, *ends)
    stages = tuple(
        Stage(i, layers, local_inventory(
            table, shard, pp_layers=layers, first_stage=i == 0, last_stage=i == size - 1))
        for i, layers in enumerate(ranges) if pp_rank in (None, i)
    )  # fmt: skip
    name = f"{spec.name} from {provider.resolved.where}"
    flavours = {key: table.bound.flavours[key] for key in ("norms", "conv", "experts") if key in table.bound.flavours}
    return Inventory(name, ".".join(map(str, version)), flavours, shard, stages)


def _installed() -> tuple[int, int]:
    version = megatron_version()
    if version is None:
        return (0, 19)
    major, minor = version.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _table(provider: Provider, version: tuple[int, int]) -> Table:
    """The mapping of the provider, bound to the config that its fields spell, with the names that its fields choose."""
    fields = provider.fields
    linked = link_spec(provider.resolved.spec.model.metadata.mapping.partition("@")[0])
    wanted = {
        "norms": str(fields.get("norms") or "fused"),
        "experts": "grouped" if fields.get("moe_grouped_gemm", True) else "sequential",
    }
    if "assembly" in fields:
        wanted["assembly"] = str(fields["assembly"])
    flavours = {name: choice for name, choice in wanted.items() if name in linked.flavours()}
    padded = provider.padded_vocab_size
    choices = Choices(flavours, version, padded if padded != fields["vocab_size"] else None)
    return build_table(bind(linked, provider.to_hf_config(), choices))


def inventory_report(
    spec_name: str | None, config_path: str | Path, sets: Sequence[str] = (), fmt: str = "text",
    *, tp: int = 1, ep: int = 1, etp: int | None = None, pp: int = 1, ep_rank: int = 0, pp_rank: int | None = None,
    megatron_core: tuple[int, int] | None = None,
) -> str:  # fmt: skip
    """The report of `mapspec provider SPEC --config C --inventory`.

    Args:
        spec_name, config_path, sets: as for `mapspec.provider.render.provider_report`.
        fmt: `text`, `md` (one line per kind of parameter) or `json` (every parameter).
        tp, ep, etp, pp: parallel sizes; `etp` `None` follows Megatron-Core's rule (1 with ep > 1, else tp).
        ep_rank, pp_rank, megatron_core: see `inventory_of`.
    """
    provider = Provider.from_hf(config_path, spec_name, **_overrides(sets))
    sizes = {"tensor_model": tp, "expert_model": ep, "expert_tensor": etp, "pipeline_model": pp}
    for name, size in sizes.items():
        if size not in (None, 1) or (name == "expert_tensor" and size is not None):
            setattr(provider, f"{name}_parallel_size", size)
    return render_inventory(inventory_of(provider, megatron_core=megatron_core, ep_rank=ep_rank, pp_rank=pp_rank), fmt)


def render_inventory(inventory: Inventory, fmt: str = "text") -> str:
    """The inventory as text, Markdown or JSON.

    JSON lists every parameter. The others show one line per kind: `{layer}` and `{expert}` count from 0 on every stage
    and every expert-parallel rank.
    """
    if fmt == "json":
        return as_json("inventory", _data(inventory)) + "\n"
    shard = inventory.shard
    groups = f"tensor {shard.tp_size}, expert {shard.ep_size}, expert tensor {shard.etp_size or shard.tp_size}"
    flavours = ", ".join(f"{key} {value}" for key, value in inventory.flavours.items())
    blocks = [f"{'### ' if fmt == 'md' else ''}{inventory.model}: parameters of a rank"]
    blocks.append(f"megatron-core {inventory.megatron}; {flavours}; parallel sizes: {groups}")
    alike: dict[str, list[Stage]] = {}
    for stage in inventory.stages:
        alike.setdefault(draw_grid(_COLUMNS, _kinds(stage), fmt), []).append(stage)
    for grid, stages in alike.items():
        blocks += ["\n".join(_heading(stage) for stage in stages), grid, _total(stages[0])]
    return "\n\n".join(blocks) + "\n"


def _heading(stage: Stage) -> str:
    if not stage.layers:
        return f"pipeline stage {stage.rank}: no decoder layers"
    first, last = stage.layers.start, stage.layers.stop - 1
    return f"pipeline stage {stage.rank}: decoder layers {first} to {last}, here 0 to {last - first}"


def _total(stage: Stage) -> str:
    elements, nbytes = sum(t.numel for t in stage.tensors), sum(t.nbytes for t in stage.tensors)
    return f"{len(stage.tensors):,} tensors, {elements:,} elements, {human_bytes(nbytes)} as stored"


def _kinds(stage: Stage) -> list[tuple[str, ...]]:
    """One line per pattern, shape and cut. A copy of another tensor is shown under its own name."""
    groups: dict[LocalTensor, list[LocalTensor]] = {}
    for tensor in stage.tensors:
        copied = "{" not in tensor.pattern and tensor.name != tensor.pattern
        pattern = f"{tensor.name} = {tensor.pattern}" if copied else tensor.pattern
        groups.setdefault(replace(tensor, name="", global_name="", pattern=pattern), []).append(tensor)
    return [
        (
            kind.pattern, "x".join(map(str, kind.shape)), kind.dtype, _words(kind), f"{len(members):,}",
            f"{sum(m.numel for m in members):,}",
        )
        for kind, members in groups.items()
    ]  # fmt: skip


def _words(tensor: LocalTensor) -> str:
    cut = tensor.cut
    if cut is None:
        return "whole"
    by = f", each of {' '.join(cut.segments)}" if cut.segments else ""
    return f"dim {cut.axis} over {cut.group.replace('_', ' ')}{by}"


def _data(inventory: Inventory) -> dict[str, Any]:
    shard = inventory.shard
    return {
        "model": inventory.model,
        "megatron_core": inventory.megatron,
        "flavours": dict(inventory.flavours),
        "parallel": {
            "tensor": shard.tp_size, "expert": shard.ep_size, "expert_tensor": shard.etp_size or shard.tp_size,
            "expert_rank": shard.ep_rank,
        },
        "stages": [
            {
                "stage": stage.rank,
                "layers": [stage.layers.start, stage.layers.stop],
                "tensors": [
                    {
                        "name": t.name, "shape": list(t.shape), "dtype": t.dtype,
                        "cut": t.cut and {"axis": t.cut.axis, "group": t.cut.group, "segments": list(t.cut.segments)},
                        "global_name": t.global_name, "global_shape": list(t.global_shape),
                    }
                    for t in stage.tensors
                ],
            }
            for stage in inventory.stages
        ],
    }  # fmt: skip
