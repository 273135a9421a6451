"""The command line: arguments -> calls -> a renderer -> an exit code. No logic of its own.

Results go to stdout; progress and findings that stop a command go to stderr. Exit codes: 0 done, 1 findings,
2 cannot start, 3 bug in mapspec, 130 interrupted.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from mapspec._version import __version__
from mapspec.errors import MapspecError
from mapspec.render.findings import render_findings

if TYPE_CHECKING:
    from mapspec.mapping import CompiledMapping
    from mapspec.prepare import Request

__all__ = ["app", "main"]

app = typer.Typer(
    name="mapspec",
    help="Move model weights between Hugging Face and Megatron-Core checkpoints. The mapping is data: YAML specs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


class Format(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"
    MD = "md"


class FindingFormat(StrEnum):
    """How findings are written."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"


class Side(StrEnum):
    """The side that is written."""

    HF = "hf"
    MEGATRON = "megatron"


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ProgressMode(StrEnum):
    """How progress is shown on stderr."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


SourceArg = Annotated[Path, typer.Argument(help="Checkpoint folder, of either kind.", show_default=False)]
ToOpt = Annotated[Side | None, typer.Option("--to", help="Side to convert to. Default: the one the source is not.")]
SpecOpt = Annotated[str | None, typer.Option("--spec", help="Mapping, by name or path. Default: by the architecture.")]
ReferenceOpt = Annotated[
    Path | None,
    typer.Option(help="Hugging Face folder or config.json whose config, shards and side files the result takes."),
]
FlavourOpt = Annotated[
    list[str] | None, typer.Option("--flavour", metavar="NAME=CHOICE", help="Spelling of names; see `mapspec show`.")
]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of config.json, for this run.")
]
DtypeOpt = Annotated[str | None, typer.Option(help="Cast floating tensors whose role allows it. Default: no casts.")]
CastOpt = Annotated[
    list[str] | None, typer.Option("--cast", metavar="ROLE=DTYPE", help="Cast the tensors of one role.")
]
VersionOpt = Annotated[
    str, typer.Option("--megatron-core", metavar="X.Y", help="Version of Megatron-Core that flavours follow.")
]
PadOpt = Annotated[
    int | None, typer.Option("--padded-vocab-size", help="Rows of the vocabulary on the Megatron side. Default: as is.")
]
RunConfigOpt = Annotated[
    bool, typer.Option("--run-config/--no-run-config", help="Write run_config.yaml, for Megatron-Bridge.")
]
FormatOpt = Annotated[Format, typer.Option("--format", help="How the result is written.")]

FindingFormatOpt = Annotated[FindingFormat, typer.Option("--format", help="How findings are written.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mapspec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def convert(
    source: SourceArg,
    destination: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    to: ToOpt = None,
    spec: SpecOpt = None,
    reference: ReferenceOpt = None,
    flavour: FlavourOpt = None,
    set_: SetOpt = None,
    dtype: DtypeOpt = None,
    cast: CastOpt = None,
    megatron_core: VersionOpt = "0.19",
    padded_vocab_size: PadOpt = None,
    run_config: RunConfigOpt = True,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors shard, for example 5GB.")] = "5GB",
    iteration: Annotated[str, typer.Option(help="Number of the iter_* folder, or `release`.")] = "0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the destination if it exists.")] = False,
    threads: Annotated[int | None, typer.Option(help="Copying threads. Default: one per core.", min=1)] = None,
    progress: Annotated[ProgressMode, typer.Option(help="Progress on stderr.")] = ProgressMode.AUTO,
    format: FormatOpt = Format.TEXT,
) -> None:
    """Convert a checkpoint, in either direction. The result appears complete or not at all."""
    from mapspec.convert import Output, convert
    from mapspec.progress import progress_for
    from mapspec.render.plan import render_converted

    output = Output(
        destination,
        overwrite,
        _size(max_shard_size),
        None if iteration == "release" else _iteration(iteration),
        threads,
    )
    request = _request(
        source, to, spec, reference, flavour, set_, dtype, cast, megatron_core, padded_vocab_size, run_config
    )
    done = convert(request, output, progress_for(sys.stderr, progress.value))
    typer.echo(render_converted(done, format.value))


@app.command()
def plan(
    source: SourceArg,
    to: ToOpt = None,
    spec: SpecOpt = None,
    reference: ReferenceOpt = None,
    flavour: FlavourOpt = None,
    set_: SetOpt = None,
    dtype: DtypeOpt = None,
    cast: CastOpt = None,
    megatron_core: VersionOpt = "0.19",
    padded_vocab_size: PadOpt = None,
    run_config: RunConfigOpt = True,
    format: FormatOpt = Format.TEXT,
) -> None:
    """Show what `convert` would do, from the headers alone: every row, every value step, all bytes."""
    from mapspec.prepare import prepare
    from mapspec.render.plan import render_plan

    request = _request(
        source, to, spec, reference, flavour, set_, dtype, cast, megatron_core, padded_vocab_size, run_config
    )
    typer.echo(render_plan(prepare(request).require(), format.value))


@app.command()
def verify(
    left: Annotated[Path, typer.Argument(help="Checkpoint folder, of either kind.", show_default=False)],
    right: Annotated[Path, typer.Argument(help="The other one.", show_default=False)],
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
    format: FindingFormatOpt = FindingFormat.TEXT,
) -> None:
    """Compare two checkpoints, across kinds: bit for bit, or by what their models compute (--logits)."""
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
    from mapspec.render.plan import render_verified
    from mapspec.verify import verify

    request = _request(left, None, spec, None, flavour, set_, None, None, megatron_core, None)
    done = verify(left, right, request)
    typer.echo(render_verified(done, format.value))
    raise typer.Exit(1 if done.findings else 0)


@app.command()
def show(
    spec: Annotated[str, typer.Argument(help="Mapping, by name or path.", show_default=False)],
    config: Annotated[Path, typer.Option(help="config.json of the model, or its folder.", show_default=False)],
    flavour: FlavourOpt = None,
    set_: SetOpt = None,
    megatron_core: VersionOpt = "0.19",
    padded_vocab_size: PadOpt = None,
    format: FormatOpt = Format.TEXT,
) -> None:
    """Show the rules of a mapping for one model: names, shapes, how parallelism cuts them, where they are written."""
    from mapspec.render.show import render_table

    mapping = _compiled(spec, config, flavour, set_, megatron_core, padded_vocab_size)
    typer.echo(render_table(mapping.table, mapping.proof, format.value))


@app.command()
def resolve(
    spec: Annotated[str, typer.Argument(help="Mapping, by name or path.", show_default=False)],
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
        request = _request(checkpoint, None, spec, config, flavour, set_, None, None, megatron_core, None)
        prepared = prepare(request)
        found = CompiledMapping(prepared.table).resolve(name)
        typer.echo(render_resolutions(found, format.value, prepared.source.tensors))
        return
    if config is None:
        raise typer.BadParameter("give the model with --config or --checkpoint", param_hint="--config")
    mapping = _compiled(spec, config, flavour, set_, megatron_core, None)
    typer.echo(render_resolutions(mapping.resolve(name), format.value))


@app.command()
def provider(
    spec: Annotated[str, typer.Argument(help="Provider spec, by name or path.", show_default=False)],
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
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Spec files and folders.", show_default="mappings providers")
    ] = None,
    format: FindingFormatOpt = FindingFormat.TEXT,
) -> None:
    """Check mapping and provider specs, and prove them on their reference configs. Needs no checkpoint."""
    from mapspec.choose import spec_files
    from mapspec.lint import lint
    from mapspec.provider.lint import lint_provider

    given = paths or [Path("mappings"), Path("providers")]
    for path in given:
        if not path.exists():
            raise typer.BadParameter(f"there is no `{path}`", param_hint="PATHS")
    files = spec_files(given)
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
    from mapspec.diagnostics import nearest

    if code is None:
        for key in sorted(CODES):
            typer.echo(f"{key}  {CODES[key].name}")
        return
    entry = CODES.get(code.upper())
    if entry is None:
        hint = nearest(code.upper(), CODES)
        raise typer.BadParameter(f"there is no code `{code}`" + (f"; did you mean {hint}?" if hint else ""))
    typer.echo(f"{code.upper()} {entry.name}\n\n{entry.what}\n\nWhat to do: {entry.fix}")
    for title, example in (("Wrong", entry.wrong), ("Right", entry.right)):
        if example:
            typer.echo(f"\n{title}:\n\n{textwrap.indent(example.strip(), '    ')}")


# --- arguments -------------------------------------------------------------------------------------------------


def _request(
    source: Path, to: Side | None, spec: str | None, reference: Path | None, flavour: list[str] | None,
    sets: list[str] | None, dtype: str | None, cast: list[str] | None, version: str, padded: int | None,
    run_config: bool = True,
) -> Request:  # fmt: skip
    from mapspec.choose import parse_pairs
    from mapspec.prepare import Request

    return Request(
        source=source,
        to=None if to is None else to.value,
        spec=spec,
        reference=reference,
        flavours=parse_pairs(flavour or (), "--flavour"),
        sets=tuple(sets or ()),
        dtype=dtype,
        casts=parse_pairs(cast or (), "--cast"),
        megatron_version=_megatron(version),
        padded_vocab_size=padded,
        run_config=run_config,
    )


def _compiled(
    spec: str, config: Path, flavour: list[str] | None, sets: list[str] | None, version: str, padded: int | None
) -> CompiledMapping:
    from mapspec.bind import Choices
    from mapspec.choose import apply_sets, parse_pairs
    from mapspec.io.json_config import read_config
    from mapspec.mapping import compile_mapping

    path = config / "config.json" if config.is_dir() else config
    values = apply_sets(read_config(path), tuple(sets or ()))
    choices = Choices(parse_pairs(flavour or (), "--flavour"), _megatron(version), padded)
    return compile_mapping(spec, values, choices)


def _megatron(text: str) -> tuple[int, int]:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise typer.BadParameter(f"`{text}` is no version; write for example 0.19", param_hint="--megatron-core")
    return int(parts[0]), int(parts[1])


def _iteration(text: str) -> int:
    if not text.isdigit():
        raise typer.BadParameter(f"`{text}` is neither a number nor `release`", param_hint="--iteration")
    return int(text)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _size(text: str) -> int:
    number = text.rstrip("BbKkMmGgTtIi ")
    unit = text[len(number) :].strip().upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise typer.BadParameter(f"`{text}` is no size; write for example 5GB", param_hint="--max-shard-size")
    return int(float(number) * _UNITS[unit])


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        app()
    except MapspecError as error:
        typer.echo(render_findings(error.diagnostics), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was published", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:
        with tempfile.NamedTemporaryFile("w", prefix="mapspec-", suffix=".log", delete=False) as log:
            log.write(traceback.format_exc())
        typer.echo(f"this is a bug in mapspec; please report it with the log {log.name}", err=True)
        sys.exit(3)
    sys.exit(0)
