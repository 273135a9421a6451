"""What the checks found: the runner that keeps one from hiding the rest, and the summary for people."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Check", "Runner", "Skip", "Summary", "read_results", "render_summary", "write_result"]

type Numbers = Mapping[str, object]


class Skip(Exception):  # noqa: N818 (it is no error: the machine lacks what the check is about)
    """Raised by a check that has nothing to check on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        group, name: for example `tiny`, `load`.
        state: `passed`, `failed`, `skipped`, or `not run` because a check that it builds on did not pass.
        numbers: what was measured, for the summary.
        note: why it did not pass; for a failed check the error with the end of its traceback.
        seconds: wall time.
    """

    group: str
    name: str
    state: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the run may still be called successful."""
        return self.state in ("passed", "skipped")


class Runner:
    """Runs the checks of a group. Whatever a check raises is its result, and the next one runs."""

    def __init__(self, group: str, report: Callable[[Check], None]) -> None:
        self.group = group
        self.report = report
        self.states: dict[str, str] = {}

    def check(self, name: str, function: Callable[[], Numbers | None], needs: Sequence[str] = ()) -> bool:
        """Run one check and report it; whether it passed. `needs` names checks of the group that it builds on."""
        began = time.monotonic()
        numbers: Numbers | None = None
        note = ""
        missing = [other for other in needs if self.states.get(other) != "passed"]
        if missing:
            state, note = "not run", f"needs `{missing[0]}`"
        else:
            try:
                numbers = function()
                state = "passed"
            except Skip as reason:
                state, note = "skipped", str(reason)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                # SystemExit too: a package that calls exit() while it is imported must not end the run.
                state, note = "failed", _told(error)
                numbers = getattr(error, "numbers", None)
        self.states[name] = state
        shown = {key: _number(value) for key, value in (numbers or {}).items()}
        self.report(Check(self.group, name, state, shown, note, time.monotonic() - began))
        return state == "passed"


def _told(error: BaseException) -> str:
    """The error and where it came from."""
    last = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = "\n".join(f"  {Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    return f"{last}\n{places}" if places else last


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}"


def write_result(path: Path, check: Check) -> None:
    """Append a check to a file of JSON lines, at once: the process may not live long."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(check)) + "\n")


def read_results(path: Path) -> list[Check]:
    """The checks of a file of JSON lines; a line that was cut off is left out."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            out.append(Check(**json.loads(line)))
        except ValueError:
            continue
    return out


@dataclass(frozen=True, slots=True)
class Summary:
    """A run. `versions` is ordered; `setup` lists what was installed or compiled, with seconds."""

    backend: str
    versions: Mapping[str, str]
    checks: tuple[Check, ...]
    seconds: float
    setup: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether something was checked and nothing went wrong."""
        return any(check.state == "passed" for check in self.checks) and all(check.good for check in self.checks)


def render_summary(summary: Summary, format: str = "text") -> str:
    """The summary as text for a terminal, or as Markdown."""
    return _markdown(summary) if format == "md" else _text(summary)


def _counted(checks: Iterable[Check]) -> str:
    counts: dict[str, int] = {}
    for check in checks:
        counts[check.state] = counts.get(check.state, 0) + 1
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or "no checks"


def _facts(check: Check) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in check.numbers.items())
    first = check.note.splitlines()[0] if check.note else ""
    return "; ".join(part for part in (facts, first) if part)


def _text(summary: Summary) -> str:
    lines = [f"backend {summary.backend}", *(f"{name:<20} {value}" for name, value in summary.versions.items()), ""]
    lines += [f"setup: {title} ({seconds:.0f} s)" for title, seconds in summary.setup]
    for check in summary.checks:
        lines.append(f"{check.state:<8} {check.group + ' ' + check.name:<28} {check.seconds:6.1f} s  {_facts(check)}")
        if check.state == "failed":
            lines += [f"         {line}" for line in check.note.splitlines()[1:]]
    lines += ["", *summary.notes, f"{_counted(summary.checks)}; {summary.seconds:.0f} s"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown(summary: Summary) -> str:
    lines = ["| | |", "| --- | --- |", f"| backend | {_cell(summary.backend)} |"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in summary.versions.items()]
    lines += ["", f"{_counted(summary.checks)}; {summary.seconds:.0f} seconds.", ""]
    lines += [f"{note}\n" for note in summary.notes]
    if summary.setup:
        lines += [*(f"* {_cell(title)}: {seconds:.0f} s" for title, seconds in summary.setup), ""]
    lines += ["| check | result | seconds | numbers |", "| --- | --- | --- | --- |"]
    for check in summary.checks:
        cells = (f"{check.group}: {check.name}", check.state, f"{check.seconds:.1f}", _facts(check))
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    for check in summary.checks:
        if check.state == "failed":
            lines += ["", f"### {check.group}: {check.name}", "", "```text", check.note, "```"]
    return "\n".join(lines) + "\n"
