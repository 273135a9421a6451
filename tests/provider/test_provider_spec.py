"""Mistakes in a provider spec are found when it is read, each at its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mapspec.codes import CODES
from mapspec.documents import find_spec
from mapspec.errors import SpecError
from mapspec.provider.spec import read_provider

TEXT = find_spec("nemotron_h", "providers").read_text(encoding="utf-8")


def mistakes(folder: Path, old: str, new: str) -> list[tuple[str, str, str]]:
    """Code, message and source line of what is wrong after an edit."""
    assert old in TEXT
    path = folder / "edited.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        read_provider(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(d.code, d.message, lines[d.span.line - 1] if d.span else "") for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("  hidden_size: {hf: hidden_size}", "  hidden_size: {hff: hidden_size}", "MS101", "hff"),
        ("{hf: hidden_size}", "{hf: [hidden_size, vocab_size]}", "MS428", "`vocab_size` spells two"),
        ("    map: activation", "    map: activations", "MS428", "no map `activations`"),
        ("dialects: [string], symbols: layer", "dialects: [strings], symbols: layer", "MS428", "no dialect `strings`"),
        ("    default: num_attention_heads", "    default: num_heads", "MS428", "uses `num_heads`"),
        ("    if: mtp_depth > 0", "    if: hf.depth > 0", "MS428", "reads fields"),
        ("    if: mtp_depth > 0", "    if: depth > 0", "MS428", "`depth`"),
        ("    if: mtp_depth > 0", "    if: mtp_depth >", "MS428", "no expression"),
        ("  expand: {", "  hidden_size: {", "MS428", "`hidden_size` is waived"),
        ("  bf16: {value", "  hidden_size: {value", "MS428", "`hidden_size` is declared twice"),
        ("  mtp_depth: default", "  hidden_size: default", "MS428", "a field as well as a value"),
        ("0.02\n    reason: default of NemotronHConfig\n", "0.02\n", "MS428", "needs a `reason`"),
        ('reason: "chosen per run"', 'reason: "x"', "MS104", ""),
        ("kind: Provider", "kind: Mapping", "MS105", "Mapping"),
        ("bfloat16'\", reason", "bfloat16'\", of: someone, reason", "MS102", ""),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, old: str, new: str, code: str, said: str) -> None:
    found = mistakes(tmp_path, old, new)
    assert code in {c for c, _, _ in found}
    assert any(c == code and said in message for c, message, _ in found), found


def test_the_place_is_the_edited_line(tmp_path: Path) -> None:
    ((_, _, line),) = mistakes(tmp_path, "    map: activation", "    map: activations")
    assert line == "    map: activations"


def test_variants_extend_the_bundled_spec(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "apiVersion: mapspec/v1\nkind: Provider\nextends: nemotron_h@1\n"
        "metadata: {name: mine, version: 0.1.0, mapping: nemotron_h@1,"
        " megatron: {at_least: '0.17', below: '0.21', tested: ['0.19.2']}}\n"
        "constants:\n  moe_note: {value: 1, reason: a field of my own, of: provider}\n"
        "waived:\n  my_key: {reason: written by my own code}\n",
        encoding="utf-8",
    )
    spec = read_provider(path)
    assert "my_key" in spec.known_keys()
    assert "hidden_size" in spec.entries
    assert spec.entries["moe_note"].decl.of == "provider"


def test_codes_are_explained() -> None:
    folder = Path(read_provider.__code__.co_filename).parent
    used = {code for path in folder.glob("*.py") for code in re.findall(r'"(MS\d+)"', path.read_text(encoding="utf-8"))}
    assert used - {"MS409"} <= set(CODES)
