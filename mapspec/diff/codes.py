"""The classes of changes, in one place. `mapspec rule DC101` shows an entry. Codes and names are stable."""

from __future__ import annotations

from dataclasses import dataclass

from mapspec.diagnostics import Code
from mapspec.diff.model import Level

__all__ = ["DIFF_CODES", "ChangeCode"]


@dataclass(frozen=True, slots=True)
class ChangeCode(Code):
    """A class of changes; `level` says how bad it is."""

    level: Level = Level.NEUTRAL


def _class(name: str, level: Level, what: str, fix: str) -> ChangeCode:
    return ChangeCode(name, what, fix, level=level)


_ONE_IS_WRONG = "One of the two versions is wrong. Find out which with `mapspec verify --logits` before accepting this."
_S, _B, _R, _A, _N = Level

# 1xx nothing fails and values are other ones, 2xx something that worked is refused, 3xx risky, 4xx additive,
# 5xx neutral, 9xx versions.
# 9xx versions.
DIFF_CODES: dict[str, ChangeCode] = {
    "DC101": _class(
        "tensors-exchanged", _S,
        "Megatron tensors take their values from each other's Hugging Face tensors. Names and shapes fit as before, so "
        "nothing fails; either version round-trips bit for bit.",
        _ONE_IS_WRONG,
    ),
    "DC102": _class(
        "order-changed", _S,
        "A tensor is made of the same tensors as before, with its elements in another order: other order of "
        "q, k and v, "
        "another interleaving, other segments. Its shape is the same, so nothing fails.",
        _ONE_IS_WRONG,
    ),
    "DC103": _class(
        "tensor-swallowed", _S,
        "A Hugging Face tensor that was mapped is now ignored or passed through: conversion succeeds without it, and "
        "what is loaded from the result has nothing of it.",
        "Map the tensor again; if no model needs it, accept the change with the reason.",
    ),
    "DC104": _class(
        "index-changed", _S,
        "The same rule numbers its tensors in another way (layers, experts, multi-token prediction blocks), so that "
        "weights change places among each other. Every name and shape is there as before.",
        _ONE_IS_WRONG,
    ),
    "DC105": _class(
        "rank-part-changed", _S,
        "Tensor or expert parallel ranks get other elements of a weight, in parts of the same shape. Files are as "
        "before, they hold whole tensors; live models that are loaded or exported with more than one rank differ.",
        "Compare with Megatron-Core's own cut: `mapspec verify --logits` does so at tensor parallel size 2.",
    ),
    "DC106": _class(
        "dtype-loosened", _S,
        "A weight that was kept in its dtype may be cast, or a dtype is accepted that was refused. With "
        "--dtype, values "
        "lose precision without a word.",
        "Keep the weight in a role with `keep` and narrow `accepts`, or accept the change with the reason.",
    ),
    "DC107": _class(
        "model-field-changed", _S,
        "A provider field that describes the model has another value, and the shape of no tensor depends on it: every "
        "checkpoint loads, and the model computes something else.",
        "Compare logits (`mapspec verify --logits`) before accepting this.",
    ),
    "DC201": _class(
        "tensor-unmapped", _B,
        "A Hugging Face tensor that was mapped is no longer accounted for: converting a checkpoint that has "
        "it stops at "
        "the plan, and Megatron-Core would lack the parameter.",
        "Put the rule back. Where it moved, its name, condition or mount does not fit any more.",
    ),
    "DC202": _class(
        "source-renamed", _B,
        "A Megatron tensor is now made of a Hugging Face tensor of another name, which was no part of the model. "
        "Checkpoints with the old names are refused, and exports have the new ones.",
        "Check the published names; keep the old spelling as a flavour where both exist.",
    ),
    "DC203": _class(
        "key-renamed", _B,
        "A weight has another key in torch_dist checkpoints: by another name, stacked with others or one by one, whole "
        "or one key per segment. Checkpoints with the old keys are refused on the way back, and by new models.",
        "Check the keys that Megatron-Core writes; convert again, or offer the old form as a flavour.",
    ),
    "DC204": _class(
        "shape-changed", _B,
        "A tensor has another shape, on one of the sides or on both.",
        "Check the shape in the published headers; checkpoints of the other shape are refused.",
    ),
    "DC205": _class(
        "cut-changed", _B,
        "Parallelism cuts a weight along another dimension, by another group, or no longer. Files are as before; live "
        "models of more than one rank are refused, because their parts have other shapes.",
        "Compare with the module of Megatron-Core: column-parallel cuts dim 0, row-parallel dim 1.",
    ),
    "DC206": _class(
        "tensor-required", _B,
        "A model needs a tensor that it did not need before. Checkpoints without it are refused, on both sides.",
        "If only some checkpoints have it, give the rule a condition on the config that tells them apart.",
    ),
    "DC207": _class(
        "parameter-renamed", _B,
        "A live parameter has another name; in files it has the same key as before. Models with the old name are "
        "refused by `mapspec.load` and `mapspec.export`.",
        "Check the name in the Megatron-Core version that is used; keep both as a flavour where versions differ.",
    ),
    "DC208": _class(
        "model-broken", _B,
        "For a reference model that worked, the spec no longer binds, is no bijection any more, or gives no fields.",
        "Correct the spec; `mapspec lint` shows the same findings with their lines.",
    ),
    "DC209": _class(
        "spec-broken", _B,
        "A spec that could be read cannot be read any more.",
        "Correct what the findings say; `mapspec lint` shows them with carets.",
    ),
    "DC210": _class(
        "spec-removed", _B,
        "A mapping or provider spec is gone, or has another name. Whoever names it, includes it or extends "
        "it is refused.",
        "Keep the file, or say in the changelog which spec takes its place.",
    ),
    "DC211": _class(
        "shape-field-changed", _B,
        "A provider field has another value, and shapes or the presence of tensors depend on it: a strict load of "
        "earlier checkpoints is refused.",
        "Check the value against the config of the model.",
    ),
    "DC212": _class(
        "tie-changed", _B,
        "Two weights are tied that were not, or the other way round: the Megatron side has a tensor more or less.",
        "Check `tie_word_embeddings` of the published config.",
    ),
    "DC213": _class(
        "architecture-dropped", _B,
        "A mapping or provider no longer lists an architecture, so that nothing is chosen for its checkpoints.",
        "Put the name back, or name the spec that takes these checkpoints.",
    ),
    "DC214": _class(
        "choice-removed", _B,
        "A flavour or one of its choices is gone: commands that name it are refused.",
        "Keep the choice, or say what takes its place.",
    ),
    "DC215": _class(
        "flavour-default-changed", _B,
        "A flavour has another default, so that commands without --flavour make other names than before.",
        "Name the choice where it matters; the new default fits models of another kind or version.",
    ),
    "DC216": _class(
        "objects-changed", _B,
        "Other byte objects (`_extra_state`) are written beside the tensors; a strict load of Megatron-Core asks for "
        "exactly those that its modules have.",
        "Compare with the `_extra_state` keys of a checkpoint that Megatron-Core wrote itself.",
    ),
    "DC217": _class(
        "dtype-tightened", _B,
        "A role accepts fewer dtypes, or is kept where it could be cast: checkpoints that worked are refused, or "
        "--dtype leaves a weight as it is.",
        "Check the dtypes in published headers.",
    ),
    "DC301": _class(
        "condition-changed", _R,
        "A condition reads differently, and no reference model shows what that does.",
        "Add a reference config for which the condition matters.",
    ),
    "DC302": _class(
        "untested-rule-changed", _R,
        "A rule that no reference model needs was added, changed or removed.",
        "Add a reference config that needs it.",
    ),
    "DC303": _class(
        "config-key-dropped", _R,
        "The spec no longer reads a config key. Configs that spell a value that way are bound differently, or refused.",
        "Read the key as one of several with `first(...)`, or add a reference config that has it.",
    ),
    "DC304": _class(
        "default-field-changed", _R,
        "A provider field that is chosen per run (`defaults`), or that only chooses kernels, has another value.",
        "Tell users in the changelog; who depends on the value sets it.",
    ),
    "DC305": _class(
        "list-changed", _R,
        "An entry of `passthrough`, `ignore_hf` or `ignore_megatron` came, went or matches other names, and no tensor "
        "of a reference model shows what that does.",
        "Make sure that no weight matches what is ignored; a reference config with such a tensor would show it.",
    ),
    "DC306": _class(
        "reference-dropped", _R,
        "A reference model is no longer listed: nobody looks whether the spec still works for it.",
        "Put the reference back.",
    ),
    "DC307": _class(
        "versions-changed", _R,
        "A provider supports another range of Megatron-Core, or was tested with other versions.",
        "Run the checks with the versions at both ends of the range.",
    ),
    "DC308": _class(
        "waiver-changed", _R,
        "Config keys are waived that were not, or the other way round, or other values of them are accepted.",
        "Make sure that the key does not change the model; say why in the waiver's reason.",
    ),
    "DC309": _class(
        "exported-config-changed", _R,
        "The config.json that is written on the way back to Hugging Face differs.",
        "Load the exported config with transformers and compare.",
    ),
    "DC401": _class(
        "model-added", _A,
        "A reference model is listed that was not, or one works that did not.",
        "Nothing to do.",
    ),
    "DC402": _class(
        "tensor-covered", _A,
        "A tensor that nothing accounted for is mapped now: checkpoints that were refused are converted.",
        "Nothing to do.",
    ),
    "DC403": _class(
        "spec-added", _A,
        "There is a new mapping or provider spec.",
        "Nothing to do.",
    ),
    "DC404": _class(
        "choice-added", _A,
        "A spec lists a new architecture, flavour or choice.",
        "Nothing to do.",
    ),
    "DC501": _class(
        "refactor", _N,
        "The text of a spec differs; what it does to the reference models is the same, tensor for tensor.",
        "Nothing to do.",
    ),
    "DC502": _class(
        "wording-changed", _N,
        "A note or a reason reads differently.",
        "Nothing to do.",
    ),
    "DC503": _class(
        "config-changed", _N,
        "The config of a reference model differs. Both sides are bound to the new one, so that only specs "
        "are compared.",
        "Check where the change of the config comes from.",
    ),
    "DC901": _class(
        "version-not-bumped", _R,
        "`metadata.version` of a spec did not move as far as its changes ask for: major for silent and "
        "breaking changes, "
        "minor for risky and additive ones.",
        "Write the suggested version into the file.",
    ),
}  # fmt: skip
