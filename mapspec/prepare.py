"""From a checkpoint on disk to a decided plan: open, choose, bind, prove, cover. No tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mapspec.beside import with_dtype
from mapspec.bind import Choices, bind
from mapspec.bridge import RunConfig, reference_from_run_config, run_config_for
from mapspec.choose import apply_sets, choose_mapping, detect_flavours
from mapspec.coverage import cover
from mapspec.cuts import Cuts, read_by_rank
from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import CheckpointError, PlanError, SpecError
from mapspec.io.filesystem import Access, access_to, with_changes
from mapspec.link import Linked
from mapspec.nogc import gc_paused
from mapspec.plan import Plan, make_plan
from mapspec.prove import Proof, prove
from mapspec.sources import Kind, Reference, Source, open_reference, open_source
from mapspec.table import Table, build_table
from mapspec.tensors import FLOATS, StoredTensor

__all__ = ["Prepared", "Request", "prepare"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for.

    Attributes:
        source: folder or URL of the checkpoint to convert.
        to: `hf` or `megatron`; `None` for the other side than the source's.
        spec: mapping by name or path; `None` for the one that lists the architecture.
        reference: Hugging Face folder or config.json that tells config, dialect, shards and side files on the way
            to Hugging Face.
        flavours, sets: choices, and changes to the config (`key=value`).
        dtype: cast floating tensors whose role allows it.
        casts: role -> dtype.
        megatron_version: Megatron-Core that reads or wrote the checkpoint.
        padded_vocab_size: rows of the vocabulary on the Megatron side; `None` for no padding.
        run_config: whether run_config.yaml is written for Megatron-Bridge.
        cuts: parallel sizes that the chunks of a torch_dist checkpoint are cut for.
        io: changes to how the source is read, see `mapspec.io.filesystem.with_changes`.
    """

    source: Path | str
    to: Kind | None = None
    spec: str | None = None
    reference: Path | str | None = None
    flavours: Mapping[str, str] = field(default_factory=dict)
    sets: Sequence[str] = ()
    dtype: str | None = None
    casts: Mapping[str, str] = field(default_factory=dict)
    megatron_version: tuple[int, int] = (0, 19)
    padded_vocab_size: int | None = None
    run_config: bool = True
    cuts: Cuts = field(default_factory=Cuts)
    io: str = ""


@dataclass(frozen=True)
class Prepared:
    """A conversion that is ready to run (`plan.findings` is empty) or says why not.

    `access` is how the source is read. `run_config` is the text of run_config.yaml, or why there is none; `None` on the
    way to Hugging Face.
    """

    request: Request
    source: Source
    reference: Reference
    config: Mapping[str, Any]
    table: Table
    proof: Proof
    plan: Plan
    access: Access
    run_config: RunConfig | None = None

    @property
    def to(self) -> Kind:
        """The side that is written."""
        return "megatron" if self.source.kind == "hf" else "hf"

    @property
    def written_config(self) -> dict[str, Any]:
        """The config as it goes with the result: with the user's changes, and the dtype that `--dtype` asks for."""
        return with_dtype(self.config, self.request.dtype)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know although it stands in the way of nothing, one sentence each."""
        why_not = self.run_config.why_not if self.run_config is not None and self.run_config.text is None else ""
        notes = (f"no run_config.yaml for Megatron-Bridge: {why_not}",) if why_not else ()
        return (*notes, *self.reference.missing)

    def require(self) -> Prepared:
        """Itself, if nothing stands in the way.

        Raises:
            PlanError: what does.
        """
        if self.plan.findings:
            raise PlanError(self.plan.findings)
        return self


@gc_paused()
def prepare(request: Request) -> Prepared:
    """Decide a conversion from headers alone.

    Raises:
        CheckpointError: files that cannot be trusted.
        SpecError: a spec or config that does not work out, or no mapping for the architecture.
    """
    _check_dtypes(request)
    source = open_source(request.source)
    access = with_changes(access_to(source.root), request.io)
    if request.to == source.kind:
        name = "Hugging Face" if source.kind == "hf" else "Megatron-Core"
        message = f"the source already is a {name} checkpoint"
        raise CheckpointError(Diagnostic("MS721", message, where=str(request.source), help="leave --to out"))
    reference = _reference(request, source)
    config = apply_sets(reference.config, request.sets)
    linked = choose_mapping(config, where=reference.where, spec=request.spec or _recorded_spec(source))
    choices = _choices(request, source, reference, linked)
    if source.kind == "megatron":
        choices = _padding_of(linked, config, choices, source.tensors)
    surface = "hf" if source.kind == "hf" else "stored"
    table = build_table(bind(linked, config, choices), surface, source.tensors)
    proof = prove(table)
    if proof.findings:
        raise SpecError(proof.findings)
    plan = make_plan(
        table,
        surface,
        source.tensors,
        casts=request.casts,
        dtype=request.dtype,
        hf_names=frozenset(reference.shard_of),
        cuts=request.cuts,
    )
    if request.cuts.strict and source.kind == "hf":
        read_by_rank(plan.table.rows, request.cuts, request.cuts.rank)  # the sizes divide what they cut
    if plan.findings:
        plan = replace(plan, findings=_with_advice(plan, linked, config, choices, source, surface))
    # What is wrong with the weights is said first; a config that no provider understands often comes with such.
    wanted = source.kind == "hf" and not plan.findings
    run_config = _run_config(request, reference, config) if wanted else None
    return Prepared(request, source, reference, config, table, proof, plan, access, run_config)


def _run_config(request: Request, reference: Reference, config: Mapping[str, Any]) -> RunConfig:
    if not request.run_config:
        return RunConfig(None, "--no-run-config")
    try:
        written = with_dtype(config, request.dtype)
        return run_config_for(written, where=reference.where, padded_vocab_size=request.padded_vocab_size)
    except SpecError as error:
        note = "run_config.yaml cannot be written without it; --no-run-config converts the weights alone"
        raise SpecError(d.with_note(note) for d in error.diagnostics) from None


def _check_dtypes(request: Request) -> None:
    for option, dtype in (("--dtype", request.dtype), *((f"--cast {r}", d) for r, d in request.casts.items())):
        if dtype is not None and dtype not in FLOATS:
            help_ = f"there are: {', '.join(FLOATS)}"
            hint = nearest(dtype, FLOATS)
            raise SpecError(Diagnostic("MS411", f"`{dtype}` is no floating dtype", where=option, hint=hint, help=help_))


def _reference(request: Request, source: Source) -> Reference:
    if request.reference is not None:
        named = open_reference(request.reference)
        if source.kind == "hf" and source.reference is not None:
            return replace(source.reference, config=named.config, config_text=named.config_text, where=named.where)
        return named
    if source.reference is not None:
        return source.reference
    if source.run_config is not None:
        found = reference_from_run_config(source.run_config, source.root)
        if found is not None:
            return found
    message = "this checkpoint does not say which Hugging Face config it belongs to"
    help_ = "name a Hugging Face folder or a config.json with --reference"
    raise CheckpointError(Diagnostic("MS722", message, where=str(source.path), help=help_))


def _recorded_spec(source: Source) -> str | None:
    """A Megatron checkpoint that mapspec wrote says with which mapping, where that was given by path."""
    mapping = (source.manifest or {}).get("mapping")
    path = mapping.get("path") if isinstance(mapping, dict) and source.kind == "megatron" else None
    return path if isinstance(path, str) and Path(path).is_file() else None


def _choices(request: Request, source: Source, reference: Reference, linked: Linked) -> Choices:
    """The user's flavours, then what a manifest recorded, then the marks in Hugging Face names."""
    flavours = dict(request.flavours)
    declared = linked.flavours()
    recorded = (source.manifest or {}).get("flavours") if source.kind == "megatron" else None
    hf_names = list(source.tensors) if source.kind == "hf" else list(reference.shard_of)
    flavours = detect_flavours(linked, hf_names, flavours)
    if isinstance(recorded, dict):
        for name, choice in recorded.items():
            if name in declared and choice in declared[name].choices:
                flavours.setdefault(name, choice)
    return Choices(flavours, request.megatron_version, request.padded_vocab_size)


def _padding_of(
    linked: Linked, config: Mapping[str, Any], choices: Choices, tensors: Mapping[str, StoredTensor]
) -> Choices:
    """How far the vocabulary of a Megatron checkpoint is padded: the number of rows it has."""
    if choices.padded_vocab_size is not None:
        return choices
    for rule in bind(linked, config, choices).rules:
        for axis, dim in enumerate(rule.dims or ()):
            tensor = tensors.get(rule.stored.pattern.fill(rule.positions[0])) if dim.pads else None
            if tensor is not None and len(tensor.shape) > axis and tensor.shape[axis] > dim.size:
                return replace(choices, padded_vocab_size=tensor.shape[axis])
    return choices


def _with_advice(
    plan: Plan, linked: Linked, config: Mapping[str, Any], choices: Choices, source: Source, surface: str
) -> tuple[Diagnostic, ...]:
    """The findings, with the one flavour that would settle them all, if there is one."""
    if not any(f.code in ("MS511", "MS512") for f in plan.findings):
        return plan.findings
    current = plan.table.bound.flavours
    for name, flavour in linked.flavours().items():
        for choice in flavour.choices:
            if choice == current[name] or name in plan.table.bound.choices.flavours:
                continue
            other = replace(choices, flavours={**choices.flavours, name: choice})
            table = build_table(bind(linked, config, other), surface, source.tensors)
            found = cover(table, surface, source.tensors).findings
            if not found:
                advice = f"with --flavour {name}={choice} every tensor is accounted for ({flavour.about})"
                return tuple(replace(f, help=advice) if f.code in ("MS511", "MS512") else f for f in plan.findings)
    return plan.findings
