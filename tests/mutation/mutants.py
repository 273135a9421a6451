# ruff: noqa: E501 (one mutant per line: it is a table)
"""The mutants: mistakes that someone could make, in the text of mappings/nemotron_h.yaml or in their own converter.

A spec cannot say everything that a program can: it has no way to write "expert e + 1", or to exchange two groups of
heads. Those mistakes are made in the data instead (`tensors`): the checkpoint is converted with these tensors changed,
as a faulty program would have done it, and compared with the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edited import edited
from torch import Tensor

__all__ = ["MUTANTS", "Model", "Mutant"]

type Model = Literal["square", "tied", "odd_vocab", "bf16"]
type State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake.

    Attributes:
        name: for the table.
        edits: (old, new) in the text of the spec; `old` occurs exactly once, after `within` where that is given.
        within: text after which the edits begin.
        tensors: the mistake as a change of the Hugging Face tensors before they are converted.
        model: the checkpoint it is tried on.
        dtype, padded: options of the conversion.
    """

    name: str
    edits: tuple[tuple[str, str], ...] = ()
    within: str = ""
    tensors: Callable[[State], State] | None = None
    model: Model = "square"
    dtype: str | None = None
    padded: int | None = None

    def apply(self, text: str) -> str:
        """The text of the spec with the mistake in it."""
        return edited(text, self.edits, self.within, self.name)


def exchange(name: str, one: str, other: str, *, within: str = "", model: Model = "square") -> Mutant:
    """Two texts, each once after `within`, exchanged."""
    return Mutant(name, ((one, "\0"), (other, one), ("\0", other)), within, model=model)


def renamed(swaps: Mapping[str, str]) -> Callable[[State], State]:
    """Exchange tensors whose names contain the one or the other text."""

    def change(state: State) -> State:
        out = dict(state)
        for one, other in swaps.items():
            for name in state:
                if one in name and (partner := name.replace(one, other)) in state:
                    out[name], out[partner] = state[partner], state[name]
        return out

    return change


def rotated_experts(state: State) -> State:
    """Expert e holds what expert e + 1 should."""
    out = dict(state)
    count = 1 + max(int(name.split(".experts.")[1].split(".")[0]) for name in state if ".experts." in name)
    for name in state:
        if ".experts." in name:
            stem, rest = name.split(".experts.")
            index, tail = rest.split(".", 1)
            out[name] = state[f"{stem}.experts.{(int(index) + 1) % count}.{tail}"]
    return out


def swapped_groups(*projections: str) -> Callable[[State], State]:
    """The rows of the first and the second query group exchanged."""

    def change(state: State) -> State:
        out = dict(state)
        for name, tensor in state.items():
            if any(f".{p}_proj.weight" in name for p in projections) and "experts" not in name and ".mixer." in name:
                out[name] = tensor.roll(tensor.shape[0] // 2, 0)
        return out

    return change


def transposed_kernel(state: State) -> State:
    """The taps of the convolution in reverse order."""
    return {name: t.flip(-1).contiguous() if name.endswith("conv1d.weight") else t for name, t in state.items()}


MOE = "\n  moe:\n    tensors:"
MLP = "\n  mlp:\n    tensors:"
MAMBA = "\n  mamba:\n    tensors:"
ATTENTION = "\n  attention:\n    tensors:"
MAMBA_IN, MAMBA_CONV = "\n  mamba_in:", "\n  mamba_conv:"

MUTANTS: tuple[Mutant, ...] = (
    # attention
    exchange("k and v exchanged", "mixer.k_proj.weight", "mixer.v_proj.weight", within=ATTENTION),
    Mutant("all q before all k and v", (("num_query_groups * (q k v)", "num_query_groups * (q) num_query_groups * (k v)"),)),
    Mutant("k before q in each group", (("(q k v)", "(k q v)"),)),
    Mutant("wrong number of query groups", (("default(hf.num_key_value_heads, hf.num_attention_heads)", "hf.num_attention_heads"),)),
    Mutant("q heads of two groups exchanged", tensors=swapped_groups("q")),
    Mutant("k and v of two groups exchanged", tensors=swapped_groups("k", "v")),
    # Mamba
    exchange("B and C of in_proj exchanged", "      B: mamba_state\n", "      C: mamba_state\n", within=MAMBA_IN),
    exchange("z and x of in_proj exchanged", "      z: mamba_inner\n", "      x: mamba_inner\n", within=MAMBA_IN),
    exchange("x and B of in_proj exchanged", "      x: mamba_inner\n", "      B: mamba_state\n", within=MAMBA_IN),
    exchange("x and B of the convolution exchanged", "      x: mamba_inner\n", "      B: mamba_state\n", within=MAMBA_CONV),
    exchange("B and C of the convolution exchanged", "      B: mamba_state\n", "      C: mamba_state\n", within=MAMBA_CONV),
    Mutant("taps of the convolution reversed", tensors=transposed_kernel),
    exchange("A_log and D exchanged", "hf: mixer.A_log", "hf: mixer.D"),
    exchange("dt_bias and D exchanged", "hf: mixer.D", "hf: mixer.dt_bias"),
    exchange("norm before and norm inside Mamba exchanged", "hf: norm.weight", "hf: mixer.norm.weight", within=MAMBA),
    # MLP and experts
    Mutant("up and down of square MLP exchanged", (("mixer.up_proj.weight", "\0"), ("mixer.down_proj.weight", "mixer.up_proj.weight"), ("\0", "mixer.down_proj.weight")), within=MLP),
    Mutant("up and down of square experts exchanged", (("{expert}.up_proj.weight", "\0"), ("{expert}.down_proj.weight", "{expert}.up_proj.weight"), ("\0", "{expert}.down_proj.weight")), within=MOE),
    exchange("up and down of square shared experts exchanged", "shared_experts.up_proj.weight", "shared_experts.down_proj.weight", within=MOE),
    exchange("square latent projections exchanged", "hf: mixer.fc1_latent_proj.weight", "hf: mixer.fc2_latent_proj.weight", within=MOE),
    Mutant("expert index shifted by one", tensors=rotated_experts),
    Mutant("one expert too few", (("size: first(hf.n_routed_experts, hf.num_local_experts, 0)", "size: first(hf.n_routed_experts, hf.num_local_experts, 0) - 1"),)),
    Mutant("router bias may be cast down", (("    accepts: [float32]\n    keep: the router adds it to fp32 scores and breaks ties by it\n", "    accepts: [float32, bfloat16]\n"),), model="bf16", dtype="bfloat16"),
    Mutant("router bias takes the role of weights", (("        role: router_bias\n", ""),), model="bf16", dtype="bfloat16"),
    # norms and ends of the model
    Mutant("norm inside Mamba dropped", (("      mixer.norm.weight:\n        hf: mixer.norm.weight\n        shape: [mamba_channels]\n", ""),)),
    Mutant("norm inside Mamba dropped and ignored", (("      mixer.norm.weight:\n        hf: mixer.norm.weight\n        shape: [mamba_channels]\n", ""), ("ignore_megatron:\n", 'ignore_hf:\n  "backbone.layers.{layer}.mixer.norm.weight": nobody needs this one\n\nignore_megatron:\n'))),
    Mutant("norms of two layers exchanged", tensors=renamed({"backbone.layers.0.norm.weight": "backbone.layers.1.norm.weight"})),
    Mutant("final norm and the first layer's exchanged", tensors=renamed({"backbone.norm_f.weight": "backbone.layers.0.norm.weight"})),
    exchange("embedding and output exchanged", "      embedding.word_embeddings.weight:\n", "      output_layer.weight:\n"),
    Mutant("ignored pattern also matches a mapped tensor", (("ignore_megatron:\n", 'ignore_hf:\n  "backbone.layers.{layer}.mixer.dt_bias": nobody needs this one\n\nignore_megatron:\n'),)),
    Mutant("tied where untied", (("    when: default(hf.tie_word_embeddings, false)", "    when: default(hf.tie_word_embeddings, false) == false"),)),
    Mutant("untied where tied", (("    when: default(hf.tie_word_embeddings, false)", "    when: default(hf.tie_word_embeddings, false) == false"),), model="tied"),
    Mutant("vocabulary is not padded", (("vocab: {size: hf.vocab_size, split: tensor, pad: vocabulary}", "vocab: {size: hf.vocab_size, split: tensor}"),), model="odd_vocab", padded=256),
    # multi-token prediction
    exchange("enorm and hnorm exchanged", "hf: enorm.weight", "hf: hnorm.weight"),
    exchange("first and last layer of the block exchanged", "{inner: first}", "{inner: last}"),
    Mutant("layers of blocks counted the other way round", (("ravel: [block, inner]", "ravel: [inner, block]"),)),
    Mutant("one block too few", (("else mtp_depth\n", "else mtp_depth - 1\n"),)),
    Mutant("block has the layers of the main model", (("[hf.mtp_hybrid_override_pattern, hf.mtp_layers_block_type]", "[hf.hybrid_override_pattern, hf.layers_block_type]"),)),
    Mutant("two blocks exchanged", tensors=renamed({"mtp.layers.0.": "mtp.layers.2.", "mtp.layers.1.": "mtp.layers.3."})),
    # how ranks and files are cut
    Mutant("in_proj cut as a whole", (("split_by: segment", "split_by: whole"),), within=MAMBA_IN),
    Mutant("convolution cut as a whole", (("split_by: segment", "split_by: whole"),), within=MAMBA_CONV),
    Mutant("in_proj stored as a whole", (("stored_by: segment", "stored_by: whole"),), within=MAMBA_IN),
    Mutant("row-parallel o_proj cut as column-parallel", (("shape: [hidden, attention_out]", "shape: [attention_out, hidden]"),)),
    Mutant("row-parallel out_proj cut as column-parallel", (("shape: [hidden, mamba_channels]", "shape: [mamba_channels, hidden]"),)),
    Mutant("column-parallel fc1 of the MLP not cut", (("shape: [ffn, hidden]", "shape: [hidden, hidden]"),), within=MLP),
    Mutant("experts cut with the wrong dimension first", (("shape: [expert_ffn, expert_in]", "shape: [expert_in, expert_ffn]"),)),
    Mutant("eh_proj not cut", (("eh_out: {size: hf.hidden_size, split: tensor}", "eh_out: {size: hf.hidden_size}"),)),
    Mutant("extra state of experts forgotten", (("      - names: [mlp.experts.experts.linear_fc1._extra_state, mlp.experts.experts.linear_fc2._extra_state]\n        each: expert\n", ""),)),
)  # fmt: skip
