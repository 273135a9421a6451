"""How fast conversion is, as ratios to `cp` of the same bytes.

    python benchmarks/convert.py [--scratch DIR] [--size-gb 3] [--rounds 5] [--only dense,moe,warm,cold,...]

Makes a dense checkpoint and one with thousands of experts in DIR (removed at the end), and runs rounds: in each, `cp`
and then every method, each in a process of its own. A ratio is taken within a round. For mapspec it is that of the
whole process, less what the same takes for some kB in the same round (start-up). Printed: median, least and most of
the ratios, that of the copy alone (without deciding what to copy, and publishing), median seconds (with start-up), and
peak anonymous memory. Also measured is what the machine itself needs, see limits.py.

The host of a virtual machine may give its processors to others meanwhile, most of all where more than one is busy. A
run that lost more than a fiftieth of them is repeated, three times at most; the one that lost least counts, and what
it lost is printed.

Warm: sources in the page cache, nothing synced, and the kernel told to keep what is written in memory until the end of
the run (needs to be root; else it slows down whoever has written a tenth of the memory). Cold: the page cache is
dropped before each run (needs to be root) and results are synced, those of `cp` too. DIR needs three times the size of
a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from checkpoints import CONFIGS, KINDS, lay_out, make
from once import hold_memory, size_of

HERE = Path(__file__).resolve().parent
DROP = Path("/proc/sys/vm/drop_caches")
DIRTY = {Path("/proc/sys/vm/dirty_background_ratio"): "60", Path("/proc/sys/vm/dirty_ratio"): "80"}
# Share of the processors that a run may lose to others, and how often a run is tried.
_LITTLE, _TRIES = 0.02, 4
PARTS = ("dense", "moe", "warm", "cold", "others", "startup", "plan")
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
COMPILED["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # as the command does


@dataclass(frozen=True)
class Run:
    """One run: seconds that count, those of copying where they are known, those of all, peak memory in MB, and the
    share of the processors that the host gave to others meanwhile."""

    seconds: float
    copying: float | None
    wall: float
    peak_mb: float
    stolen: float


@dataclass
class Results:
    """What the rounds gave for one method."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    copying: list[float] = field(default_factory=list)
    stolen: list[float] = field(default_factory=list)
    peak_mb: float = 0.0


class Watch:
    """Seconds since it was made, and what the host took of the processors meanwhile."""

    def __init__(self) -> None:
        self._stolen, self._began = _stolen_seconds(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """The seconds, and the share of the processors."""
        seconds = time.perf_counter() - self._began
        return seconds, (_stolen_seconds() - self._stolen) / (seconds * (os.cpu_count() or 1))


def _stolen_seconds() -> float:
    """Seconds of processors that were given to others, of all processors together, since the machine began."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return 0.0
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def cp(source: Path, target: Path, fsync: bool) -> Run:
    """`cp -r`, with the sync of what it wrote."""
    hold_memory(size_of(source), fsync)
    watch = Watch()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    if fsync:
        subprocess.run(["sync", *(str(p) for p in target.rglob("*") if p.is_file())], check=True)
    seconds, stolen = watch.read()
    return Run(seconds, None, seconds, 0.0, stolen)


def once(method: str, source: Path, target: Path, fsync: bool) -> Run:
    """One run in a fresh process."""
    command = [sys.executable, str(HERE / "once.py"), method, str(source), str(target), *(["fsync"] if fsync else [])]
    hold_memory(size_of(source), fsync)
    watch = Watch()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=COMPILED)
    wall, stolen = watch.read()
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    return Run(said["seconds"], said["copying"], wall - said["aside"], said["peak_mb"], stolen)


def undisturbed(run: Callable[[], Run]) -> Run:
    """The first of four runs that the host disturbed little, or the one that it disturbed least."""
    found: list[Run] = []
    while len(found) < _TRIES and (not found or found[-1].stolen > _LITTLE):
        found.append(run())
    return min(found, key=lambda one: one.stolen)


def measure(
    title: str, runs: list[tuple[str, str, Path]], tiny: Path, target: Path, rounds: int, cold: bool
) -> None:  # fmt: skip
    """Rounds of `cp` and the runs (label, method, source), interleaved, and their table.

    Before each copy, off the clock, what the one before left is removed and the memory for this one fetched, see
    `hold_memory`.
    """
    sources = list(dict.fromkeys(source for _, _, source in runs))

    def attempt(method: str, source: Path) -> Run:
        _clear(source, target, cold)
        return cp(source, target, cold) if method == "cp" else once(method, source, target, cold)

    found: dict[str, Results] = {}
    for _ in range(rounds):
        base: dict[Path, float] = {}
        for source in sources:
            run = undisturbed(partial(attempt, "cp", source))
            base[source] = run.seconds
            _note(found, f"cp {source.name}", run, run.seconds, base[source])
        run = undisturbed(partial(attempt, "mapspec", tiny))
        start_up = run.wall
        _note(found, "start-up of mapspec", run, start_up, base[sources[0]])
        for label, method, source in runs:
            run = undisturbed(partial(attempt, method, source))
            seconds, before = (run.wall, start_up) if method.startswith("mapspec") else (run.seconds, 0.0)
            result = _note(found, label, run, seconds, base[source], before)
            if run.copying is not None:
                result.copying.append(run.copying / base[source])
    shutil.rmtree(target, ignore_errors=True)
    print(f"\n{title}: {rounds} rounds")
    print(f"{'':<44}{'median':>8}{'least':>8}{'most':>8}{'copying':>9}{'seconds':>10}{'peak MB':>9}{'stolen':>8}")
    for label, result in found.items():
        ratios = f"{statistics.median(result.ratios):>8.2f}{min(result.ratios):>8.2f}{max(result.ratios):>8.2f}"
        copying = f"{statistics.median(result.copying):.2f}" if result.copying else ""
        seconds = f"{statistics.median(result.seconds):.2f}"
        stolen = f"{statistics.median(result.stolen):.0%}"
        print(f"{label:<44}{ratios}{copying:>9}{seconds:>10}{result.peak_mb:>9.0f}{stolen:>8}", flush=True)


def _note(
    found: dict[str, Results], label: str, run: Run, seconds: float, base: float, start_up: float = 0.0
) -> Results:  # fmt: skip
    result = found.setdefault(label, Results())
    result.seconds.append(seconds)
    result.ratios.append((seconds - start_up) / base)
    result.stolen.append(run.stolen)
    result.peak_mb = max(result.peak_mb, run.peak_mb)
    return result


@contextmanager
def no_writeback() -> Iterator[None]:
    """Have the kernel keep written pages in memory, where that may be asked of it."""
    before = {path: path.read_text() for path in DIRTY} if os.access(next(iter(DIRTY)), os.W_OK) else {}
    try:
        for path in before:
            path.write_text(DIRTY[path])
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)


def _clear(source: Path, target: Path, cold: bool) -> None:
    """No result of an earlier run, and the cache as it shall be."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()  # what an earlier run left to be written is not this run's burden
    if cold:
        DROP.write_text("3")
    else:
        for path in source.rglob("*"):
            if path.is_file():
                subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)


def checkpoint_runs(kind: str, root: Path, nbytes: int, others: bool) -> list[tuple[str, str, Path]]:
    """Make a checkpoint of both sides; what is measured on them warm."""
    hf, meg = root / f"{kind}-hf", root / f"{kind}-megatron"
    if not hf.exists():
        total, tensors = make(kind, hf, nbytes)
        once("mapspec", hf, meg, True)
        print(f"{kind}: {total / 1e9:.2f} GB, {tensors:,} tensors", flush=True)
    runs = [
        (f"{kind} Hugging Face -> torch_dist", "mapspec", hf),
        (f"{kind} the same, chunks not cut", "mapspec_uncut", hf),
        (f"{kind} torch_dist -> Hugging Face", "mapspec", meg),
        (f"{kind} verify torch_dist (reads only)", "verify", meg),
        ("machine: two processes copy whole files", "bare", hf),
    ]
    if others:
        runs += [
            (f"{kind} safetensors load + save", "safetensors", hf),
            (f"{kind} torch DCP writer (with load)", "dcp", hf),
            (f"{kind} megatron-core save (with load)", "megatron", hf),
        ]
    return runs


def make_tiny(folder: Path) -> Path:
    """Make a checkpoint of some kilobytes."""
    config = json.loads((CONFIGS / "nemotron-h-every-option.json").read_text())
    config |= {"use_bias": False, "attention_bias": False, "mlp_bias": False, "num_nextn_predict_layers": 0}
    folder.mkdir()
    lay_out(config, folder)
    return folder


def startup(tiny: Path, root: Path, rounds: int) -> None:
    """The command line on a checkpoint of some kilobytes."""
    python = [sys.executable, "-m", "mapspec"]
    print(f"\nthe command on a checkpoint of some kB, {rounds} rounds after one: seconds, median (least to most)")
    for label, command in {
        "python -c pass": [sys.executable, "-c", "pass"],
        "mapspec plan": [*python, "plan", str(tiny)],
        "mapspec convert": [*python, "convert", str(tiny), str(root / "out"), "--overwrite"],
        "mapspec verify": [*python, "verify", str(root / "out")],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    }.items():
        times = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=COMPILED)
            times.append(time.perf_counter() - began)
        del times[0]
        print(f"{label:<44}{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})", flush=True)


def planning(root: Path) -> None:
    """Planning from the headers of published models, in this process."""
    from mapspec.prepare import Request, prepare

    print("\nplanning from headers, in process: seconds, median of 3 after one for warming up")
    for name in ("nemotron-3-super-120b-a12b", "nemotron-3-ultra-550b-a55b"):
        folder = root / name
        folder.mkdir()
        tensors = lay_out(json.loads((CONFIGS / f"{name}.json").read_text()), folder)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            prepare(Request(folder)).require()
            times.append(time.perf_counter() - began)
        print(f"{name:<44}{statistics.median(times[1:]):.2f}   {tensors:,} tensors", flush=True)


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where the checkpoints are made; default: a temporary folder")
    parser.add_argument("--size-gb", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of: {', '.join(PARTS)}")
    options = parser.parse_args()
    only = options.only.split(",")
    nbytes = int(options.size_gb * 1e9)
    cold = os.access(DROP, os.W_OK)
    if "cold" in only and not cold:
        print("cold runs are left out: the page cache cannot be dropped here")
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        root = Path(folder)
        tiny = make_tiny(root / "tiny")
        # As installed: compiled once, not at every start.
        COMPILED["PYTHONPYCACHEPREFIX"] = str(root / "compiled")
        for kind in KINDS:
            if kind in only:
                runs = checkpoint_runs(kind, root, nbytes, "others" in only)
                if "warm" in only:
                    with no_writeback():
                        measure(f"{kind}, warm", runs, tiny, root / "out", options.rounds, cold=False)
                if "cold" in only and cold:
                    hf = runs[0][2]
                    runs += [
                        ("machine: its disk reads all of it", "disk_reads", hf),
                        ("machine: its disk writes all of it", "disk_writes", hf),
                    ]
                    measure(f"{kind}, cold and synced", runs, tiny, root / "out", options.rounds, cold=True)
                for made in (f"{kind}-hf", f"{kind}-megatron"):
                    shutil.rmtree(root / made)
        if "startup" in only:
            startup(tiny, root, options.rounds)
        if "plan" in only:
            planning(root)


if __name__ == "__main__":
    main()
