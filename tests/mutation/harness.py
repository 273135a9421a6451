"""Runs every check that a user has on a mutant, and writes down what each says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fixtures_hf import TinyModel, write_tiny
from mutants import Model, Mutant
from oracle import build_for, fill_model, read_hf, save_with_megatron
from safetensors.torch import load_file, save_file

from mapspec.backends.reference_parallel import one_process_group
from mapspec.convert import Output, convert
from mapspec.diagnostics import Diagnostic
from mapspec.errors import MapspecError
from mapspec.lint import lint
from mapspec.logits import compare_logits
from mapspec.prepare import Request, prepare
from mapspec.verify import verify

__all__ = ["CHECKS", "PASSED", "Checkpoints", "Outcome", "examine"]

SPEC = Path(__file__).resolve().parents[2] / "mappings" / "nemotron_h.yaml"
CHECKS = ("lint", "plan", "convert", "round trip", "verify", "strict load", "logits", "cuts")
PASSED, NOT_REACHED = "passes", ""

# Everything square and every count even, so that a mistake shows in values and not in shapes.
_SQUARE = {
    "intermediate_size": 64, "head_dim": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 4,
    "ssm_state_size": 16, "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64,
}  # fmt: skip
MODELS: Mapping[Model, TinyModel] = {
    "square": TinyModel("M-E*M", mtp_pattern="*E", mtp_blocks=2, latent=64, vocab=128, dtype="float32", config=_SQUARE),
    "tied": TinyModel("M*-", tied=True, vocab=128, dtype="float32"),
    "odd_vocab": TinyModel("M*-", vocab=251, dtype="float32"),
    "bf16": TinyModel("ME*-", vocab=128),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Check -> `passes`, the codes it found, or nothing where it was not reached."""

    mutant: str
    said: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The first check that catches the mutant; empty for a survivor. The round trip is run for comparison only."""
        return next((c for c in CHECKS if c != "round trip" and self.said.get(c, "").startswith("MS")), "")


class Checkpoints:
    """Per model: the Hugging Face checkpoint, and the Megatron-Core one that Megatron itself wrote of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hf = cache(self._hf)
        self.megatron = cache(self._megatron)

    def _hf(self, model: Model) -> Path:
        return write_tiny(MODELS[model], self.root / model / "hf")

    def _megatron(self, model: Model) -> Path:
        """Written by Megatron-Core from a model that an oracle filled; mapspec has no part in it."""
        folder = self.root / model / "megatron"
        if MODELS[model].dtype == "bfloat16":  # a bare bf16 model keeps A_log and D in fp32, see tests/megatron
            convert(Request(self.hf(model)), Output(folder, fsync=False))
            return folder
        state, config = read_hf(self.hf(model))
        with one_process_group():
            live = build_for(config, vocab_size=256 if model == "odd_vocab" else None)
            fill_model(live, state, config)
            save_with_megatron(live, folder)
        return folder

    def changed(self, mutant: Mutant) -> Path:
        """The checkpoint as a faulty converter would have read it."""
        source = self.hf(mutant.model)
        if mutant.tensors is None:
            return source
        folder = self.root / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        for path in folder.glob("*.safetensors"):
            save_file({n: t.clone() for n, t in mutant.tensors(load_file(path)).items()}, path, {"format": "pt"})
        return folder


def examine(mutant: Mutant, checkpoints: Checkpoints, work: Path) -> Outcome:
    """All checks in the order in which a user runs them."""
    out = Outcome(mutant.name)
    hf, given = checkpoints.hf(mutant.model), checkpoints.changed(mutant)
    spec = _write(mutant, hf, work)
    request = Request(given, spec=str(spec), dtype=mutant.dtype, padded_vocab_size=mutant.padded)
    mine = Request(hf, spec=str(spec))
    out.said["lint"] = _codes(lint([spec])) if mutant.tensors is None else NOT_REACHED
    target, back = work / "megatron", work / "back"

    def run(check: str, findings: Callable[[], Iterable[Diagnostic]]) -> bool:
        try:
            found = findings()
        except MapspecError as error:
            found = error.diagnostics
        out.said[check] = _codes(found)
        return out.said[check] == PASSED

    if not run("plan", lambda: prepare(request).plan.findings):
        return out
    if not run("convert", lambda: _convert(request, target)):
        return out
    run("round trip", lambda: _round_trip(given, target, back, str(spec)))
    if mutant.tensors is None:
        # A checkpoint that is known to be right, written by Megatron-Core, against the mutant's idea of it.
        run("verify", lambda: verify(hf, checkpoints.megatron(mutant.model), mine).findings)
        if mutant.dtype is not None:
            run("verify", lambda: verify(hf, target, mine).findings)
    else:
        run("verify", lambda: verify(hf, target).findings)
    try:
        found = compare_logits(hf, target, spec=str(spec), device="cpu").findings
    except MapspecError as error:
        found = error.diagnostics
    codes = {finding.code for finding in found}
    out.said["strict load"] = "MS822" if "MS822" in codes else PASSED
    if "MS822" not in codes:
        out.said["logits"] = _codes(f for f in found if f.code in ("MS823", "MS824"))
        if out.said["logits"] == PASSED:  # the cuts are looked at where the weights are right
            out.said["cuts"] = _codes(found)
    return out


def _convert(request: Request, target: Path) -> tuple[Diagnostic, ...]:
    convert(request, Output(target, fsync=False))
    return ()


def _round_trip(given: Path, target: Path, back: Path, spec: str) -> tuple[Diagnostic, ...]:
    convert(Request(target, spec=spec), Output(back, fsync=False))
    return verify(given, back).findings


def _write(mutant: Mutant, hf: Path, work: Path) -> Path:
    """The spec with the mistake, and the reference configs that lint binds it to: the made-up ones and the model's own.

    The released models are left out: they are larger, and show nothing more of these mistakes.
    """
    shutil.rmtree(work, ignore_errors=True)
    (work / "configs").mkdir(parents=True)
    for name in ("nemotron-h-every-option", "nemotron-h-aliases"):
        shutil.copy(SPEC.parents[1] / "tests" / "configs" / f"{name}.json", work / "configs")
    shutil.copy(hf / "config.json", work / "configs" / "tiny.json")
    text = mutant.apply(SPEC.read_text(encoding="utf-8"))
    head, rest = text.split("  references:\n")
    rest = "\n".join(line for line in rest.split("\n") if not line.startswith("    - nemotron"))
    references = "  references: [nemotron-h-every-option, nemotron-h-aliases, tiny]\n"
    path = work / "nemotron_h.yaml"
    path.write_text(head + references + rest, encoding="utf-8")
    return path


def _codes(found: Iterable[Diagnostic]) -> str:
    return " ".join(sorted({finding.code for finding in found})) or PASSED
