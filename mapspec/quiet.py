"""Silence for what libraries print of their own accord: which packages they lack, what they will deprecate."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_libraries"]

_CHATTY = ("torch", "torch.utils.cpp_extension", "transformers", "megatron")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Show only errors of torch, transformers and Megatron-Core. What mapspec has to say is no warning of theirs."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
