"""Tables of real models: what is published, name by name; what the rules make of it; the proof; equal dialects."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mapspec.bind import Choices, bind
from mapspec.collapse import collapse
from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.link import Linked, link_spec
from mapspec.mapping import CompiledMapping, compile_mapping
from mapspec.prove import prove
from mapspec.table import Row, Table, build_table

HERE = Path(__file__).parent
# One worker of pytest-xdist compiles each model once.
pytestmark = pytest.mark.xdist_group("table")

# Config -> tensors and elements of the published checkpoint.
PUBLISHED = {
    "nemotron-h-4b": (311, 4_489_223_040),
    "nemotron-h-8b": (311, 8_100_852_736),
    "nemotron-h-47b": (577, 46_791_554_816),
    "nemotron-h-56b": (701, 56_324_350_464),
    "nemotron-nano-9b-v2": (341, 8_888_227_328),
    "nemotron-nano-12b-v2": (369, 12_310_001_152),
    "nemotron-3-nano-4b": (263, 3_973_556_832),
    "nemotron-3-nano-30b-a3b": (6_243, 31_577_940_288),
    "nemotron-3.5-lightning-30b-a3b": (6_513, 32_913_266_240),
    "nemotron-3-super-120b-a12b": (42_683, 123_611_033_088),
    "nemotron-3-ultra-550b-a55b": (51_023, 560_524_603_904),
}
# The same without the four tensors (two without sound) that Megatron-Core has no place for.
PUBLISHED_OMNI = {
    "nemotron-3-nano-omni-30b-a3b": (7_345, 33_015_598_936),
    "nemotron-nano-12b-v2-vl": (759, 13_171_366_912),
}
# Published in part: the language model is complete, names and number of the vision tensors are not known.
PARTIAL = "nemotron-3.5-super-vl-120b-a12b"
CONFIGS = sorted(path.stem for path in (HERE / "configs").glob("*.json") if path.stem != PARTIAL)
SMALL = ("nemotron-h-every-option", "nemotron-h-aliases")
SMALL_OMNI = ("nemotron-omni-every-option", "nemotron-omni-aliases")
DTYPES = {"BF16": "bfloat16", "F32": "float32", "I64": "int64"}


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((HERE / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


@cache
def spec() -> Linked:
    return link_spec("nemotron_h")


@cache
def omni() -> Linked:
    return link_spec("nemotron_omni")


@cache
def compiled(name: str) -> CompiledMapping:
    return compile_mapping(
        omni() if "llm_config" in config(name) or "text_config" in config(name) else spec(), config(name)
    )


def test_every_published_config_is_here() -> None:
    assert set(CONFIGS) == {*PUBLISHED, *SMALL, *PUBLISHED_OMNI, *SMALL_OMNI}
    assert set(spec().top.spec.metadata.references) == {*PUBLISHED, *SMALL}
    assert set(omni().top.spec.metadata.references) == {*PUBLISHED_OMNI, *SMALL_OMNI}


@pytest.mark.parametrize("name", [*PUBLISHED, *PUBLISHED_OMNI])
def test_totals_of_published_models(name: str) -> None:
    proof = compiled(name).proof
    assert not proof.findings
    assert (proof.hf_tensors, proof.hf_elements) == {**PUBLISHED, **PUBLISHED_OMNI}[name]
    assert proof.megatron_elements == proof.hf_elements


def test_the_language_model_of_a_config_published_in_part() -> None:
    mapping = compiled(PARTIAL)
    assert not mapping.proof.findings
    language = [name for name in mapping.table.inventory("hf") if not name.startswith(("vision_model.", "mlp1."))]
    assert len(language) == PUBLISHED["nemotron-3-super-120b-a12b"][0]


def _published_keys(name: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    keys = json.loads((HERE / "keys" / f"{name}.json").read_text(encoding="utf-8"))
    for pattern, shape, dtype, experts, layers in keys["keys"]:
        for layer, expert in itertools.product(layers or [0], range(experts)):
            yield pattern.replace("{L}", str(layer)).replace("{E}", str(expert)), tuple(shape), dtype


@pytest.mark.parametrize("name", sorted(path.stem for path in (HERE / "keys").glob("*.json")))
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    table = compiled(name).table
    inventory = table.inventory("hf")
    published = {key: (shape, dtype) for key, shape, dtype in _published_keys(name)}
    passed = {key for key in published if any(pattern.match(key) for pattern, _, _ in table.bound.passthrough)}
    assert len(passed) == (4 if name in PUBLISHED_OMNI else 0)
    for key in passed:
        del published[key]
    assert len(published) == {**PUBLISHED, **PUBLISHED_OMNI}[name][0]
    assert inventory.keys() == published.keys()
    for key, (shape, dtype) in published.items():
        decl = inventory[key]
        assert decl.shape == shape, key
        assert DTYPES[dtype] in decl.members[0].row.rule.role.accepts, key
        if decl.members[0].row.rule.role.keep:
            assert DTYPES[dtype] == decl.dtype, key


def test_the_published_omni_is_7349_tensors_and_7333_megatron_parameters() -> None:
    mapping = compiled("nemotron-3-nano-omni-30b-a3b")
    keys = list(_published_keys("nemotron-3-nano-omni-30b-a3b"))
    assert (len(keys), mapping.proof.megatron_tensors) == (7_349, 7_333)
    dtypes = Counter(decl.dtype for decl in mapping.table.inventory("hf").values())
    # The mel filters and their window, which are passed through, are the other two of 25 fp32 tensors;
    # the constants of image normalisation the other two of 7,300 bf16 tensors.
    assert dtypes == {"bfloat16": 7_298, "float32": 23, "int64": 24}


# --- flavours --------------------------------------------------------------------------------------------------


def _combinations() -> list[dict[str, str]]:
    flavours = spec().flavours()
    return [
        dict(zip(flavours, chosen, strict=True))
        for chosen in itertools.product(*(f.choices for f in flavours.values()))
    ]


@pytest.mark.parametrize("padded", [None, 256])
@pytest.mark.parametrize("name", SMALL)
def test_all_combinations_of_flavours_are_bijections(name: str, padded: int | None) -> None:
    elements = set()
    for flavours in _combinations():
        proof = prove(build_table(bind(spec(), config(name), Choices(flavours, padded_vocab_size=padded))))
        assert not proof.findings, (flavours, proof.findings)
        elements.add((flavours["expert_biases"], proof.hf_elements))
    assert len(elements) == len({biases for biases, _ in elements}), "spelling changes no elements"


@pytest.mark.parametrize(
    ("version", "choice"),
    [
        ((0, 16), "dotted"),
        ((0, 18), "dotted"),
        ((0, 19), "underscore"),
        ((0, 20), "underscore"),
        ((1, 0), "underscore"),
    ],
)
def test_flavours_follow_the_version_of_megatron_core(version: tuple[int, int], choice: str) -> None:
    bound = bind(spec(), config("nemotron-h-aliases"), Choices(megatron_version=version))
    assert bound.flavours["conv"] == choice
    assert bind(spec(), config("nemotron-h-aliases"), Choices({"conv": "dotted"}, version)).flavours["conv"] == "dotted"


@pytest.mark.parametrize(("flavours", "hint"), [({"norm": "fused"}, "norms"), ({"norms": "fussed"}, "fused")])
def test_unknown_flavours(flavours: dict[str, str], hint: str) -> None:
    [finding] = findings(config("nemotron-h-aliases"), Choices(flavours))
    assert (finding.code, finding.hint) == ("MS407", hint)


def test_padding_below_the_vocabulary() -> None:
    assert [d.code for d in findings(config("nemotron-h-aliases"), Choices(padded_vocab_size=250))] == ["MS406"]


# --- dialects --------------------------------------------------------------------------------------------------


def findings(values: dict[str, Any], choices: Choices | None = None) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        bind(spec(), values, choices)
    return caught.value.diagnostics


def digest(values: dict[str, Any]) -> str:
    table = build_table(bind(spec(), values))
    assert not prove(table).findings
    return table.hash


OLD = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
NEW = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}


def spelled(**changes: Any) -> dict[str, Any]:
    """The tiny model that has everything, without any spelling of its patterns, then as given."""
    values = config("nemotron-h-every-option")
    for key in ("hybrid_override_pattern", "mtp_hybrid_override_pattern", "num_hidden_layers"):
        del values[key]
    return {**values, **changes}


def test_dialects_of_one_model_give_one_table() -> None:
    pattern, inner = "M*E-", "M-*E"
    old, new = [OLD[s] for s in pattern], [NEW[s] for s in pattern]
    inner_old, inner_new = [OLD[s] for s in inner], [NEW[s] for s in inner]
    tables = {
        digest(config("nemotron-h-every-option")),
        digest(spelled(hybrid_override_pattern=pattern, mtp_hybrid_override_pattern=inner)),
        digest(spelled(layers_block_type=old, mtp_layers_block_type=inner_old)),
        digest(spelled(layers_block_type=new, mtp_layers_block_type=inner_new, num_hidden_layers=4)),
        digest(spelled(layer_types=new, mtp_layers_block_type=inner_old, num_hidden_layers=None)),
        digest(spelled(hybrid_override_pattern=pattern, layers_block_type=old, mtp_hybrid_override_pattern=inner)),
        digest(
            spelled(
                hybrid_override_pattern=pattern,
                layers_block_type=new,
                layer_types=old,
                num_hidden_layers=4,
                mtp_layers_block_type=inner_new,
            )
        ),
    }
    assert len(tables) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dtype", "torch_dtype"),
        ("head_dim", "attention_head_dim"),
        ("n_groups", "mamba_n_groups"),
        ("conv_kernel", "mamba_d_conv"),
        ("use_conv_bias", "mamba_conv_bias"),
        ("n_routed_experts", "num_local_experts"),
    ],
)
def test_other_spellings_of_keys_give_one_table(old: str, new: str) -> None:
    values = config("nemotron-h-every-option")
    wanted = digest(values)
    values[new] = values.pop(old)
    assert digest(values) == wanted


def test_the_hash_tells_tables_apart() -> None:
    wanted = digest(config("nemotron-h-every-option"))
    assert digest({**config("nemotron-h-every-option"), "vocab_size": 252}) != wanted
    assert digest({**config("nemotron-h-every-option"), "mlp_bias": False}) != wanted
    assert digest({**config("nemotron-h-every-option"), "num_key_value_heads": 4}) != wanted
    assert digest({**config("nemotron-h-every-option"), "dtype": "float32"}) != wanted


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"hybrid_override_pattern": "M*EX"}, "MS403", "unknown symbol `X` at position 3"),
        ({"hybrid_override_pattern": "XXXX"}, "MS403", "`X` at position 0 and 3 more"),
        ({"layers_block_type": ["mamba", "attn"]}, "MS403", "`attn`"),
        ({"layers_block_type": [["mamba"]]}, "MS403", "unknown symbol"),
        ({"layers_block_type": 7}, "MS402", "neither text nor a list"),
        ({"hybrid_override_pattern": "M*", "layers_block_type": ["mamba", "mlp"]}, "MS404", "differ at layer 1"),
        ({"hybrid_override_pattern": "M*", "layers_block_type": ["mamba"]}, "MS404", "(2 and 1 positions)"),
        ({"hybrid_override_pattern": "M*", "num_hidden_layers": 3}, "MS405", "spells 2 positions"),
        ({}, "MS401", "none of `hybrid_override_pattern`, `layers_block_type`, `layer_types`"),
        ({"hybrid_override_pattern": "M*", "num_attention_heads": 7}, "MS402", "evenly"),
        ({"hybrid_override_pattern": "M*", "num_key_value_heads": 0}, "MS402", "evenly"),
        ({"hybrid_override_pattern": "M*", "hidden_size": "64"}, "MS402", "'64'"),
        ({"hybrid_override_pattern": "M*", "mamba_num_heads": -8}, "MS402", "-8"),
        ({"hybrid_override_pattern": "M*", "dtype": "bf16"}, "MS402", "`bf16` is no dtype"),
        ({"hybrid_override_pattern": "E", "n_routed_experts": 10**12}, "MS402", "no model has that many"),
    ],
)
def test_configs_that_do_not_work_out(changes: dict[str, Any], code: str, says: str) -> None:
    found = findings(spelled(**{"mtp_hybrid_override_pattern": "*E", **changes}))
    assert {d.code for d in found} == {code}
    assert any(says in d.message for d in found), [d.message for d in found]
    assert all(d.span is not None for d in found)


def test_one_missing_key_is_one_finding() -> None:
    values = config("nemotron-h-every-option")
    del values["mamba_num_heads"]
    [finding] = findings(values)
    assert finding.code == "MS401"
    assert "`mamba_num_heads`" in finding.message
    assert any(note.message == "needed here too" for note in finding.notes)


# --- multi-token prediction ------------------------------------------------------------------------------------


def mtp(pattern: str, depth: int, *, repeated: bool = False) -> Table:
    values = {
        **config("nemotron-h-every-option"),
        "mtp_hybrid_override_pattern": pattern,
        "num_nextn_predict_layers": depth,
        "mtp_use_repeated_layer": repeated,
    }
    table = build_table(bind(spec(), values))
    assert not prove(table).findings
    return table


def megatron_of(table: Table, hf: str) -> set[str]:
    decl = table.inventory("hf").get(hf)
    return {member.row.megatron for member in decl.members} if decl else set()


def test_mtp_layers_are_counted_in_one_row() -> None:
    table = mtp("*E", 2)
    inner = "mtp.layers.{}.mtp_model_layer.layers.{}"
    for block, layer in itertools.product(range(2), range(2)):
        found = megatron_of(table, f"mtp.layers.{2 * block + layer}.norm.weight")
        name = "self_attention.linear_qkv.layer_norm_weight" if layer == 0 else "pre_mlp_layernorm.weight"
        assert found == {f"{inner.format(block, layer)}.{name}"}
    assert megatron_of(table, "mtp.layers.3.mixer.experts.2.up_proj.weight") == {
        f"{inner.format(1, 1)}.mlp.experts.linear_fc1.weight2"
    }


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_pinned_tensors_stand_at_the_first_and_last_layer_of_a_block_only(layers: int) -> None:
    table = mtp("*EM-*"[:layers], 3)
    for flat in range(3 * layers):
        block, inner = divmod(flat, layers)
        first = {f"mtp.layers.{block}.eh_proj.weight"} if inner == 0 else set()
        last = {f"mtp.layers.{block}.final_layernorm.weight"} if inner == layers - 1 else set()
        assert megatron_of(table, f"mtp.layers.{flat}.eh_proj.weight") == first
        assert megatron_of(table, f"mtp.layers.{flat}.final_layernorm.weight") == last
    assert not megatron_of(table, f"mtp.layers.{3 * layers}.eh_proj.weight")


def test_mtp_has_the_decoder_s_own_blocks() -> None:
    """Mamba and dense layers, biases and separate norms within MTP: what the decoder has there, MTP has too."""
    values = {**config("nemotron-h-every-option"), "mtp_hybrid_override_pattern": "M*E-"}
    for flavours in _combinations():
        table = build_table(bind(spec(), values, Choices(flavours)))
        names = {row.megatron for row in table.rows}
        decoder = {name.removeprefix("decoder.") for name in names if name.startswith("decoder.layers.")}
        for block in range(2):
            prefix = f"mtp.layers.{block}.mtp_model_layer."
            assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == decoder


def test_a_repeated_block_exists_once() -> None:
    once, twice = mtp("*E", 2, repeated=True), mtp("*E", 2)
    assert {row.megatron for row in once.rows} == {row.megatron for row in mtp("*E", 1).rows}
    assert len(twice.rows) > len(once.rows)


def test_without_mtp_there_is_none() -> None:
    values = {**config("nemotron-h-every-option"), "num_nextn_predict_layers": 0, "mtp_hybrid_override_pattern": None}
    assert not [row for row in build_table(bind(spec(), values)).rows if row.megatron.startswith("mtp")]


# --- golden tables ---------------------------------------------------------------------------------------------


def _cut(row: Row) -> str:
    dims = row.rule.dims or ()
    cuts = [
        f"{dim.split}@{i}" + ("/segment" if dim.split_by == "segment" else "")
        for i, dim in enumerate(dims)
        if dim.split
    ]
    experts = [axis.name for name, axis in row.rule.axes.items() if axis.parallel and name in row.position]
    return " ".join([*cuts, *(f"dealt:{name}" for name in experts)]) or "-"


def _patterns(names: Iterator[str] | list[str]) -> str:
    return " ".join(pattern for pattern, _ in collapse(names))


def _digest(row: Row) -> str:
    regions = [row.forms.region("hf", "megatron"), row.forms.region("megatron", "stored")]
    return hashlib.sha256(repr(regions).encode()).hexdigest()[:8]


def _table_text(mapping: CompiledMapping) -> str:
    """A line per rule. The digest is that of its regions: it changes where segments change places."""
    lines = []
    for forms, group in itertools.groupby(mapping, key=lambda row: row.forms):
        rows = list(group)
        megatron = _patterns([row.megatron for row in rows])
        stored = _patterns(list(dict.fromkeys(name for row in rows for name in row.names("stored"))))
        hf = _patterns(list(dict.fromkeys(name for row in rows for name in row.names("hf"))))
        shape = "x".join(map(str, rows[0].shape))
        same = "=" if stored == megatron else stored
        about = f"{shape} | {_cut(rows[0])} | {forms.rule.dtype} | {len(rows)} | {_digest(rows[0])}"
        lines.append(f"{megatron} | {same} | {hf} | {about}")
    proof = mapping.proof
    head = [
        "# Megatron | torch_dist (=: the same) | Hugging Face | shape | cut | dtype | rows | regions",
        f"# {proof.hf_tensors:,} Hugging Face tensors, {proof.hf_elements:,} elements; "
        f"{proof.megatron_tensors:,} rows; {proof.stored_tensors:,} torch_dist tensors",
    ]
    objects = [f"object {pattern}" for pattern, _ in collapse(mapping.table.objects)]
    return "\n".join([*head, *sorted(lines), *sorted(objects)]) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_table(name: str, golden: Callable[[str, str], None]) -> None:
    text = _table_text(compiled(name))
    assert len(text) < 200_000
    golden(f"tables/{name}.txt", text)


def test_no_golden_table_is_orphaned() -> None:
    assert sorted(path.stem for path in (HERE / "golden" / "tables").glob("*.txt")) == CONFIGS
