"""What `mapspec new` prints."""

from __future__ import annotations

from pathlib import Path

from mapspec.authoring.new import Started
from mapspec.render.findings import count_line, render_findings, shorten

__all__ = ["render_started"]


def render_started(done: Started, keys: Path | None) -> str:
    """The files, the guesses in them, what is open, and what to do next."""
    lines = [f"wrote {shorten(str(path))}  {about}" for path, about in done.files.items()]
    lines += ["", _tensors(done)]
    if done.guesses:
        lines += ["", "guesses, to be read and confirmed:"]
        lines += [f"  {shorten(guess.span.path)}:{guess.span.line}  {guess.what}" for guess in done.guesses]
    lines.append("")
    if done.findings:
        lines.append(render_findings(done.findings))
    else:
        lines += [f"lint: {count_line(())}", *_next(done, keys)]
    return "\n".join(lines)


def _tensors(done: Started) -> str:
    if done.tensors is None:
        blocked = any(finding.code != "MS863" for finding in done.findings)
        why = "the config has to fit first, see below" if blocked else "give the checkpoint with --keys"
        return f"no tensors were looked at: {why}"
    if not done.unexplained:
        return f"all {done.tensors:,} tensors of the checkpoint are mapped"
    return f"of the checkpoint's {done.tensors:,} tensors and those that rules expect, {done.unexplained:,} are open"


def _next(done: Started, keys: Path | None) -> list[str]:
    mapping = shorten(str(next(iter(done.files))))
    source = shorten(str(keys)) if keys is not None and keys.is_dir() else "CHECKPOINT"
    return ["", f"next: mapspec plan {source} --spec {mapping}"]
