"""The application that commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from mapspec._version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="mapspec",
    help="Move model weights between Hugging Face and Megatron-Core checkpoints. The mapping is data: YAML specs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


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
