"""What ranks read and what memory they take: bytes counted at the system call, anonymous memory sampled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fixtures_hf import write_tiny
from processes import spawn
from watching import layers, watched

from mapspec.backends.reference_parallel import ParallelSizes

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from live_reads import counted

pytestmark = pytest.mark.megatron


def test_a_rank_reads_what_it_owns_in_bounded_memory(tmp_path: Path) -> None:
    """Rows of row-parallel weights are read one by one, so not even those cost a byte more than the rank owns."""
    folders = {count: write_tiny(layers(count), tmp_path / str(count)) for count in (1, 8)}
    sizes = ParallelSizes(tp=2, ep=2)
    small, large = (spawn(watched, 2, str(f), str(folders[1]), sizes=sizes) for f in folders.values())
    for one in (*small, *large):
        assert one.preadv == one.report.bytes_read == one.report.needed_bytes
        assert one.load_peak < 2 * 4 * 2**20 + 4e6
        assert one.export_peak < 6e6
    assert large[0].report.needed_bytes - small[0].report.needed_bytes > 15e6
    assert all(one.exported > 0.99 * (folders[8] / "model.safetensors").stat().st_size for one in large)


def test_the_benchmark_counts_what_published_models_read(tmp_path: Path) -> None:
    config = Path(__file__).parents[1] / "configs/nemotron-3-nano-30b-a3b.json"
    (line,) = counted(config, tmp_path, ((8, 8, 1),))
    assert line["hf"] == 1.0
    assert 1.0 <= max(line["torch_dist"]) < 1.01
    assert 7.9e9 < line["owned"] < 8e9
