# ruff: noqa: E501 (one mistake per line: it is a table)
"""Mistakes planted in specs, and refactors that change nothing, as edits of the text of the repository's own specs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CLASSES", "PLANTED", "REFACTORS", "ROOT", "Edit", "write_side"]

ROOT = Path(__file__).resolve().parents[2]
H, OMNI, PROVIDER = "mappings/nemotron_h.yaml", "mappings/nemotron_omni.yaml", "providers/nemotron_h.yaml"


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of specs: (old, new) texts in a file, each old one exactly once after `within`."""

    name: str
    edits: tuple[tuple[str, str], ...]
    file: str = H
    within: str = ""

    def apply(self, text: str) -> str:
        """The text of the file after the change."""
        start = text.index(self.within)
        head, body = text[:start], text[start:]
        for old, new in self.edits:
            assert old in body, f"{self.name}: the spec no longer says {old!r}"
            body = body.replace(old, new, 1)
        return head + body


def swap(name: str, one: str, other: str, *, within: str = "", file: str = H) -> Edit:
    """Two texts exchanged."""
    return Edit(name, ((one, "\0"), (other, one), ("\0", other)), file, within)


MOE, MAMBA, MLP, ATTENTION = (f"\n  {b}:\n    tensors:" for b in ("moe", "mamba", "mlp", "attention"))
SEQUENTIAL = '        flavours:\n          sequential: {megatron: "mlp.experts.local_experts.{expert}.linear_fc1.weight"}\n          native: {hf: mixer.experts.up_proj}\n'
NORM = "      mixer.norm.weight:\n        hf: mixer.norm.weight\n        shape: [mamba_channels]\n"
LATENT = "      mlp.fc2_latent_proj.weight:\n        hf: mixer.fc2_latent_proj.weight\n        shape: [hidden, latent]\n        when: latent_size > 0\n"
OWN_MTP = """\
  mtp_layers:                        # the decoder's own blocks, so that the two cannot drift apart
    megatron: mtp.layers.{block}.mtp_model_layer.layers.{inner}
    hf: mtp.layers.{flat}
    kinds_of: inner
"""
DRIFTED = OWN_MTP.replace("    hf: mtp.layers.{flat}\n", "    hf: mtp.layers.{inner}\n")

# The twelve: (class that has to come first, mistake).
PLANTED: tuple[tuple[str, Edit], ...] = (
    ("DC201", Edit("a rule lost in a refactor", ((LATENT, ""),))),
    ("DC101", swap("swapped target", "      mixer.A_log:\n", "      mixer.D:\n")),
    ("DC205", Edit("changed axis", (("shape: [hidden, attention_out]", "shape: [attention_out, hidden]"),))),
    ("DC106", Edit("silent dtype change", (("        role: router_bias\n", ""),))),
    ("DC208", Edit("MTP rule that drifts", ((OWN_MTP, DRIFTED),))),
    ("DC107", Edit("provider constant", (("gated_linear_unit: {value: false", "gated_linear_unit: {value: true"),), PROVIDER)),
    ("DC102", Edit("order of q and k", (("(q k v)", "(k q v)"),))),
    ("DC201", Edit("expert shift", (("size: first(hf.n_routed_experts, hf.num_local_experts, 0)", "size: first(hf.n_routed_experts, hf.num_local_experts, 0) - 1"),))),
    ("DC201", Edit("dropped norm", ((NORM, ""),))),
    ("DC215", Edit("changed flavour default", (("    default: underscore\n", "    default: dotted\n"),))),
    ("DC105", Edit("changed parallel cut", (("split_by: segment", "split_by: whole"),))),
    ("DC103", Edit("ignore that swallows a tensor", ((NORM, ""), ("ignore_megatron:\n", 'ignore_hf:\n  "backbone.layers.{layer}.mixer.norm.weight": nobody needs this one\n\nignore_megatron:\n')))),
)

REFACTORS: tuple[Edit, ...] = (
    Edit("a value renamed, with everything that uses it", (), H),
    Edit("a condition moved from the rules to a block", ((LATENT, ""),), H),
    Edit("lines, comments and order", ((NORM, ""), ("      mixer.A_log:\n", NORM + "\n      # the decay\n      mixer.A_log:\n")), H),
)
CLASSES = ()


def write_side(folder: Path, *edits: Edit) -> Path:
    """The repository's specs and reference configs with some edits."""
    folder.mkdir(parents=True)
    for name in ("mappings", "providers"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tests").mkdir()
    for name in ("configs", "keys"):
        (folder / "tests" / name).symlink_to(ROOT / "tests" / name)
    for edit in edits:
        path = folder / edit.file
        path.write_text(edit.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder
