"""What has to hold between the fields of a provider before a model is built, and what follows from them.

Sources: Megatron-Core's TransformerConfig, hybrid layer allocation, Mamba mixer and linears, whose own assertions speak
of one number at a time; here all findings come at once, each with the sizes that would work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.provider.pattern import HybridPattern, fold_mtp, parse_pattern

__all__ = ["finalized", "padded_vocab_size", "part_divisions"]

_TP, _PP, _VP, _EP, _ETP = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)


def finalized(fields: Mapping[str, Any], chosen: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Fields ready for Megatron-Core: derived ones filled in, contradictions refused.

    Args:
        fields: field -> plain value.
        chosen: fields that a user set; a derived field among them has to agree instead of being replaced.

    Raises:
        SpecError: all findings (MS430 to MS434, MS444).
    """
    out = dict(fields)
    found = list(_moved_pattern(out, chosen))
    if found:
        raise SpecError(found)
    pattern = fold_mtp(parse_pattern(str(out["hybrid_layer_pattern"])), out)
    found += _derive(out, pattern, chosen)
    found += _counts(out, pattern)
    if not found:
        found += [*_pipeline(out, pattern), *_divisions(out, pattern), *_combinations(out, pattern)]
    if found:
        raise SpecError(found)
    return out


def padded_vocab_size(fields: Mapping[str, Any]) -> int:
    """Rows of the vocabulary on all tensor-parallel ranks together."""
    size = int(fields["vocab_size"])
    if not fields.get("should_pad_vocab"):
        return size
    multiple = int(fields["make_vocab_size_divisible_by"]) * int(fields[_TP])
    return -(-size // multiple) * multiple


def _moved_pattern(out: dict[str, Any], chosen: frozenset[str]) -> Iterator[Diagnostic]:
    """`hybrid_override_pattern` is the former name of `hybrid_layer_pattern`."""
    former = out.pop("hybrid_override_pattern", None)
    if former is None:
        return
    if "hybrid_layer_pattern" in chosen:
        message = "`hybrid_override_pattern` and `hybrid_layer_pattern` are both set"
        yield Diagnostic("MS432", message, help="set hybrid_layer_pattern; the other is its former name")
    out["hybrid_layer_pattern"] = former


def _derive(out: dict[str, Any], pattern: HybridPattern, chosen: frozenset[str]) -> Iterator[Diagnostic]:
    layers = len(pattern.main)
    if "num_layers" in chosen and out.get("num_layers") not in (None, layers):
        message = f"`num_layers` is {out['num_layers']}, but `hybrid_layer_pattern` has {layers} layers"
        yield Diagnostic("MS432", message, help="leave num_layers unset; the pattern says it")
    out["num_layers"] = layers
    out["hybrid_layer_pattern"] = str(pattern)
    out["mtp_num_layers"] = pattern.blocks or None
    if pattern.blocks:
        out["mtp_hybrid_override_pattern"] = pattern.mtp
    if out.get(_ETP) is None:
        out[_ETP] = 1 if (out.get(_EP) or 1) != 1 else out.get(_TP, 1)
    if out.get(_TP) == 1:
        out["sequence_parallel"] = False  # there is nothing to split a sequence over
    if out.get("restore_modelopt_state"):
        out["norms"] = "separate"
    if out.get(_PP) != 1 and out.get("pipeline_dtype") is None:
        out["pipeline_dtype"] = out.get("params_dtype")
    for name, choices in (("norms", ("fused", "separate")), ("backend", ("transformer_engine", "reference"))):
        if out.get(name) not in (None, *choices):
            help_ = f"there are: {', '.join(choices)}"
            yield Diagnostic("MS444", f"`{name}` is `{out[name]}`, which does not exist", help=help_)


_COUNTED = (
    "hidden_size", "vocab_size", "seq_length", _TP, _PP, _EP, _ETP, "context_parallel_size",
    "make_vocab_size_divisible_by", "mamba_chunk_size",
)  # fmt: skip
_COUNTED_BY_LAYER: Mapping[str, tuple[str, ...]] = {
    "M": ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups"),
    "*": ("num_attention_heads", "num_query_groups", "kv_channels"),
    "-": ("ffn_hidden_size",),
    "E": ("num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size"),
}


def _counts(out: Mapping[str, Any], pattern: HybridPattern) -> Iterator[Diagnostic]:
    layers = pattern.main + pattern.mtp
    names = [*_COUNTED, *(name for symbol, group in _COUNTED_BY_LAYER.items() if symbol in layers for name in group)]
    for name in names:
        value = out.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield Diagnostic("MS431", f"`{name}` is {value!r}, not a whole number above zero")


def _pipeline(out: Mapping[str, Any], pattern: HybridPattern) -> Iterator[Diagnostic]:
    stages, size, layers = len(pattern.stages), out[_PP], len(pattern.main)
    ends = [n for n in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage") if out.get(n)]
    if out.get(_VP) is not None:
        message = f"`{_VP}` is {out[_VP]}; hybrid models have no virtual stages"
        yield Diagnostic("MS434", message, help="leave it unset; uneven stages are written with `|` in the pattern")
    if stages > 1 and ends:
        message = f"`{ends[0]}` is {out[ends[0]]}, but `hybrid_layer_pattern` has `|`, which says it already"
        yield Diagnostic("MS432", message, help="use one of the two")
    if stages > 1 and stages != size:
        message = f"`hybrid_layer_pattern` has {stages} stages between `|`, `pipeline_model_parallel_size` is {size}"
        yield Diagnostic("MS433", message, help=f"write {size - 1} `|` in the pattern, or set the size to {stages}")
    if stages == 1 and size > 1:
        middle, left = size - len(ends), layers - sum(out[n] for n in ends)
        if left < 0 or (middle == 0 and left) or (middle and left % middle):
            shared = f"the {left} layers left for {middle} stages" if ends else f"the {layers} layers of the pattern"
            message = f"`{_PP}` is {size}, which does not divide {shared} evenly"
            help_ = "write the stages with `|` into the pattern, they may be uneven"
            yield Diagnostic("MS430", message, help=help_ if ends else f"{_works(layers)}; or {help_}")


@dataclass(frozen=True, slots=True)
class _Cut:
    """`field` has `number`, cut by the parallel size called `by`; `symbol` is the layer that needs it."""

    field: str
    number: int
    by: str
    symbol: str = ""


def _divisions(out: Mapping[str, Any], pattern: HybridPattern) -> Iterator[Diagnostic]:
    tp, layers = out[_TP], pattern.main + pattern.mtp
    groups, mamba = out.get("num_query_groups") or 1, out.get("mamba_num_groups") or 1
    cuts = [
        _Cut("num_attention_heads", out.get("num_attention_heads") or 0, _TP, "*"),
        _Cut("mamba_num_heads", out.get("mamba_num_heads") or 0, _TP, "M"),
        _Cut("mamba_num_groups", mamba, _TP, "M"),
        _Cut("ffn_hidden_size", out.get("ffn_hidden_size") or 0, _TP, "-"),
        _Cut("moe_ffn_hidden_size", out.get("moe_ffn_hidden_size") or 0, _ETP, "E"),
        _Cut("moe_shared_expert_intermediate_size", out.get("moe_shared_expert_intermediate_size") or 0, _TP, "E"),
        _Cut("num_moe_experts", out.get("num_moe_experts") or 0, _EP, "E"),
    ]
    for cut in cuts:
        if (not cut.symbol or cut.symbol in layers) and cut.number % out[cut.by]:
            message = f"`{cut.field}` is {cut.number}, which `{cut.by}` {out[cut.by]} does not divide"
            yield Diagnostic("MS430", message, help=_works(cut.number))
    if "*" in layers and groups % tp and tp % groups:
        message = f"`num_query_groups` is {groups}, neither a multiple nor a divisor of `{_TP}` {tp}"
        works = [n for n in range(1, 65) if groups % n == 0 or n % groups == 0]
        yield Diagnostic("MS430", message, help=f"sizes that work here: {', '.join(map(str, works[:12]))}, ...")
    if "*" in layers and out["num_attention_heads"] % groups:
        message = f"`num_query_groups` {groups} does not divide `num_attention_heads` {out['num_attention_heads']}"
        yield Diagnostic("MS430", message, help="every group serves the same number of heads")
    if "M" in layers and out["mamba_num_heads"] % mamba:
        message = f"`mamba_num_groups` {mamba} does not divide `mamba_num_heads` {out['mamba_num_heads']}"
        yield Diagnostic("MS430", message, help="every group serves the same number of heads")
    vocab = padded_vocab_size(out)
    if vocab % tp:
        message = f"`vocab_size` is {vocab}, which `{_TP}` {tp} does not divide"
        yield Diagnostic("MS430", message, help=f"set should_pad_vocab to true; {_works(vocab)} without padding")
    if pattern.blocks and out["hidden_size"] % tp:
        message = f"`hidden_size` is {out['hidden_size']}, which `{_TP}` {tp} does not divide"
        yield Diagnostic("MS430", message, help=_works(out["hidden_size"]))
    yield from _router(out, layers)


def part_divisions(name: str, config: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """MS430 and MS431 for the config of a part of the model: what tensor parallelism cuts in it.

    Args:
        name: of the config, for the message.
        config: all its fields.
    """
    tp = config.get(_TP) or 1
    for field in ("hidden_size", "num_attention_heads", "ffn_hidden_size"):
        number = config.get(field)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            yield Diagnostic("MS431", f"`{name}.{field}` is {number!r}, not a whole number above zero")
        elif field != "hidden_size" and number % tp:
            message = f"`{name}.{field}` is {number}, which `{_TP}` {tp} does not divide"
            yield Diagnostic("MS430", message, help=_works(number))


def _router(out: Mapping[str, Any], layers: str) -> Iterator[Diagnostic]:
    if "E" not in layers:
        return
    experts, groups = out["num_moe_experts"], out.get("moe_router_num_groups") or 1
    chosen, topk = out.get("moe_router_group_topk") or 1, out["moe_router_topk"]
    if experts % groups:
        message = f"`moe_router_num_groups` {groups} does not divide `num_moe_experts` {experts}"
        yield Diagnostic("MS430", message, help=_works(experts))
    if chosen > groups:
        yield Diagnostic("MS432", f"`moe_router_group_topk` {chosen} is above `moe_router_num_groups` {groups}")
    if topk > experts:
        yield Diagnostic("MS432", f"`moe_router_topk` {topk} is above `num_moe_experts` {experts}")


def _combinations(out: Mapping[str, Any], pattern: HybridPattern) -> Iterator[Diagnostic]:
    moe = "E" in pattern.main + pattern.mtp
    if out[_EP] > 1 and not moe:
        message = f"`{_EP}` is {out[_EP]}, but `hybrid_layer_pattern` has no `E` layers"
        yield Diagnostic("MS432", message, help=f"leave {_EP} at 1")
    if out.get("bf16") and out.get("fp16"):
        yield Diagnostic("MS432", "`bf16` and `fp16` are both true", help="set params_dtype; both follow from it")
    dispatcher = out.get("moe_token_dispatcher_type")
    if moe and out.get("moe_shared_expert_overlap") and dispatcher not in ("alltoall", "flex"):
        message = f"`moe_shared_expert_overlap` is true, but `moe_token_dispatcher_type` is `{dispatcher}`"
        yield Diagnostic("MS432", message, help="use alltoall or flex, or set moe_shared_expert_overlap to false")
    recomputed = out.get("recompute_modules") or ()
    if moe and out.get("moe_shared_expert_overlap") and "shared_experts" in recomputed:
        message = "`moe_shared_expert_overlap` is true, but `recompute_modules` lists `shared_experts`"
        yield Diagnostic("MS432", message, help="take one of the two back")
    if out.get("fp8") and out.get("fp8_recipe", "delayed") == "delayed" and out.get("first_last_layers_bf16"):
        message = "`first_last_layers_bf16` is true, but `fp8_recipe` is `delayed`"
        yield Diagnostic("MS432", message, help="set first_last_layers_bf16 to false, or choose another recipe")


def _works(number: int) -> str:
    """Sizes that divide a number, as advice."""
    sizes = [n for n in range(1, min(number, 4096) + 1) if number % n == 0]
    return f"sizes that work here: {', '.join(map(str, sizes[:16]))}{', ...' if len(sizes) > 16 else ''}"
