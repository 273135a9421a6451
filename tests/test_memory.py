"""Memory: what `plan` promises is kept, does not depend on the size of tensors, and can be bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_convert import small, write_hf
from typer.testing import CliRunner

from mapspec.cli import app
from mapspec.convert import Output, convert
from mapspec.errors import ConvertError
from mapspec.io.layout import NewTensor
from mapspec.io.safetensors_layout import layout_safetensors
from mapspec.mapping import compile_mapping
from mapspec.memory import memory_of, workers_within
from mapspec.prepare import Request, prepare
from mapspec.tensors import whole

WATCHED = """
import os, sys, threading
from pathlib import Path
from mapspec.convert import Output, convert
from mapspec.cuts import Cuts
from mapspec.prepare import Request
def of(process):
    try:
        return 1024 * int(next(l for l in open(f"/proc/{process}/smaps_rollup") if l.startswith("Pss_Anon")).split()[1])
    except OSError:
        return 0
def anonymous():
    workers = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    seen.add(len(workers))
    return of("self") + sum(map(of, workers))
seen = set()
peak, stop = 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
request = Request(Path(sys.argv[1]), dtype=sys.argv[3] or None, cuts=Cuts(8, least_bytes=1024))
convert(request, Output(Path(sys.argv[2]), fsync=False, threads=2))
stop.set()
thread.join()
print(peak, max(seen), "torch" in sys.modules)
"""


def sparse(folder: Path, rows: int, **changes: int) -> Path:
    """A checkpoint whose embeddings have that many rows; its values are holes, so making it costs nothing."""
    config = small(vocab_size=rows, **changes)
    inventory = compile_mapping("nemotron_h", config).table.inventory("hf")
    layout = layout_safetensors([NewTensor(n, d.dtype, d.shape, (whole(d.shape),)) for n, d in inventory.items()])
    folder.mkdir()
    for file, size in layout.file_sizes.items():
        with (folder / file).open("wb") as stream:
            stream.write(layout.framing[file][0].data)
            stream.truncate(size)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_peak_does_not_grow_with_tensors(tmp_path: Path, dtype: str) -> None:
    peaks = []
    for rows in (320_000, 1_280_000):
        source = sparse(tmp_path / f"hf{rows}", rows)
        size = (source / "model.safetensors").stat().st_size
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, str(source), str(tmp_path / f"out{rows}"), dtype],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, workers, torch = done.stdout.split()
        assert (workers, torch) == ("2", "False")
        promised = memory_of(prepare(Request(source, dtype=dtype or None)), threads=2).total
        assert int(peak) <= promised < 150e6
        peaks.append(int(peak))
    assert size > 300e6
    assert abs(peaks[1] - peaks[0]) < 12e6


def test_many_tensors_take_what_was_promised(tmp_path: Path) -> None:
    """There and back: the weights of 8,192 experts in two stacked tensors, and each by itself."""
    source = sparse(tmp_path / "hf", 320, n_routed_experts=8192, moe_intermediate_size=8)
    assert len(prepare(Request(source)).source.tensors) > 16_000
    for here, there in ((source, tmp_path / "megatron"), (tmp_path / "megatron", tmp_path / "again")):
        command = [sys.executable, "-c", WATCHED, str(here), str(there), ""]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        promised = memory_of(prepare(Request(here)), threads=2)
        assert promised.tables > 30e6
        assert int(done.stdout.split()[0]) <= promised.total


def test_fewer_threads_where_memory_is_bounded(tmp_path: Path) -> None:
    prepared = prepare(Request(write_hf(tmp_path / "hf", small())))
    free = memory_of(prepared, 8)
    assert workers_within(prepared, 8, None) == workers_within(prepared, 8, free.total) == 8
    assert workers_within(prepared, 8, free.total - 1) == 7
    least = memory_of(prepared, 1).total
    assert workers_within(prepared, 8, least) == 1
    with pytest.raises(ConvertError, match="which is more than") as caught:
        workers_within(prepared, 8, least - 1)
    assert caught.value.diagnostics[0].code == "MS740"


def test_the_bound_is_an_option(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "hf", small())
    with pytest.raises(ConvertError) as caught:
        convert(Request(source), Output(tmp_path / "out", max_memory=10**6))
    assert caught.value.diagnostics[0].code == "MS740"
    assert not (tmp_path / "out").exists()
    assert convert(Request(source), Output(tmp_path / "out", threads=4, max_memory=70 * 10**6)).copied.threads == 1
    runner = CliRunner()
    shown = runner.invoke(app, ["plan", str(source)]).output
    assert "memory    at most " in shown
    assert runner.invoke(app, ["convert", str(source), str(tmp_path / "x"), "--max-memory", "much"]).exit_code == 2
