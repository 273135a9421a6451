"""Commands for whoever writes specs: new, fmt, migrate, keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapspec.cli.app import app
from mapspec.cli.options import Format, FormatOpt, SpecPathsArg, complete_mapping, given_specs

if TYPE_CHECKING:
    from mapspec.authoring.fmt import Formatted
    from mapspec.authoring.migrate import Migrated
    from mapspec.diagnostics import Diagnostic

__all__ = ["fmt", "keys", "migrate", "new"]

CheckOpt = Annotated[bool, typer.Option("--check", help="Write nothing; show the difference and exit with 1.")]
DiffOpt = Annotated[bool, typer.Option("--diff", help="Write nothing; show the difference.")]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the variant, and of its files.", show_default=False)],
    like: Annotated[
        str,
        typer.Option(
            "--like",
            metavar="SPEC",
            help="Mapping that it resembles, by name or path.",
            show_default=False,
            autocompletion=complete_mapping,
        ),
    ],
    config: Annotated[Path, typer.Option(help="config.json of the model, or its folder.", show_default=False)],
    keys: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the model, or the list that `mapspec keys --full --format json` makes of it."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the files.")] = Path(),
) -> None:
    """Begin a variant of a known model: write its specs from its config and headers, and mark every guess."""
    from mapspec.authoring.new import start_variant
    from mapspec.render.authoring import render_started

    done = start_variant(name, like, config, keys, output)
    typer.echo(render_started(done, keys))
    raise typer.Exit(1 if done.findings else 0)


@app.command()
def fmt(
    paths: SpecPathsArg = None,
    check: CheckOpt = False,
    diff: DiffOpt = False,
) -> None:
    """Write specs in canonical form: order of keys, spacing, quotes, named holes. Comments and meaning stay."""
    from mapspec.authoring.fmt import format_files

    done = format_files(given_specs(paths))
    changed = [file for file in done if file.changed]
    _rewrite(changed, "formatted", check, diff, [file.finding() for file in changed])
    if not changed:
        typer.echo(f"{len(done)} spec{'s' if len(done) != 1 else ''} in canonical form")


@app.command()
def migrate(
    paths: SpecPathsArg = None,
    check: CheckOpt = False,
    diff: DiffOpt = False,
) -> None:
    """Bring specs in an older spelling up to date. Comments and layout stay."""
    from mapspec.authoring.migrate import migrate_files

    done = migrate_files(given_specs(paths))
    changed = [file for file in done if file.before != file.after]
    _rewrite(changed, "migrated", check, diff, [finding for file in changed for finding in file.found])
    if not changed:
        typer.echo(f"{len(done)} spec{'s' if len(done) != 1 else ''} up to date, nothing to migrate")


def _rewrite(
    changed: Sequence[Formatted | Migrated], verb: str, check: bool, diff: bool, found: Sequence[Diagnostic]
) -> None:
    """Write what changed, or show it; with `check`, fail with these findings."""
    from mapspec.render.findings import render_findings, shorten

    for file in changed:
        if check or diff:
            typer.echo(file.diff)
        else:
            file.path.write_text(file.after, encoding="utf-8", newline="\n")
            typer.echo(f"{verb} {shorten(str(file.path))}")
    if check and changed:
        typer.echo("\n" + render_findings(found))
        raise typer.Exit(1)


@app.command()
def keys(
    source: Annotated[
        Path, typer.Argument(help="Checkpoint folder of either kind, or a safetensors file.", show_default=False)
    ],
    full: Annotated[bool, typer.Option("--full", help="Every tensor by itself, not alike ones as a pattern.")] = False,
    format: FormatOpt = Format.TEXT,
) -> None:
    """List the tensors of a checkpoint from its headers: names, shapes, dtypes. Needs no spec."""
    from mapspec.keys import read_keys
    from mapspec.render.keys import render_keys

    typer.echo(render_keys(read_keys(source), format.value, full=full))
