"""Checks run in processes of their own: one that dies, or hangs, takes none of the others with it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gpu_results import Check, read_results

__all__ = ["run_group"]


def run_group(
    group: str, commands: Sequence[Sequence[str]], results: Sequence[Path], *,
    environment: Mapping[str, str], logs: Path, timeout_s: float,
) -> list[Check]:  # fmt: skip
    """Run the processes of a group, one per rank, until all have ended; the checks that they reported.

    A process that ends badly, or is still there after `timeout_s`, becomes a check of its own, with the end of its
    log. The others are ended then: ranks that wait for it would wait for ever.
    """
    began = time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    paths = [logs / f"{group}.{rank}.log" for rank in range(len(commands))]
    processes: list[subprocess.Popen[bytes]] = []
    ended: str | None = None
    guilty = 0
    try:
        for command, path in zip(commands, paths, strict=True):
            with path.open("wb") as log:
                processes.append(
                    subprocess.Popen(list(command), env=dict(environment), stdout=log, stderr=subprocess.STDOUT)
                )
        while ended is None:
            codes = [process.poll() for process in processes]
            bad = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            if bad:
                guilty = bad[0]
                ended = f"rank {guilty} ended with code {codes[guilty]}"
            elif all(code == 0 for code in codes):
                break
            elif time.monotonic() - began > timeout_s:
                guilty = codes.index(None)
                ended = f"rank {guilty} was still running after {timeout_s:.0f} s"
            else:
                time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    checks = _merged([read_results(path) for path in results])
    if ended is not None:
        after = f", after `{checks[-1].name}`" if checks else ", before its first check"
        tail = "\n".join(paths[guilty].read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        checks.append(Check(group, "process", "failed", {}, f"{ended}{after}\n{tail}", time.monotonic() - began))
    return checks


def _merged(ranks: Sequence[Sequence[Check]]) -> list[Check]:
    """The first rank's checks; where another rank's did not pass, that one's, with its rank in the note."""
    out = list(ranks[0]) if ranks else []
    for rank, checks in enumerate(ranks[1:], start=1):
        for check in checks:
            at = next((i for i, mine in enumerate(out) if mine.name == check.name), None)
            if not check.good and (at is None or out[at].good):
                told = replace(check, note=f"rank {rank}: {check.note}")
                if at is None:
                    out.append(told)
                else:
                    out[at] = told
    return out
