"""Live models at real parallel sizes: filled, compared with the oracle, exported, saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures_hf import VARIANTS, TinyModel, write_tiny
from processes import spawn
from ranks import Case, Seen, largest, source_tensors, there_and_back

from mapspec.backends.reference_parallel import ParallelSizes, one_process_group
from mapspec.intact import check_intact
from mapspec.verify import verify

pytestmark = pytest.mark.megatron

EVERY = TinyModel("ME*-M*E", mtp_pattern="*E", mtp_blocks=2, latent=40, vocab=251, dialect="published")

CASES = {
    "one-rank-native-names": (VARIANTS["latent"].but(layout="native"), ParallelSizes(), Case()),
    "one-rank-dotted-fp32": (VARIANTS["mtp_mamba"], ParallelSizes(), Case(dtype=torch.float32, switches={
        "conv_names": "dotted", "norms": "separate", "experts": "grouped"})),
    "tp2-padded-vocabulary": (VARIANTS["odd_vocab"], ParallelSizes(tp=2), Case(vocab_size=256, watch=True)),
    "tp4-two-query-groups-mtp-mamba": (VARIANTS["mtp_mamba"], ParallelSizes(tp=4), Case(
        switches={"norms": "separate"})),
    "pp2-uneven-mtp2": (VARIANTS["mtp2"], ParallelSizes(pp=2), Case(cuts=(1,))),
    "pp2-tied": (VARIANTS["tied"], ParallelSizes(pp=2), Case(cuts=(1,))),
    "tp2-ep4-dp2-stacked": (
        VARIANTS["latent"].but(layout="native"),
        ParallelSizes(tp=2, ep=4),
        Case(switches={"experts": "grouped"}),
    ),
    "tp2-ep2-etp2-provider": (
        VARIANTS["mtp1"],
        ParallelSizes(tp=2, ep=2, etp=2),
        Case(
            switches={"experts": "grouped"},
            provider={
                "tensor_model_parallel_size": 2,
                "expert_model_parallel_size": 2,
                "expert_tensor_parallel_size": 2,
                "sequence_parallel": True,
            },
        ),
    ),
    "tp2-pp2-everything": (EVERY, ParallelSizes(tp=2, pp=2, ep=2), Case(cuts=(3,), vocab_size=256)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_load_export_save(tmp_path: Path, name: str) -> None:
    model, sizes, case = CASES[name]
    source, target = write_tiny(model, tmp_path / "hf"), tmp_path / "saved"
    if sizes.world == 1:
        with one_process_group():
            seen = [there_and_back(0, str(source), str(target), case)]
    else:
        seen = spawn(there_and_back, sizes.world, str(source), str(target), case, sizes=sizes)
    assert verify(source, target).findings == ()
    assert check_intact(target).findings == ()
    assert (source / "config.json").read_bytes() == (target / "config.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "saved"]
    check_reports(seen, case)
    assert all(one.names == seen[0].names for one in seen)
    bound = 3 * largest(source_tensors(source)) + (1 << 16)
    assert max(one.peak for one in seen) <= bound


def check_reports(seen: list[Seen], case: Case) -> None:
    for one in seen:
        report = one.report
        assert report.bytes_read <= 1.05 * report.needed_bytes
        # Of what is in memory only A_log and D (and all of it in fp32 models) is wider than in the checkpoint.
        assert report.needed_bytes <= report.local_bytes
        assert report.left_out == ()
        assert report.differences == ()
        kinds = {step.detail for step in report.steps if step.kind == "cast"}
        assert kinds <= {"bfloat16 -> float32"}
        print(f"{report.rank}: read {report.bytes_read:,} of {report.needed_bytes:,} in {report.seconds:.2f} s")
