"""One exporter for many exports, and the certificate of what ranks have saved together."""

from __future__ import annotations

from pathlib import Path

import pytest
from again import export_again, save, save_badly
from fixtures_hf import VARIANTS, write_tiny
from processes import spawn
from ranks import source_tensors

from mapspec.backends.reference_parallel import ParallelSizes
from mapspec.certificate import read_certificate
from mapspec.intact import check_intact
from mapspec.io.hf_folder import open_hf

pytestmark = pytest.mark.megatron


def test_what_does_not_depend_on_values_is_done_once(tmp_path: Path) -> None:
    source = write_tiny(VARIANTS["mtp1"], tmp_path / "hf")
    seen = spawn(export_again, 2, str(source), str(tmp_path / "hidden"), sizes=ParallelSizes(tp=2))
    for names in seen:
        assert names == [*seen[0][:-1], "MS753"]
        assert sorted(names[:-1]) == sorted(source_tensors(source))


def test_what_ranks_saved_is_certified(tmp_path: Path) -> None:
    source, target = write_tiny(VARIANTS["mtp1"], tmp_path / "hf"), tmp_path / "saved"
    sizes = ParallelSizes(tp=2, ep=2, etp=2)
    spawn(save, 4, str(source), str(target), {"experts": "grouped"}, sizes=sizes)
    checked = check_intact(target)
    assert checked.findings == ()
    tensors = open_hf(target).tensors
    assert checked.tensors == len(tensors)
    head = read_certificate(target / "mapspec.json").head
    assert head["source"] == {
        "kind": "live", "ranks": 4, "tensor": 2, "expert": 2, "expert_tensor": 2, "pipeline": 1,
        "reference": str(source / "config.json"),
    }  # fmt: skip
    # one whose rows are on both ranks, one whose columns are, one that both hold, and one of an expert
    kinds = ("in_proj.weight", "out_proj.weight", "norm.weight", "experts.0.up_proj.weight")
    for name in [next(name for name in tensors if name.endswith(kind)) for kind in kinds]:
        chunk = tensors[name].chunks[0]
        file = target / chunk.file
        written = file.read_bytes()
        for at in (chunk.offset, chunk.offset + chunk.nbytes - 1):
            file.write_bytes(written[:at] + bytes([written[at] ^ 8]) + written[at + 1 :])
            (finding,) = check_intact(target).findings
            assert finding.code == "MS732"
            assert f"`{name}`" in finding.message
        file.write_bytes(written)
    header = next(iter(target.glob("*.safetensors")))
    header.write_bytes(header.read_bytes().replace(b"format", b"farmot", 1))
    assert [finding.code for finding in check_intact(target).findings] == ["MS736"]


def test_digests_are_of_what_was_to_be_written(tmp_path: Path) -> None:
    source, target = write_tiny(VARIANTS["mtp1"], tmp_path / "hf"), tmp_path / "saved"
    spawn(save_badly, 2, str(source), str(target), sizes=ParallelSizes(tp=2))
    (finding,) = check_intact(target).findings
    assert finding.code == "MS732"
