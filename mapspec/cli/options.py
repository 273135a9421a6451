"""Options that several commands share, and what becomes of their values."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mapspec.mapping import CompiledMapping

__all__ = [
    "Device",
    "FindingFormat",
    "FindingFormatOpt",
    "FlavourOpt",
    "Format",
    "FormatOpt",
    "OutputOpt",
    "PadOpt",
    "PageFormat",
    "PageFormatOpt",
    "ProgressMode",
    "SetOpt",
    "SourceArg",
    "SourceUrlOpt",
    "SpecOpt",
    "SpecPathsArg",
    "VersionOpt",
    "compile_from",
    "complete_flavour",
    "complete_mapping",
    "complete_provider",
    "given_specs",
    "parse_iteration",
    "parse_place",
    "parse_size",
    "parse_version",
    "source_template",
    "write_result",
]


class Format(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"
    MD = "md"


class PageFormat(StrEnum):
    """How reports are written that people also read as a page."""

    TEXT = "text"
    JSON = "json"
    MD = "md"
    HTML = "html"


class FindingFormat(StrEnum):
    """How findings are written."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"


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


def parse_place(text: str) -> Path:
    from mapspec.io.remote import located

    return located(text)


SourceArg = Annotated[
    Path,
    typer.Argument(
        help="Checkpoint folder or URL, of either kind.", show_default=False, parser=parse_place, metavar="CHECKPOINT"
    ),
]


def complete_mapping(incomplete: str) -> list[str]:
    """Names of mappings that begin so."""
    from mapspec.documents import available

    return sorted(name for name in available("mappings") if name.startswith(incomplete))


def complete_provider(incomplete: str) -> list[str]:
    """Names of provider specs that begin so."""
    from mapspec.documents import available

    return sorted(name for name in available("providers") if name.startswith(incomplete))


def complete_flavour(incomplete: str) -> list[str]:
    """`NAME=CHOICE` of every mapping that begin so."""
    from mapspec.documents import available
    from mapspec.text import read_yaml

    found = set()
    for path in available("mappings").values():
        for name, flavour in (read_yaml(path).data.get("flavours") or {}).items():
            found |= {f"{name}={choice}" for choice in flavour.get("choices") or ()}
    return sorted(text for text in found if text.startswith(incomplete))


SpecOpt = Annotated[
    str | None,
    typer.Option(
        "--spec", help="Mapping, by name or path. Default: by the architecture.", autocompletion=complete_mapping
    ),
]
FlavourOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--flavour",
        metavar="NAME=CHOICE",
        help="Spelling of names; see `mapspec show`.",
        autocompletion=complete_flavour,
    ),
]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of config.json, for this run.")
]
VersionOpt = Annotated[
    str, typer.Option("--megatron-core", metavar="X.Y", help="Version of Megatron-Core that flavours follow.")
]
PadOpt = Annotated[
    int | None, typer.Option("--padded-vocab-size", help="Rows of the vocabulary on the Megatron side. Default: as is.")
]
SpecPathsArg = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[PATH]...", help="Spec files and folders.", show_default="mappings providers"),
]
FormatOpt = Annotated[Format, typer.Option("--format", help="How the result is written.")]

PageFormatOpt = Annotated[
    PageFormat, typer.Option("--format", help="How the result is written; html is one page that needs no network.")
]
OutputOpt = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write. Default: stdout.", show_default=False)
]
SourceUrlOpt = Annotated[
    str | None,
    typer.Option(
        "--source-url",
        metavar="TEMPLATE",
        help="With --format html: links to spec lines, with {path} and {line}. Default: relative paths.",
    ),
]

FindingFormatOpt = Annotated[FindingFormat, typer.Option("--format", help="How findings are written.")]


def compile_from(
    spec: str, config: Path, flavour: list[str] | None, sets: list[str] | None, version: str, padded: int | None
) -> CompiledMapping:
    from mapspec.bind import Choices
    from mapspec.choose import apply_sets, parse_pairs
    from mapspec.io.json_config import read_config
    from mapspec.mapping import compile_mapping

    path = config / "config.json" if config.is_dir() else config
    values = apply_sets(read_config(path), tuple(sets or ()))
    choices = Choices(parse_pairs(flavour or (), "--flavour"), parse_version(version), padded)
    return compile_mapping(spec, values, choices)


def given_specs(paths: list[Path] | None) -> list[Path]:
    """The spec files that a command is about: those given, or all below `mappings` and `providers`."""
    from mapspec.choose import spec_files

    given = paths or [Path("mappings"), Path("providers")]
    for path in given:
        if not path.exists():
            raise typer.BadParameter(f"there is no `{path}`", param_hint="PATH")
    return spec_files(given)


def parse_version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise typer.BadParameter(f"`{text}` is no version; write for example 0.19", param_hint="--megatron-core")
    return int(parts[0]), int(parts[1])


def parse_iteration(text: str) -> int:
    if not text.isdigit():
        raise typer.BadParameter(f"`{text}` is neither a number nor `release`", param_hint="--iteration")
    return int(text)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str, option: str = "--max-shard-size") -> int:
    number = text.rstrip("BbKkMmGgTtIi ")
    unit = text[len(number) :].strip().upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise typer.BadParameter(f"`{text}` is no size; write for example 5GB", param_hint=option)
    return int(float(number) * _UNITS[unit])


def source_template(text: str | None) -> str | None:
    if text is not None and "{path}" not in text:
        example = "https://example.org/blob/main/{path}#L{line}"
        raise typer.BadParameter(f"`{text}` has no {{path}}; write for example {example}", param_hint="--source-url")
    return text


def write_result(text: str, output: Path | None) -> None:
    """The result to stdout, or to the file that `--output` names."""
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
