"""What all models of transformers have in common that are built for a comparison: how they are loaded, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import VerifyError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["loading", "require_filled", "unclamp"]


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """transformers reads a checkpoint without a word; what it cannot read is MS822."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        message = f"transformers refuses the checkpoint: {str(error).strip().splitlines()[0]}"
        raise VerifyError(Diagnostic("MS822", message, where=str(folder))) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def unclamp(model: nn.Module) -> None:
    """Take the clamp off the step size of every Mamba layer."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))  # type: ignore[assignment]


def require_filled(folder: Path, info: dict[str, Any], tied: bool, head: str) -> None:
    """A finding (MS822) for what the checkpoint lacks or has too much; a tied `head` need not be there."""
    found = []
    missing = sorted(set(info["missing_keys"]) - ({head} if tied else set()))
    for names, what in (
        (missing, "gets no values for"),
        (sorted(info["unexpected_keys"]), "has no place for"),
    ):
        if names:
            shown = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            found.append(Diagnostic("MS822", f"transformers' model {what} {shown}", where=str(folder)))
    if found:
        raise VerifyError(found)
