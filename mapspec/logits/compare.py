"""`compare_logits`: two checkpoints, the same tokens, one verdict against a measured noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.choose import apply_sets
from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError, SpecError, VerifyError
from mapspec.logits.floor import chunk_size, eps, run_once, run_with_floor
from mapspec.logits.measure import largest_of, layer_lines, measure
from mapspec.logits.media import Media, language_part, make_media
from mapspec.logits.report import LogitsReport
from mapspec.logits.require import check_packages, choose_device, choose_dtype
from mapspec.logits.stages import name_stages
from mapspec.mapping import CompiledMapping
from mapspec.prepare import Request, prepare
from mapspec.provider.installed import megatron_version
from mapspec.sources import Source, open_source

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["compare_logits"]

SEQUENCES = 3
# How many times the noise floor a difference may be. In fp32 the floor misses that the two implementations add in
# different orders everywhere; in bf16 it is measured against fp32 and holds all of the rounding already.
MULTIPLE = {"float32": 16.0, "bfloat16": 4.0}


def compare_logits(
    a: Path,
    b: Path,
    *,
    spec: str | None = None,
    flavours: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    tokens: int = 67,
    seed: int = 0,
    device: str = "auto",
    dtype: str | None = None,
    cuts: int | None = None,
) -> LogitsReport:
    """Run random tokens through the models of two checkpoints and compare what comes out.

    Args:
        a, b: checkpoint folders, Hugging Face or Megatron-Core torch_dist; of one kind or of both.
        spec, flavours: mapping, for names in the report and for the cuts.
        sets: changes to the config (`key=value`), for both.
        tokens: tokens in each of the three sequences; one more where that is a multiple of the chunk size.
        seed: of the tokens.
        device: `auto`, `cpu` or `cuda`.
        dtype: `float32` (default on the CPU) or `bfloat16` (default on CUDA).
        cuts: tensor parallel size at which the mapping's cuts are compared with Megatron-Core's, where one checkpoint
            is of each kind; 1 for none. Default: 2 where the model divides.

    Returns:
        A report; `findings` is empty where the two agree.

    Raises:
        SpecError: packages or devices are missing (MS820, MS821), or Megatron-Core cannot build the model.
        CheckpointError: a folder cannot be read, or says nothing about its config.
    """
    sources = open_source(a), open_source(b)
    check_packages({source.kind for source in sources})
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    config = _config(sources, sets)
    words = language_part(config)
    given = _tokens(words, tokens, seed, make_media(config))
    report = LogitsReport(
        a,
        b,
        "",
        "",
        (given.shape[0], given.shape[1]),
        seed,
        device,
        dtype,
        MULTIPLE[dtype],
        notes=_notes(sources, config),
    )
    # The Hugging Face side first: its floor is then known, and its memory free, when the other model is built.
    swap = sources[0].kind != "hf" and sources[1].kind == "hf"
    first, second = (sources[1], sources[0]) if swap else sources
    needs_groups = any(source.kind == "megatron" for source in sources)
    with ExitStack() as stack:
        if needs_groups:
            from mapspec.logits.megatron_model import one_rank

            stack.enter_context(one_rank(device))
        try:
            one, about_one, floor_runs, floors = run_with_floor(first, config, sets, given, dtype, device)
            other, about_other = run_once(second, config, sets, given, dtype, device)
        except VerifyError as error:
            return replace(report, findings=error.diagnostics)
    floor = largest_of(floor_runs.values())
    multiple = report.multiple
    allowed = multiple * max(floor.largest, eps(dtype) * one.logits.abs().max().item())
    measured = measure(one.logits, other.logits, tie=allowed)
    mapping = _mapping(sources, spec, flavours, sets)
    stages = name_stages(None if mapping is None else mapping.table, one.hidden, _kinds(words))
    lines = layer_lines(one, other, floors, stages, multiple=multiple, eps=eps(dtype))
    left, right = (about_other, about_one) if swap else (about_one, about_other)
    report = replace(
        report, left_model=left, right_model=right, measured=measured, floor=floor, floor_runs=floor_runs, layers=lines
    )
    report = replace(report, findings=tuple(_findings(report, allowed)))
    if report.findings or mapping is None or first.kind == second.kind or cuts == 1:
        return report  # which rank gets which rows means nothing where the weights themselves are others
    return _with_cuts(report, mapping, config, first, second, cuts)


def _with_cuts(
    report: LogitsReport, mapping: CompiledMapping, config: Mapping[str, Any], hf: Source, megatron: Source,
    cuts: int | None,
) -> LogitsReport:  # fmt: skip
    """The report, with what `compare_cuts` says; without a size asked for, a model that does not divide is a note."""
    from mapspec.logits.cuts import compare_cuts

    size = cuts or 2
    try:
        compared, found = compare_cuts(mapping, config, hf, megatron, size)
    except SpecError as error:
        if cuts is not None:
            raise
        note = f"cuts at tensor parallel size {size} were not compared: {error.diagnostics[0].message}"
        return replace(report, notes=(*report.notes, note))
    note = (
        f"cuts at tensor parallel size {size}: {compared} parameters on {size} ranks compared with Megatron-Core's own"
    )
    return replace(report, notes=(*report.notes, note), findings=(*report.findings, *found))


def _config(sources: tuple[Source, Source], sets: Sequence[str]) -> dict[str, Any]:
    """The config of the Hugging Face side, or what conversion carried along."""
    for source in sorted(sources, key=lambda s: s.kind != "hf"):
        if source.reference is not None:
            return apply_sets(source.reference.config, sets)
    message = "neither checkpoint says which config it belongs to"
    help_ = "compare with the Hugging Face folder, or convert with mapspec, which keeps the config"
    raise CheckpointError(Diagnostic("MS722", message, where=str(sources[0].path), help=help_))


def _tokens(config: Mapping[str, Any], length: int, seed: int, media: Media | None) -> Tensor:
    """Token ids [3, s]: placeholders, where there are any, and random text; s is no multiple of the chunk size."""
    import torch

    chunk = chunk_size(config)
    places = 0 if media is None else len(media.places)
    length += (places + length) % chunk == 0 and chunk > 1
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, int(config["vocab_size"]), (SEQUENCES, length), generator=generator)
    return text if media is None else media.with_places(text)


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Kind of each layer, in words, from either spelling of the pattern."""
    words = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe", "linear_attention": "mamba"}
    words["full_attention"] = "attention"
    listed = config.get("hybrid_override_pattern") or config.get("layers_block_type") or config.get("layer_types") or ()
    return [words.get(symbol, symbol) for symbol in listed]


def _mapping(
    sources: tuple[Source, Source], spec: str | None, flavours: Mapping[str, str] | None, sets: Sequence[str]
) -> CompiledMapping | None:
    """The mapping between the two, or of one that is Hugging Face; `None` for two Megatron checkpoints."""
    hf = next((source for source in sources if source.kind == "hf"), None)
    megatron = next((source for source in sources if source.kind == "megatron"), None)
    if hf is None:
        return None
    request = Request((megatron or hf).path, spec=spec, flavours=flavours or {}, sets=sets, run_config=False)
    if megatron is not None:
        series = (megatron_version() or "0.19").split(".")
        request = replace(request, reference=hf.path, megatron_version=(int(series[0]), int(series[1])))
    return CompiledMapping(prepare(request).table)


def _notes(sources: tuple[Source, Source], config: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if any(source.kind == "hf" for source in sources):
        notes.append(
            "transformers clamps the Mamba step size from below by time_step_min; Megatron-Core and the published code "
            "do not: time_step_limit is set to (0, inf) on every mixer"
        )
        words = language_part(config)
        if make_media(config) is not None:
            notes.append(
                "every sequence begins with two images and, where the model hears, a clip of sound, all at random; "
                "features are compared behind the projectors"
            )
        if words.get("num_nextn_predict_layers"):
            notes.append(
                "transformers has no multi-token prediction: its blocks are built of transformers' own layers, and "
                "their hidden states compared; the logits are those of the main model"
            )
        if words.get("tie_word_embeddings"):
            notes.append("transformers does not tie embeddings: lm_head is set to them, as the config says")
    return tuple(notes)


def _findings(report: LogitsReport, allowed: float) -> Sequence[Diagnostic]:
    """What is wrong, and where it begins."""
    measured, floor = report.measured, report.floor
    assert measured is not None
    assert floor is not None
    where = str(report.right)
    out = []
    kl_allowed = report.multiple**2 * max(floor.kl_mean, eps(report.dtype) ** 2)
    if not measured.largest <= allowed:
        message = f"logits differ by up to {measured.largest:.2g}; rounding explains {allowed:.2g}"
        out.append(Diagnostic("MS823", message, where=where))
    elif not measured.kl_mean <= kl_allowed:
        message = f"mean KL divergence is {measured.kl_mean:.2g}; rounding explains {kl_allowed:.2g}"
        out.append(Diagnostic("MS823", message, where=where))
    elif measured.argmax_wrong:
        message = f"{measured.argmax_wrong} positions predict another token, and not for a tie"
        out.append(Diagnostic("MS823", message, where=where))
    line = report.first_diverging
    if line is not None:
        stage = line.stage
        message = (
            f"{stage.key} ({stage.kind}; `{stage.hf}`, `{stage.megatron}`) is the first whose output differs: by up to "
            f"{line.difference:.2g}, rounding explains {line.allowed:.2g}"
        )
        help_ = f"compare its weights bit for bit with `mapspec verify`, then read the rules of `{stage.megatron}`"
        out.append(Diagnostic("MS824", message, where=where, help=help_))
    return out
