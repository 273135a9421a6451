"""What a rank reads: bytes by counting, on the published models; and memory by measuring, on small ones.

    python benchmarks/live_reads.py [--configs NAME ...] [--measure]

The checkpoints' headers lie over sparse files (see checkpoints.py). From Hugging Face shards, parameters of a
rank go through the code of `mapspec.load`, with files that count what they are asked for and give nothing. From
torch_dist, the chunks are those that `convert` would write, and PyTorch's planner says which of them a rank's parts
touch; a touched chunk is read whole. Where layers or experts are alike, one is counted. Shown is the larger of the
first and the last rank.

`--measure` starts gloo processes that load and export small models of 1, 4 and 16 pairs of layers, and prints what
`preadv` gave and the peak of anonymous memory above what the process had with its model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoints import CONFIGS, lay_out
from plan_from_headers import DEFAULT
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mapspec.cuts import Cuts
from mapspec.live.pieces import Local
from mapspec.live.transfer import CountedFiles, Reader
from mapspec.prepare import Prepared, Request, prepare
from mapspec.ranks import Shard, local_region, local_shape, owns
from mapspec.regions import compose
from mapspec.tensors import Box, box_shape, itemsize, numel

SIZES = ((8, 8, 1), (8, 8, 8))


class Unread(CountedFiles):
    """Files that count and give nothing."""

    def read_into(self, view: memoryview, file: str, offset: int) -> None:
        self.nbytes += len(view)
        self.requests += 1


def from_hf(prepared: Prepared, shard: Shard) -> tuple[int, int, int]:
    """Bytes that a rank owns, and bytes and requests that `load` reads for them."""
    files = Unread(prepared.source.root)
    reader, local = Reader(prepared.source.root, files), Local(shard)
    known: dict[int, tuple[int, int, int]] = {}
    total = [0, 0, 0]
    for row in prepared.table.rows:
        if not owns(row, shard):
            continue
        if id(row.forms) not in known:
            before = files.nbytes, files.requests
            source = prepared.table.by_megatron[prepared.table.tied.get(row.megatron, row.megatron)]
            target = torch.empty(local_shape(row.forms, shard), dtype=getattr(torch, row.rule.dtype), device="meta")
            reader.fill(row.megatron, target, local.pieces(source, prepared.source.tensors))
            known[id(row.forms)] = target.nbytes, files.nbytes - before[0], files.requests - before[1]
        total = [sum(pair) for pair in zip(total, known[id(row.forms)], strict=True)]
    reader.close()
    return total[0], total[1], total[2]


def from_torch_dist(prepared: Prepared, shard: Shard) -> tuple[int, int]:
    """Bytes that a rank owns, and bytes of the chunks that PyTorch's planner asks for."""
    wanted: dict[str, list[Box]] = defaultdict(list)
    owned = read = 0
    for row in prepared.table.rows:
        if owns(row, shard) and row.megatron not in prepared.table.tied:
            names, leads = row.names("stored"), row.leads("stored")
            for piece in compose(row.forms.region("stored", "megatron"), local_region(row.forms, shard)):
                wanted[names[piece.left]].append(leads[piece.left] + piece.left_box)
    known: dict[tuple[Any, ...], int] = {}
    for target in prepared.plan.targets:
        if target.name in wanted:
            key = (target.dtype, target.shape, target.boxes, *wanted[target.name])
            if key not in known:
                known[key] = _asked(target, wanted[target.name])
            owned += sum(numel(box_shape(box)) for box in wanted[target.name]) * itemsize(target.dtype)
            read += known[key]
    return owned, read


def _asked(target: Any, wanted: list[Box]) -> int:
    """Bytes of the chunks of a stored tensor that are read for some boxes of it; again for each box."""
    properties = TensorProperties(dtype=getattr(torch, target.dtype))
    stored = TensorStorageMetadata(properties, torch.Size(target.shape), [_chunk(box) for box in target.boxes])
    items = create_read_items_for_chunk_list(target.name, stored, [_chunk(box) for box in wanted])
    numbers = [item.storage_index.index for item in items]
    return sum(numel(box_shape(target.boxes[n])) for n in numbers if n is not None) * itemsize(target.dtype)


def _chunk(box: Box) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size([start for start, _ in box]), torch.Size(box_shape(box)))


def counted(config: Path, folder: Path, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> list[dict[str, Any]]:
    """A line for each (tensor, expert, expert tensor) parallel size: the larger ratio of the first and last rank."""
    lay_out(json.loads(config.read_text()), folder)
    whole = prepare(Request(folder)).require()
    cut = prepare(replace(whole.request, cuts=Cuts(8, expert_tensor=8))).require()
    lines = []
    for tp, ep, etp in sizes:
        ranks = [Shard(0, tp, 0, ep, 0, etp), Shard(tp - 1, tp, ep - 1, ep, etp - 1, etp)]
        hf = [from_hf(whole, rank) for rank in ranks]
        dist = [[from_torch_dist(one, rank) for rank in ranks] for one in (whole, cut)]
        lines.append(
            {
                "tp": tp, "ep": ep, "etp": etp, "owned": max(owned for owned, _, _ in hf),
                "requests": max(requests for _, _, requests in hf),
                "hf": max(read / owned for owned, read, _ in hf),
                "torch_dist": [max(read / owned for owned, read in one) for one in dist],
            }
        )  # fmt: skip
    return lines


def measure() -> None:
    """Real processes and small models."""
    tests = CONFIGS.parent
    sys.path[:0] = [str(tests / "live"), str(tests / "megatron"), str(tests)]
    from fixtures_hf import write_tiny
    from processes import spawn
    from watching import layers, watched

    from mapspec.backends.reference_parallel import ParallelSizes

    print(f"{'ranks':<16}{'pairs':>6}{'model MB':>10}{'owned MB':>10}{'preadv':>8}{'load MB':>9}{'export MB':>11}")
    with tempfile.TemporaryDirectory() as folder:
        sources = {count: write_tiny(layers(count), Path(folder) / str(count)) for count in (1, 4, 16)}
        for sizes in (ParallelSizes(tp=2), ParallelSizes(tp=2, ep=2, etp=2)):
            for count, source in sources.items():
                seen = spawn(watched, sizes.world, str(source), str(sources[1]), sizes=sizes)
                owned = max(one.report.needed_bytes for one in seen)
                ratio = max(one.preadv / one.report.needed_bytes for one in seen)
                peaks = [max(getattr(one, name) for one in seen) / 1e6 for name in ("load_peak", "export_peak")]
                named = f"TP {sizes.tp} EP {sizes.ep} ETP {sizes.expert_tensor}"
                print(
                    f"{named:<16}{count:>6}{seen[0].exported / 1e6:>10.1f}{owned / 1e6:>10.1f}{ratio:>8.3f}"
                    f"{peaks[0]:>9.1f}{peaks[1]:>11.1f}",
                    flush=True,
                )


def main() -> None:
    """Count, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=DEFAULT, help="names of tests/configs")
    parser.add_argument("--measure", action="store_true", help="real processes instead")
    options = parser.parse_args()
    if options.measure:
        measure()
        return
    print(f"{'model':<28}{'TP':>4}{'EP':>4}{'ETP':>5}{'owned GB':>10}{'requests':>11}{'HF':>8}", end="")
    print(f"{'torch_dist':>12}{'experts cut':>13}")
    for name in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            for line in counted(CONFIGS / f"{name}.json", Path(folder)):
                print(f"{name:<28}{line['tp']:>4}{line['ep']:>4}{line['etp']:>5}{line['owned'] / 1e9:>10.2f}", end="")
                print(f"{line['requests']:>11,}{line['hf']:>8.3f}", end="")
                print(f"{line['torch_dist'][0]:>12.3f}{line['torch_dist'][1]:>13.3f}", flush=True)


if __name__ == "__main__":
    main()
