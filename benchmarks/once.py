"""One measurement in a process of its own: `python benchmarks/once.py METHOD SOURCE DESTINATION [fsync]`.

Prints JSON: seconds (without imports, but for those of mapspec), those of them in which mapspec copied, those that it
was kept waiting and that count nowhere, peak of anonymous memory (sampled) and that before the work began, in MB. The
other writers read with safetensors, as a converter that holds tensors in memory would, and their time includes that.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limits import bare, disk_reads, disk_writes

from mapspec.copying.early import reading_early
from mapspec.cuts import Cuts
from mapspec.io.kernel import available_memory
from mapspec.progress import NoProgress


def anonymous_mb() -> float:
    """Anonymous memory of this process and its workers in MB; what they share counts once."""
    workers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum(_anonymous_kib(process) for process in ("self", *workers)) * 1024 / 1e6


_holding = threading.Event()  # what is held meanwhile is nobody's memory


def _anonymous_kib(process: str) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")), 0)


def hold_memory(nbytes: int, cold: bool) -> None:
    """Use as much memory as a copy of `nbytes` does and some more, and give it free again.

    A virtual machine may have given free memory back to its host, and getting it again takes longer than any copy.
    What was in use a moment ago is still there, for whoever takes memory next. In huge pages, since these are free
    again at once; given free page by page, it goes back to the host meanwhile. Where less than twice that much is
    available, half of what is.

    Args:
        cold: whether what is read, too, comes into the page cache only then.
    """
    _holding.set()
    size = min(nbytes * (1 + cold) + (1 << 29), available_memory() // 2)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 1, len(memory))
    del memory
    _holding.clear()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Ready(NoProgress):
    """Sees to it that there is memory when a copy begins that reads nothing from disk; `seconds` are what it took."""

    seconds = 0.0

    def start(self, total: int) -> None:
        """The copy begins."""
        began = time.perf_counter()
        hold_memory(total, cold=False)
        self.seconds = time.perf_counter() - began


def mapspec(source: Path, target: Path, fsync: bool, cuts: Cuts | None = None) -> Callable[[], tuple[float, float]]:
    """`mapspec convert`, in whichever direction, from its imports on; seconds of its copy, and those not its own."""

    def run() -> tuple[float, float]:
        gc.set_threshold(500_000, 20, 20)  # as the command does
        with reading_early(source):
            from mapspec.convert import Output, convert
            from mapspec.prepare import Request

            request = Request(source) if cuts is None else Request(source, cuts=cuts)
            ready = NoProgress() if fsync else Ready()  # cold, memory is needed from the beginning
            done = convert(request, Output(target, fsync=fsync), ready)
            aside = ready.seconds if isinstance(ready, Ready) else 0.0
            return done.copied.seconds - aside, aside

    return run


def mapspec_uncut(source: Path, target: Path, fsync: bool) -> Callable[[], tuple[float, float]]:
    """The same with one chunk per weight."""
    return mapspec(source, target, fsync, Cuts(1))


def verify(source: Path, target: Path, fsync: bool) -> Callable[[], object]:
    """`mapspec verify SOURCE`: one read of everything."""
    from mapspec.intact import check_intact

    def check() -> None:
        assert check_intact(source).findings == ()

    return check


def _loaded(source: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        state |= load_file(file)
    return state


def safetensors(source: Path, target: Path, fsync: bool) -> Callable[[], object]:
    """load_file and save_file of each shard."""
    from safetensors.torch import load_file, save_file

    def run() -> None:
        target.mkdir()
        for file in sorted(source.glob("*.safetensors")):
            save_file(load_file(file), target / file.name)
            if fsync:
                _sync(target / file.name)

    return run


def dcp(source: Path, target: Path, fsync: bool) -> Callable[[], object]:
    """PyTorch's distributed checkpoint, two writer threads."""
    import torch.distributed.checkpoint as dcp_

    def run() -> None:
        writer = dcp_.FileSystemWriter(target, thread_count=2, sync_files=fsync)
        dcp_.save(_loaded(source), storage_writer=writer, no_dist=True)

    return run


def megatron(source: Path, target: Path, fsync: bool) -> Callable[[], object]:
    """Megatron-Core's `dist_checkpointing.save`, which always syncs its files."""
    from megatron.core.dist_checkpointing import ShardedTensor, save

    from mapspec.backends.cpu_adapters import cpu_adapters
    from mapspec.backends.reference_parallel import one_process_group

    def run() -> None:
        target.mkdir()
        state = {key: ShardedTensor.from_rank_offsets(key, value) for key, value in _loaded(source).items()}
        with one_process_group(), cpu_adapters():
            save(state, str(target))

    return run


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


OTHERS = {f.__name__: f for f in (safetensors, dcp, megatron)}
METHODS = {f.__name__: f for f in (mapspec, mapspec_uncut, verify, bare, disk_reads, disk_writes)} | OTHERS


def main() -> None:
    """Run one method, watched."""
    method, source, target, *more = sys.argv[1:]
    fsync = more == ["fsync"]
    run = METHODS[method](Path(source), Path(target), fsync)
    if method in OTHERS:  # importing torch has taken seconds
        hold_memory(size_of(Path(source)), fsync)
    before = anonymous_mb()
    peak, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            now = anonymous_mb()
            if not _holding.is_set():
                peak[0] = max(peak[0], now)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    copying, aside = run() or (None, 0.0)
    seconds = time.perf_counter() - began - aside
    stop.set()
    watcher.join()
    said = {"seconds": seconds, "copying": copying, "aside": aside, "peak_mb": peak[0], "before_mb": before}
    print(json.dumps(said), flush=True)
    gc.freeze()  # as the command does


if __name__ == "__main__":
    main()
