"""Commands for reviews: diff, and the driver for git's own."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mapspec.cli.app import app
from mapspec.cli.options import OutputOpt, SourceUrlOpt, source_template, write_result

__all__ = ["diff", "driver"]


class DiffFormat(StrEnum):
    """How a comparison is written."""

    TEXT = "text"
    MD = "md"
    JSON = "json"
    GITHUB = "github"
    HTML = "html"


class FailOn(StrEnum):
    """From which level on a comparison fails."""

    BREAKING = "breaking"
    RISKY = "risky"
    ANY = "any"
    NEVER = "never"


@app.command()
def diff(
    base: Annotated[
        str | None,
        typer.Argument(
            help="Revision, folder or file before; `A..B` and `A...B` name both sides.",
            show_default="where this branch left the main branch",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Argument(help="Revision, folder or file after.", show_default="the working tree")
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option("--in", metavar="PATH", help="Folder or file of specs.", show_default="mappings, providers"),
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Level from which on the exit code is 1.")
    ] = FailOn.BREAKING,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="FINGERPRINT", help="Record a change as looked at and wanted.", show_default=False),
    ] = None,
    reason: Annotated[str, typer.Option(help="With --accept: why the change is right.", show_default=False)] = "",
    accepted: Annotated[
        Path | None,
        typer.Option(help="File of accepted changes.", show_default=".mapspec-accepted.yaml of the project"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON.", show_default=False)
    ] = None,
    format: Annotated[DiffFormat, typer.Option("--format", help="How the report is written.")] = DiffFormat.TEXT,
    output: OutputOpt = None,
    source_url: SourceUrlOpt = None,
) -> None:
    """Compare what specs do to the reference models, before and after: tensors, fields, converted checkpoints."""
    from mapspec.diff.accepted import ACCEPTED, read_accepted
    from mapspec.diff.accepted import accept as write_accepted
    from mapspec.diff.compare import compare
    from mapspec.diff.sides import open_sides
    from mapspec.render import diff_formats

    url = source_template(source_url)
    with ExitStack() as stack:
        old, new = open_sides(stack, base, head, within or ())
        path = accepted or new.project / ACCEPTED
        report = compare(old, new, read_accepted(path))
        if accept:
            for change in write_accepted(path, report.changes, accept, reason):
                typer.echo(f"accepted in {path}: {change.code} {change.fingerprint}  {change.message}")
            return
        if json_file is not None:
            json_file.write_text(diff_formats.FORMATS["json"](report) + "\n", encoding="utf-8")
        if format is DiffFormat.HTML:
            from mapspec.render.html.diff import diff_page

            write_result(diff_page(report, project=new.project, output=output, url=url), output)
        else:
            write_result(diff_formats.FORMATS[format.value](report), output)
    raise typer.Exit(1 if report.fails(None if fail_on is FailOn.NEVER else fail_on.value) else 0)


@app.command()
def driver(
    path: Annotated[str, typer.Argument(help="The file, relative to the top of the working tree.", show_default=False)],
    old_file: Annotated[Path, typer.Argument(help="Its content before.", show_default=False)],
    old_hex: Annotated[str, typer.Argument(help="Its object before.", show_default=False)],
    old_mode: Annotated[str, typer.Argument(help="Its mode before.", show_default=False)],
    new_file: Annotated[Path, typer.Argument(help="Its content after.", show_default=False)],
    new_hex: Annotated[str, typer.Argument(help="Its object after.", show_default=False)],
    new_mode: Annotated[str, typer.Argument(help="Its mode after.", show_default=False)],
    renamed: Annotated[list[str] | None, typer.Argument(help="Of a renamed file: its new name and more.")] = None,
) -> None:
    """Show what a change of one spec does, for `git diff`: git config diff.mapspec.command "mapspec driver"."""
    from mapspec.diff.driver import compare_file
    from mapspec.render.diff_text import render_diff_text

    del old_hex, old_mode, new_hex, new_mode  # git hands them over; the contents say all
    report = compare_file((renamed or [path])[0], old_file, new_file, Path.cwd())
    typer.echo(render_diff_text(report))
