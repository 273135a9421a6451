"""What loading and exporting takes, measured from outside of mapspec: importable in the processes that are started."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fixtures_hf import TinyModel
from oracle import build_for, read_hf
from ranks import scramble

from mapspec.live import Exporter, LoadReport, load

__all__ = ["Watched", "layers", "watched"]

_MMAP_THRESHOLD = -3  # of <malloc.h>


@dataclass(frozen=True)
class Watched:
    """One rank.

    Attributes:
        report: of `load`.
        preadv: bytes that `os.preadv` gave meanwhile.
        load_peak, export_peak: anonymous memory above what the process had before, with its model, in bytes.
        exported: bytes given out.
    """

    report: LoadReport
    preadv: int
    load_peak: int
    export_peak: int
    exported: int


def layers(count: int) -> TinyModel:
    """A model of so many pairs of Mamba and 16 experts, 4.7 MB each."""
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "n_routed_experts": 16}
    return TinyModel("ME" * count, dialect="published", config=sizes)


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0


class Peak:
    """The most anonymous memory beyond the beginning's, sampled every millisecond."""

    def __init__(self) -> None:
        gc.collect()
        self.before = self.most = anonymous()

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.001):
                self.most = max(self.most, anonymous())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            self.most = max(self.most, anonymous())
            stop.set()
            thread.join()

    @property
    def above(self) -> int:
        return self.most - self.before


def watched(rank: int, source: str, warm_up: str) -> Watched:
    """Load and export a model. `warm_up` is a small checkpoint to go through both first, so that modules are there."""
    # What is freed goes back to the system at once. By default glibc keeps blocks below 32 MB for the next request, and
    # how many depends on what is between them, which says nothing about what was needed.
    assert ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    for folder in (warm_up, source):
        _, config = read_hf(Path(folder))
        model = build_for(config, dtype=torch.bfloat16, experts="grouped")
        scramble(model)
        counted, real = 0, os.preadv

        def preadv(*args: Any, real: Any = real) -> int:
            nonlocal counted
            got = int(real(*args))
            counted += got
            return got

        peak = Peak()
        with peak.watching(), mock.patch.object(os, "preadv", preadv):
            report = load(model, folder, threads=2)
        exporting = Peak()
        exporter, exported = Exporter(model, folder), 0
        with exporting.watching():
            for _, tensor in exporter:
                exported += tensor.nbytes
    return Watched(report, counted, peak.above, exporting.above, exported)
