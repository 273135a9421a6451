"""What many hosts would do: the real plan and the real split of a full-size model, without its weights.

    python benchmarks/simulate_hosts.py [CONFIG.json] [--hosts 1,2,...] [--threads N] [--host-gbs X] [--shared-gbs Y]

The checkpoint's headers lie over sparse files (see checkpoints.py). `prepare`, `file_count`, `lay_out` and
`shares` are the functions that a rank calls, so files and bytes per rank are those of `torchrun ... mapspec convert`,
one rank per host. Times are arithmetic, not measurements: planning as measured here (seconds of CPU), then the bytes of
the fullest rank at `--host-gbs` (what one host writes while it reads as much), but not faster than all bytes at
`--shared-gbs` (what the shared file system takes). The speed-up is that of the copy. The second table is the way back,
where the shards of the published model are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from checkpoints import CONFIGS
from checkpoints import lay_out as lay_out_headers

from mapspec.outputs import Output, file_count, lay_out
from mapspec.prepare import Request, prepare
from mapspec.resume import conversion_identity
from mapspec.shares import shares

HEAD = (
    f"{'hosts':>6}{'files':>7}{'mean GB':>9}{'max GB':>9}{'max/mean':>10}{'seconds':>9}{'speed-up':>10}{'of ideal':>10}"
)


def split(sizes: Mapping[str, int], hosts: int) -> tuple[float, float]:
    """Bytes of the mean and of the fullest rank."""
    held = [sum(sizes[file] for file in part) for part in shares(sizes, hosts)]
    return sum(held) / hosts, max(held)


def table(
    title: str, counts: list[int], sizes_for: dict[int, dict[str, int]], planning: float, rates: tuple[float, float]
) -> None:
    """Print a line for each number of hosts."""
    print(f"\n{title}\n{HEAD}")
    first = 0.0
    for hosts in counts:
        sizes = sizes_for[hosts]
        mean, most = split(sizes, hosts)
        copying = max(most / rates[0], sum(sizes.values()) / rates[1])
        first = first or copying * counts[0]
        speed_up = first / copying
        print(
            f"{hosts:>6}{len(sizes):>7}{mean / 1e9:>9.1f}{most / 1e9:>9.1f}{most / mean:>10.3f}"
            f"{planning + copying:>9.0f}{speed_up:>10.1f}{speed_up / hosts:>10.0%}"
        )


def main() -> None:
    """Plan once, split for each number of hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIGS / "nemotron-3-ultra-550b-a55b.json")
    parser.add_argument("--hosts", default="1,2,4,8,16,32,64")
    parser.add_argument("--threads", type=int, help="copying threads of each rank")
    parser.add_argument("--host-gbs", type=float, default=2.0, help="GB/s that one host writes")
    parser.add_argument("--shared-gbs", type=float, default=200.0, help="GB/s that the shared file system takes")
    options = parser.parse_args()
    counts = [int(count) for count in options.hosts.split(",")]
    rates = (options.host_gbs * 1e9, options.shared_gbs * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        lay_out_headers(json.loads(options.config.read_text()), Path(folder))
        output = Output(Path(folder) / "out")
        began = time.process_time()
        prepared = prepare(Request(Path(folder))).require()
        conversion_identity(prepared, output)
        work = {}
        decided = time.process_time()
        for hosts in counts:
            work[hosts] = lay_out(prepared, output, file_count(prepared, options.threads, hosts))
            work[hosts].digest()
        done = time.process_time()
        planning = decided - began + (done - decided) / len(counts)
        shards = {file: (Path(folder) / file).stat().st_size for file in prepared.source.stamps}
    total = sum(work[counts[0]].sizes.values())
    print(
        f"{options.config.stem}: {total / 1e9:.1f} GB, {len(prepared.source.tensors):,} tensors, {len(shards)} shards"
    )
    print(f"planning, on every rank: {planning:.1f} s (measured here); {options.host_gbs:g} GB/s per host, ", end="")
    print(f"{options.shared_gbs:g} GB/s in all")
    table("to Megatron-Core", counts, {hosts: one.sizes for hosts, one in work.items()}, planning, rates)
    table("to Hugging Face, shards as published", counts, dict.fromkeys(counts, shards), planning, rates)


if __name__ == "__main__":
    main()
