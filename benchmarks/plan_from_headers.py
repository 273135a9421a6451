"""How long planning takes for full-size models: real headers over sparse files, no weights.

    python benchmarks/plan_from_headers.py [CONFIG.json ...]

For each config a Hugging Face folder is laid out with the headers that the model's checkpoint has; the tensor bytes are
holes in sparse files, so 1.1 TB of Ultra takes a few megabytes of disk. Printed per model: tensors, time of reading the
headers alone, time of the whole plan (headers, spec, proof, coverage, copy plan), and their ratio, each the median of
five rounds in one process, after one for warming up.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from checkpoints import CONFIGS, lay_out

from mapspec.io.hf_folder import open_hf
from mapspec.prepare import Request, prepare

DEFAULT = ["nemotron-3-nano-30b-a3b", "nemotron-3-super-120b-a12b", "nemotron-3-ultra-550b-a55b"]


def median_seconds(run: Callable[[], object], rounds: int = 5) -> float:
    """Median wall time of `run`, after one uncounted round."""
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Measure each config."""
    configs = [Path(a) for a in sys.argv[1:]] or [CONFIGS / f"{name}.json" for name in DEFAULT]
    print(f"{'model':<34}{'tensors':>9}{'headers s':>11}{'plan s':>9}{'plan/headers':>14}")
    for config in configs:
        with tempfile.TemporaryDirectory() as folder:
            tensors = lay_out(json.loads(config.read_text()), Path(folder))
            headers = median_seconds(lambda: open_hf(folder))
            plan = median_seconds(lambda: prepare(Request(Path(folder))).require())
        print(f"{config.stem:<34}{tensors:>9,}{headers:>11.2f}{plan:>9.2f}{plan / headers:>14.1f}")


if __name__ == "__main__":
    main()
