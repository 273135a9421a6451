"""Commands over checkpoints: convert, plan, verify."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mapspec.cli.app import app
from mapspec.cli.options import (
    Device,
    FindingFormat,
    FindingFormatOpt,
    FlavourOpt,
    Format,
    FormatOpt,
    OutputOpt,
    PageFormat,
    PageFormatOpt,
    ProgressMode,
    SetOpt,
    SourceArg,
    SourceUrlOpt,
    SpecOpt,
    VersionOpt,
    parse_iteration,
    parse_place,
    parse_size,
    source_template,
    write_result,
)
from mapspec.cli.request import RequestOptions, spread
from mapspec.cli.unfinished import (
    early_reading,
    mention_leftovers,
    say_done,
    spoken_once,
    terminable,
    threads_per_rank,
)

__all__ = ["convert", "plan", "verify"]


@app.command()
@spread
def convert(
    source: SourceArg,
    destination: Annotated[
        Path,
        typer.Argument(help="Folder or URL to make.", show_default=False, parser=parse_place, metavar="DESTINATION"),
    ],
    wanted: RequestOptions,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors shard, for example 5GB.")] = "5GB",
    iteration: Annotated[str, typer.Option(help="Number of the iter_* folder, or `release`.")] = "0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the destination if it exists.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run was cut off, if there is one.")
    ] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="With --resume: read finished files again and compare digests.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep finished files after an error.")] = True,
    threads: Annotated[
        int | None, typer.Option(help="How many copy at a time, in each process. Default: by file system.", min=1)
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Bound for memory, that of workers included, for example 300MB; `plan` prints the need."),
    ] = None,
    progress: Annotated[ProgressMode, typer.Option(help="Progress on stderr.")] = ProgressMode.AUTO,
    format: FormatOpt = Format.TEXT,
) -> None:
    """Convert a checkpoint, in either direction. The result appears complete or not at all."""
    with early_reading(source, resume, os.environ):  # first of all: what follows takes its time
        from mapspec.convert import Output, convert
        from mapspec.gloo_team import team_of
        from mapspec.io.remote import is_url
        from mapspec.progress import progress_for
        from mapspec.render.summary import render_converted

        output = Output(
            destination,
            overwrite,
            parse_size(max_shard_size),
            None if iteration == "release" else parse_iteration(iteration),
            threads or threads_per_rank(os.environ),
            resume=resume,
            recheck=recheck,
            keep=keep,
            max_memory=None if max_memory is None else parse_size(max_memory, "--max-memory"),
        )
        request = wanted.request(source)
        rank = int(os.environ.get("RANK", "0"))
        if not resume and rank == 0 and not is_url(destination):
            mention_leftovers(destination)
        with terminable(rank), team_of(os.environ) as team, spoken_once(rank):
            done = convert(request, output, progress_for(sys.stderr, progress.value, rank=rank), team)
        if rank == 0:
            say_done(render_converted(done, format.value))


@app.command()
@spread
def plan(
    source: SourceArg,
    wanted: RequestOptions,
    format: PageFormatOpt = PageFormat.TEXT,
    output: OutputOpt = None,
    source_url: SourceUrlOpt = None,
) -> None:
    """Show what `convert` would do, from the headers alone: every row, every value step, all bytes."""
    from mapspec.prepare import prepare
    from mapspec.render.plan import render_plan

    url = source_template(source_url)
    prepared = prepare(wanted.request(source)).require()
    if format is PageFormat.HTML:
        from mapspec.render.html.reports import plan_page

        write_result(plan_page(prepared, output=output, url=url), output)
    else:
        write_result(render_plan(prepared, format.value), output)


@app.command()
def verify(
    left: SourceArg,
    right: Annotated[
        Path | None,
        typer.Argument(
            help="The other one. Without it: LEFT against its own certificate.", parser=parse_place, metavar="[RIGHT]"
        ),
    ] = None,
    spec: SpecOpt = None,
    flavour: FlavourOpt = None,
    set_: SetOpt = None,
    megatron_core: VersionOpt = "0.19",
    logits: Annotated[
        bool, typer.Option("--logits", help="Run both models on the same tokens instead of comparing bits.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="With --logits: tokens in each sequence.", min=1)] = 67,
    seed: Annotated[int, typer.Option(help="With --logits: seed of the tokens.")] = 0,
    device: Annotated[Device, typer.Option(help="With --logits: where the models run.")] = Device.AUTO,
    progress: Annotated[ProgressMode, typer.Option(help="With one folder: progress on stderr.")] = ProgressMode.AUTO,
    format: FindingFormatOpt = FindingFormat.TEXT,
) -> None:
    """Check a checkpoint against its certificate, or compare two: bit for bit, or by what they compute (--logits)."""
    if right is None:
        from mapspec.intact import check_intact
        from mapspec.progress import progress_for
        from mapspec.render.verified import render_checked

        if logits:
            raise typer.BadParameter("--logits compares two checkpoints; name the other one", param_hint="RIGHT")
        checked = check_intact(left, progress=progress_for(sys.stderr, progress.value))
        typer.echo(render_checked(checked, format.value))
        raise typer.Exit(1 if checked.findings else 0)
    if logits:
        from mapspec.choose import parse_pairs
        from mapspec.logits import compare_logits, render_logits
        from mapspec.quiet import quiet_libraries

        with quiet_libraries():
            report = compare_logits(
                left, right, spec=spec, flavours=parse_pairs(flavour or (), "--flavour"), sets=tuple(set_ or ()),
                tokens=tokens, seed=seed, device=device.value,
            )  # fmt: skip
        typer.echo(render_logits(report, format.value))
        raise typer.Exit(1 if report.findings else 0)
    from mapspec.render.verified import render_verified
    from mapspec.verify import verify

    options = RequestOptions(spec=spec, flavour=flavour, sets=set_, megatron_core=megatron_core)
    done = verify(left, right, options.request(left))
    typer.echo(render_verified(done, format.value))
    raise typer.Exit(1 if done.findings else 0)
