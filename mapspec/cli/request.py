"""What `convert` and `plan` are asked for alike: options declared once, and the request that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from mapspec.cli.options import FlavourOpt, PadOpt, SetOpt, SpecOpt, VersionOpt, parse_place, parse_version

if TYPE_CHECKING:
    from mapspec.prepare import Request

__all__ = ["RequestOptions", "Side", "spread"]


class Side(StrEnum):
    """The side that is written."""

    HF = "hf"
    MEGATRON = "megatron"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Everything about a conversion but its two places, in the order in which `--help` lists it."""

    to: Annotated[Side | None, typer.Option("--to", help="Side to convert to. Default: the one the source is not.")] = (
        None
    )
    spec: SpecOpt = None
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder or config.json whose config, shards and side files the result takes.",
            parser=parse_place,
            metavar="PATH",
        ),
    ] = None
    flavour: FlavourOpt = None
    sets: SetOpt = None
    dtype: Annotated[
        str | None, typer.Option(help="Cast floating tensors whose role allows it. Default: no casts.")
    ] = None
    cast: Annotated[
        list[str] | None, typer.Option("--cast", metavar="ROLE=DTYPE", help="Cast the tensors of one role.")
    ] = None
    megatron_core: VersionOpt = "0.19"
    padded_vocab_size: PadOpt = None
    run_config: Annotated[
        bool, typer.Option("--run-config/--no-run-config", help="Write the model's fields: run_config.yaml and `args`.")
    ] = True
    io: Annotated[
        str, typer.Option("--io", help="How to read, for example threads=16,read=8MiB,ahead=4, or network.")
    ] = ""
    tp: Annotated[
        int | None,
        typer.Option("--tp", min=1, help="Cut chunks for this tensor parallel size. Default: up to 8, what divides."),
    ] = None
    ep: Annotated[
        int | None,
        typer.Option("--ep", min=1, help="Expert parallel size. Experts have chunks of their own in any case."),
    ] = None
    etp: Annotated[
        int | None,
        typer.Option(
            "--etp", min=1, help="Cut experts for this tensor parallel size. Default: that of --tp, or uncut."
        ),
    ] = None

    def request(self, source: Path) -> Request:
        """The request for one source.

        Raises:
            typer.BadParameter: a value has no meaning.
        """
        from mapspec.choose import parse_pairs
        from mapspec.cuts import Cuts
        from mapspec.prepare import Request

        given = (self.tp, self.ep, self.etp) != (None, None, None)
        return Request(
            source=source,
            to=None if self.to is None else self.to.value,
            spec=self.spec,
            reference=self.reference,
            flavours=parse_pairs(self.flavour or (), "--flavour"),
            sets=tuple(self.sets or ()),
            dtype=self.dtype,
            casts=parse_pairs(self.cast or (), "--cast"),
            megatron_version=parse_version(self.megatron_core),
            padded_vocab_size=self.padded_vocab_size,
            run_config=self.run_config,
            cuts=Cuts()
            if not given
            else Cuts(
                tensor=self.tp or 1,
                expert=self.ep or 1,
                expert_tensor=self.etp or self.tp or 1,  # as Megatron-Core takes it
                strict=True,
            ),
            io=self.io,
        )


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `RequestOptions`, as one that typer can read: with every field as an option of its own."""
    hints = get_type_hints(command, include_extras=True)
    ours = get_type_hints(RequestOptions, include_extras=True)
    [taken] = [name for name, hint in hints.items() if hint is RequestOptions]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != taken:
            parameters.append(_option(parameter.name, hints[parameter.name], parameter.default))
            continue
        parameters += [_option(field.name, ours[field.name], field.default) for field in fields(RequestOptions)]

    @wraps(command)
    def run(**given: Any) -> None:
        options = RequestOptions(**{field.name: given.pop(field.name) for field in fields(RequestOptions)})
        command(**given, **{taken: options})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    bare = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=bare, annotation=hint)
