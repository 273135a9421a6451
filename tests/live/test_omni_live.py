"""Live Omni models at real parallel sizes: filled, compared with the oracle, exported, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures_omni import write_tiny_omni
from omni_ranks import omni_there_and_back
from processes import spawn
from ranks import source_tensors

from mapspec.backends.reference_parallel import ParallelSizes, one_process_group
from mapspec.intact import check_intact
from mapspec.io.hf_folder import open_hf
from mapspec.verify import verify

pytestmark = pytest.mark.megatron

CASES = {
    "one-rank-native-separate": ("omni", "expanded", ParallelSizes(), {"norms": "separate"}),
    "tp2": ("published", "llava", ParallelSizes(tp=2), {}),
    "tp2-pp2-ep2-mtp": ("mtp", "expanded", ParallelSizes(tp=2, pp=2, ep=2), {"cuts": (1,), "experts": "grouped"}),
}


@pytest.mark.parametrize("case", CASES)
def test_load_export_save(tmp_path: Path, case: str) -> None:
    name, assembly, sizes, build = CASES[case]
    source, target = write_tiny_omni(name, tmp_path / "hf"), tmp_path / "saved"
    args: tuple[Any, ...] = (str(source), str(target), assembly, build)
    if sizes.world == 1:
        with one_process_group():
            seen = [omni_there_and_back(0, *args)]
    else:
        seen = spawn(omni_there_and_back, sizes.world, *args, sizes=sizes)
    assert verify(source, target).findings == ()
    assert check_intact(target).findings == ()
    assert (source / "config.json").read_bytes() == (target / "config.json").read_bytes()
    assert open_hf(target).tensors.keys() == open_hf(source).tensors.keys()
    assert all(one.names == seen[0].names for one in seen)
    for one in seen:
        report = one.report
        assert report.flavours["assembly"] == assembly
        assert report.left_out == ()
        assert report.differences == ()
        assert report.bytes_read <= 1.05 * report.needed_bytes
        print(f"{report.rank}: read {report.bytes_read:,} of {report.needed_bytes:,}, filled {report.tensors}")
    check_shares([one.report.needed_bytes for one in seen], source, sizes)


def check_shares(needed: list[int], source: Path, sizes: ParallelSizes) -> None:
    """Ranks of the first stage have the encoders: their split weights in halves, sound whole; others have none."""
    tensors = source_tensors(source)
    sound = sum(t.nbytes for n, t in tensors.items() if n.startswith("sound_encoder.") and "featurizer" not in n)
    vision = sum(t.nbytes for n, t in tensors.items() if n.startswith("vision_model.") and "attn.qkv" in n)
    if sizes.world == 1:
        return
    first, last = needed[: sizes.world // sizes.pp], needed[sizes.world // sizes.pp :]
    assert all(one > sound + vision // sizes.tp for one in first)
    everything = sum(t.nbytes for t in tensors.values())
    assert max(first) < sound + (everything - sound) * 0.75
    assert all(one < everything / 2 for one in last)
