# ruff: noqa: E501 (one mistake per line: these are tables)
"""Mistakes planted in specs, and refactors that change nothing, as edits of text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from edited import edited

__all__ = ["CLASSES", "PLANTED", "REFACTORS", "ROOT", "TOY", "Edit", "apply_to", "toy_side", "write_side"]

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).resolve().parent / "toy"
H, OMNI, PROVIDER = "mappings/nemotron_h.yaml", "mappings/nemotron_omni.yaml", "providers/nemotron_h.yaml"
# The reference models that golden reports are about; all of them take longer and say the same.
FEW = frozenset(
    {
        "nemotron-h-4b",
        "nemotron-3-nano-30b-a3b",
        "nemotron-h-every-option",
        "nemotron-omni-every-option",
        "nemotron-nano-12b-v2-vl",
    }
)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of specs: (old, new) texts in a file, each old one there after `within`; or a function of the text."""

    name: str
    edits: tuple[tuple[str, str], ...] | Callable[[str], str]
    file: str = H
    within: str = ""

    def apply(self, text: str) -> str:
        """The text of the file after the change."""
        if not isinstance(self.edits, tuple):
            new = self.edits(text)
            assert new != text, f"{self.name}: nothing was changed"
            return new
        return edited(text, self.edits, self.within, self.name)


def swap(name: str, one: str, other: str, *, within: str = "", file: str = H) -> Edit:
    """Two texts exchanged."""
    return Edit(name, ((one, "\0"), (other, one), ("\0", other)), file, within)


def renamed(old: str, new: str) -> Callable[[str], str]:
    """A word that is replaced wherever it stands alone."""
    return lambda text: re.sub(rf"\b{old}\b", new, text)


def rename_axis(text: str) -> str:
    """The axis `expert` called `routed`, wherever it is meant."""
    return re.sub(r"(?<!parallel: )\bexpert\b(?! bias)", "routed", text)


ATTENTION = "\n  attention:\n    tensors:"
NORM = "      mixer.norm.weight:\n        hf: mixer.norm.weight\n        shape: [mamba_channels]\n"
UNCONDITIONED = "      mixer.A_log:\n        hf: mixer.A_log\n        shape: [mamba_heads]\n"
LATENT = "      mlp.fc2_latent_proj.weight:\n        hf: mixer.fc2_latent_proj.weight\n        shape: [hidden, latent]\n        when: latent_size > 0\n"
SWALLOW = (
    "ignore_megatron:\n",
    'ignore_hf:\n  "backbone.layers.{layer}.mixer.norm.weight": nobody needs this one\n\nignore_megatron:\n',
)
EXPERTS = "size: first(hf.n_routed_experts, hf.num_local_experts, 0)"

# The twelve: (class that has to come first, mistake).
PLANTED: tuple[tuple[str, Edit], ...] = (
    ("DC201", Edit("a rule lost in a refactor", ((LATENT, ""),))),
    ("DC101", swap("swapped target", "      mixer.A_log:\n", "      mixer.D:\n")),
    ("DC101", swap("k and v swapped", "mixer.k_proj.weight", "mixer.v_proj.weight", within=ATTENTION)),
    ("DC204", Edit("changed axis", (("shape: [hidden, attention_out]", "shape: [attention_out, hidden]"),))),
    ("DC106", Edit("silent dtype change", (("        role: router_bias\n", ""),))),
    ("DC104", Edit("MTP layers counted the other way round", (("ravel: [block, inner]", "ravel: [inner, block]"),))),
    ("DC107", Edit("provider constant", (("attention_softmax_in_fp32: {value: false", "attention_softmax_in_fp32: {value: true"),), PROVIDER)),
    ("DC102", Edit("order of q and k", (("(q k v)", "(k q v)"),))),
    ("DC201", Edit("expert shift", ((EXPERTS, "size: max(first(hf.n_routed_experts, hf.num_local_experts, 0) - 1, 0)"),))),
    ("DC201", Edit("dropped norm", ((NORM, ""),))),
    ("DC215", Edit("changed flavour default", (("    default: underscore\n", "    default: dotted\n"),))),
    ("DC105", Edit("changed parallel cut", (("split_by: segment", "split_by: whole"),))),
    ("DC103", Edit("ignore that swallows a tensor", ((NORM, ""), SWALLOW))),
)  # fmt: skip

REFACTORS: tuple[Edit, ...] = (
    Edit("a value renamed, with everything that uses it", renamed("mamba_inner", "inner_width")),
    Edit("an axis renamed, with every hole", rename_axis),
    Edit("a rule moved within its block, and a comment", ((NORM, ""), (UNCONDITIONED, NORM + "\n      # the decay\n" + UNCONDITIONED))),
)  # fmt: skip

T, P = "mappings/toy.yaml", "providers/toy.yaml"
QUIET = Edit("a comment", (("metadata:\n", "metadata:  # of the toy\n"),), T)
QUIET_P = Edit("a comment", (("metadata:\n", "metadata:  # of the toy\n"),), P)
Q_SCALE = "      q_scale:\n        hf: q_scale\n        shape: [hidden]\n"


def toy(*edits: tuple[str, str]) -> Edit:
    return Edit("toy mapping", edits, T)


def toy_p(*edits: tuple[str, str]) -> Edit:
    return Edit("toy provider", edits, P)


# Class -> (a change that is of it, a change nearby that is not).
CLASSES: dict[str, tuple[Edit, Edit]] = {
    "DC101": (toy(("k: k.weight, v: v.weight", "k: v.weight, v: k.weight")), toy(("{q: q.weight, k: k.weight", "{k: k.weight, q: q.weight"))),
    "DC102": (toy(("(q k v)", "(k q v)")), toy(("groups: hf.num_key_value_heads", "groups: hf.num_key_value_heads * 1"))),
    "DC103": (toy((Q_SCALE, ""), ('"mean.weight":', '"layers.{layer}.q_scale": of no use\n  "mean.weight":')), toy((Q_SCALE, ""))),
    "DC104": (toy(("[block, inner]", "[inner, block]")), toy(("inner: {size: 2}", "inner: {size: 1 + 1}"))),
    "DC105": (toy(("split_by: segment", "split_by: whole")), toy(("    split: tensor\n    split_by: segment", "    split_by: segment\n    split: tensor"))),
    "DC106": (toy(("        role: router_bias\n", "")), toy(("accepts: [bfloat16, float32]", "accepts: [bfloat16]"))),
    "DC107": (toy_p(("apply_query_key_layer_scaling: {value: false", "apply_query_key_layer_scaling: {value: true")), toy_p(("sequence_parallel: {value: false", "sequence_parallel: {value: true"))),
    "DC201": (toy((Q_SCALE, "")), toy((Q_SCALE, ""), ("      k_scale:\n", Q_SCALE + "      k_scale:\n"))),
    "DC202": (toy(("hf: q_scale", "hf: query_scale")), toy(("      q_scale:", "      query_scale:"))),
    "DC203": (toy(("stored: experts.fc.weight", "stored: experts.experts.weight")), toy(("      experts.fc.weight{expert}:", "      experts.fc.w{expert}:"))),
    "DC204": (toy(("        hf: down.weight\n        shape: [hidden, ffn]", "        hf: down.weight\n        shape: [ffn, hidden]")), toy(("inner: {size: 2}", "inner: {size: 1 + 1}"))),
    "DC205": (toy(("shape: [hidden, ffn]", "shape: [ffn, hidden]")), toy(("split_by: segment", "split_by: whole"))),
    "DC206": (toy((Q_SCALE, Q_SCALE + Q_SCALE.replace("q_", "v_"))), toy((Q_SCALE, Q_SCALE + Q_SCALE.replace("q_", "v_") + "        when: default(hf.rare, false)\n"))),
    "DC207": (toy(("      experts.fc.weight{expert}:", "      experts.fc.w{expert}:")), toy(("stored: experts.fc.weight", "stored: experts.experts.weight"))),
    "DC208": (toy(("hf: k_scale", "hf: q_scale")), toy(("hf: k_scale", "hf: key_scale"))),
    "DC209": (toy(("shape: [hidden, ffn]", "shape: [hiden, ffn]")), QUIET),
    "DC211": (toy_p(("gated_linear_unit: {value: true", "gated_linear_unit: {value: false")), QUIET_P),
    "DC212": (toy(("when: default(hf.tie_word_embeddings, false)", "when: default(hf.tied, false)")), QUIET),
    "DC213": (toy(("[ToyForCausalLM]", "[OtherForCausalLM]")), toy(("[ToyForCausalLM]", "[ToyForCausalLM, OtherForCausalLM]"))),
    "DC214": (toy(("choices: [fused, separate]", "choices: [fused, apart]"), ("          separate:", "          apart:")), toy(("choices: [fused, separate]", "choices: [fused, separate, other]"))),
    "DC215": (toy(("default: fused", "default: separate")), QUIET),
    "DC216": (toy(("[qkv._extra_state]", "[qkv._extra_state, fc1._extra_state]")), QUIET),
    "DC217": (toy(("accepts: [bfloat16, float32]", "accepts: [bfloat16]")), toy(("accepts: [bfloat16, float32]", "accepts: [float32, bfloat16]"))),
    "DC301": (toy(("when: expert > 0", "when: expert > 1")), toy(("when: expert > 0", "when: (expert > 0)"))),
    "DC302": (toy(("when: default(hf.rare, false)", "when: default(hf.rarer, false)")), QUIET),
    "DC303": (toy(("first(hf.n_routed_experts, hf.num_experts, 0)", "first(hf.n_routed_experts, 0)")), toy(("first(hf.n_routed_experts, hf.num_experts, 0)", "first(hf.n_routed_experts, hf.num_experts, hf.experts, 0)"))),
    "DC304": (toy_p(("sequence_parallel: {value: false", "sequence_parallel: {value: true")), QUIET_P),
    "DC305": (toy(('"mean.weight":', '"std.weight": another constant\n  "mean.weight":')), toy(("a constant of preprocessing", "a constant of the preprocessing"))),
    "DC306": (toy(("references: [toy, toy-tied]", "references: [toy]")), QUIET),
    "DC307": (toy_p(('below: "0.21"', 'below: "0.22"')), QUIET_P),
    "DC308": (toy_p(("accepts: [null]", "accepts: [null, 1]")), QUIET_P),
    "DC309": (toy_p(("    hf: [n_routed_experts, num_experts]", "    hf: [num_experts, n_routed_experts]")), QUIET_P),
    "DC402": (toy((Q_SCALE, Q_SCALE + Q_SCALE.replace("q_", "z_"))), toy((Q_SCALE, Q_SCALE + Q_SCALE.replace("q_", "v_")))),
    "DC404": (toy(("[ToyForCausalLM]", "[ToyForCausalLM, OtherForCausalLM]")), QUIET),
    "DC501": (QUIET, toy(("(q k v)", "(k q v)"))),
    "DC502": (toy(("note: row-parallel", "note: it is row-parallel")), QUIET),
    "DC901": (toy(("(q k v)", "(k q v)")), toy(("(q k v)", "(k q v)"), ("version: 1.0.0", "version: 2.0.0"))),
}  # fmt: skip


def write_side(folder: Path, *edits: Edit, models: Collection[str] | None = None) -> Path:
    """The repository's specs and reference configs with some edits; `models`: the references that are kept."""
    folder.mkdir(parents=True)
    for name in ("mappings", "providers"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tests").mkdir()
    for name in ("configs", "keys"):
        (folder / "tests" / name).symlink_to(ROOT / "tests" / name)
    if models is not None:
        for path in folder.glob("*s/*.yaml"):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(line for line in lines if _kept(line, models)), encoding="utf-8")
    return apply_to(folder, *edits)


def _kept(line: str, models: Collection[str]) -> bool:
    found = re.match(r"    - (nemotron-\S+)", line)
    return found is None or found[1] in models


def apply_to(folder: Path, *edits: Edit) -> Path:
    for edit in edits:
        path = folder / edit.file
        path.write_text(edit.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def toy_side(folder: Path, *edits: Edit) -> Path:
    """The toy mapping and provider with some edits."""
    shutil.copytree(TOY, folder)
    return apply_to(folder, *edits)
