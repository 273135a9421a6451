"""Commands over specs: show, resolve, provider, lint, schema, rule."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from mapspec.cli.app import app
from mapspec.cli.options import (
    FindingFormat,
    FindingFormatOpt,
    FlavourOpt,
    Format,
    FormatOpt,
    OutputOpt,
    PadOpt,
    PageFormat,
    PageFormatOpt,
    SetOpt,
    SourceUrlOpt,
    SpecPathsArg,
    VersionOpt,
    compile_from,
    complete_mapping,
    complete_provider,
    given_specs,
    source_template,
    write_result,
)
from mapspec.cli.request import RequestOptions
from mapspec.render.findings import render_findings

__all__ = ["lint", "provider", "resolve", "rule", "schema", "show"]


@app.command()
def show(
    spec: Annotated[
        str, typer.Argument(help="Mapping, by name or path.", show_default=False, autocompletion=complete_mapping)
    ],
    config: Annotated[Path, typer.Option(help="config.json of the model, or its folder.", show_default=False)],
    flavour: FlavourOpt = None,
    set_: SetOpt = None,
    megatron_core: VersionOpt = "0.19",
    padded_vocab_size: PadOpt = None,
    format: PageFormatOpt = PageFormat.TEXT,
    output: OutputOpt = None,
    source_url: SourceUrlOpt = None,
) -> None:
    """Show the rules of a mapping for one model: names, shapes, how parallelism cuts them, where they are written."""
    from mapspec.render.show import render_table

    url = source_template(source_url)
    mapping = compile_from(spec, config, flavour, set_, megatron_core, padded_vocab_size)
    if format is PageFormat.HTML:
        from mapspec.render.html.reports import show_page

        path = config / "config.json" if config.is_dir() else config
        write_result(show_page(mapping, path, output=output, url=url), output)
    else:
        write_result(render_table(mapping.table, mapping.proof, format.value), output)


@app.command()
def resolve(
    spec: Annotated[
        str, typer.Argument(help="Mapping, by name or path.", show_default=False, autocompletion=complete_mapping)
    ],
    name: Annotated[str, typer.Argument(help="Tensor name, from either side.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="config.json of the model, or its folder.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of either kind; shows where the bytes lie.", show_default=False)
    ] = None,
    flavour: FlavourOpt = None,
    set_: SetOpt = None,
    megatron_core: VersionOpt = "0.19",
    format: FormatOpt = Format.TEXT,
) -> None:
    """Say everything about one tensor: rule and line, indices, shapes, pieces, bytes."""
    from mapspec.mapping import CompiledMapping
    from mapspec.prepare import prepare
    from mapspec.render.show import render_resolutions

    if checkpoint is not None:
        options = RequestOptions(spec=spec, reference=config, flavour=flavour, sets=set_, megatron_core=megatron_core)
        prepared = prepare(options.request(checkpoint))
        found = CompiledMapping(prepared.table).resolve(name)
        typer.echo(render_resolutions(found, format.value, prepared.source.tensors))
        return
    if config is None:
        raise typer.BadParameter("give the model with --config or --checkpoint", param_hint="--config")
    mapping = compile_from(spec, config, flavour, set_, megatron_core, None)
    typer.echo(render_resolutions(mapping.resolve(name), format.value))


@app.command()
def provider(
    spec: Annotated[
        str,
        typer.Argument(help="Provider spec, by name or path.", show_default=False, autocompletion=complete_provider),
    ],
    config: Annotated[Path, typer.Option(help="config.json of the model, or its folder.", show_default=False)],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a provider field.")
    ] = None,
    inventory: Annotated[
        bool, typer.Option("--inventory", help="List the parameters of a rank of the GPU model instead; needs no GPU.")
    ] = False,
    tp: Annotated[int, typer.Option(help="With --inventory: tensor parallel size.", min=1)] = 1,
    ep: Annotated[int, typer.Option(help="With --inventory: expert parallel size.", min=1)] = 1,
    etp: Annotated[int | None, typer.Option(help="With --inventory: expert tensor parallel size.", min=1)] = None,
    pp: Annotated[int, typer.Option(help="With --inventory: pipeline parallel size.", min=1)] = 1,
    pp_rank: Annotated[int | None, typer.Option(help="With --inventory: one pipeline stage only.", min=0)] = None,
    format: FormatOpt = Format.TEXT,
) -> None:
    """Show the Megatron-Core fields of a model, each with its value, its origin and the reason for it."""
    if inventory:
        from mapspec.render.inventory import inventory_report

        report = inventory_report(spec, config, set_ or (), format.value, tp=tp, ep=ep, etp=etp, pp=pp, pp_rank=pp_rank)
        typer.echo(report, nl=False)
        return
    from mapspec.provider.render import provider_report

    typer.echo(provider_report(spec, config, set_ or (), format.value), nl=False)


@app.command()
def lint(
    paths: SpecPathsArg = None,
    format: FindingFormatOpt = FindingFormat.TEXT,
) -> None:
    """Check mapping and provider specs, and prove them on their reference configs. Needs no checkpoint."""
    from mapspec.lint import lint
    from mapspec.provider.lint import lint_provider

    files = given_specs(paths)
    found = lint(files, others={"Provider": lint_provider})
    if found or format is FindingFormat.JSON:
        typer.echo(render_findings(found, format.value))
    else:
        typer.echo(f"{len(files)} spec{'s' if len(files) != 1 else ''} checked, no findings")
    raise typer.Exit(1 if found else 0)


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write. Default: stdout.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON Schema of the spec language, for editors."""
    from mapspec.schema import schema_text

    if output is None:
        typer.echo(schema_text(), nl=False)
    else:
        output.write_text(schema_text(), encoding="utf-8")


@app.command()
def rule(
    code: Annotated[
        str | None, typer.Argument(help="A code such as MS101. Default: list all.", show_default=False)
    ] = None,
) -> None:
    """Explain a code that mapspec prints."""
    from mapspec.codes import CODES
    from mapspec.diagnostics import Code, nearest
    from mapspec.diff.codes import DIFF_CODES

    codes: dict[str, Code] = {**CODES, **DIFF_CODES}
    if code is None:
        for key in sorted(codes):
            typer.echo(f"{key}  {codes[key].name}")
        return
    entry = codes.get(code.upper())
    if entry is None:
        hint = nearest(code.upper(), codes)
        raise typer.BadParameter(f"there is no code `{code}`" + (f"; did you mean {hint}?" if hint else ""))
    typer.echo(f"{code.upper()} {entry.name}\n\n{entry.what}\n\nWhat to do: {entry.fix}")
    for title, example in (("Wrong", entry.wrong), ("Right", entry.right)):
        if example:
            typer.echo(f"\n{title}:\n\n{textwrap.indent(example.strip(), '    ')}")
