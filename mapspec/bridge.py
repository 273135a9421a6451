"""`run_config.yaml`: what Megatron-Bridge builds a model from, written beside a checkpoint and read back.

The mapping moves weights and knows nothing of activations or routers; those come from the provider spec of the
architecture. A model whose architecture no provider spec lists is converted without the file, and the report says so.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.choose import listed_architectures
from mapspec.documents import available
from mapspec.errors import SpecError
from mapspec.io.json_config import write_config
from mapspec.provider.export import to_hf_config
from mapspec.provider.megatron_lm import megatron_lm_args
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.run_config import provider_fields_from_run_config, run_config_yaml
from mapspec.provider.spec import choose_provider, read_provider
from mapspec.sources import Reference

__all__ = ["RunConfig", "reference_from_run_config", "run_config_for"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Text of run_config.yaml, or `None` and why there is none; and the arguments that Megatron-LM looks for."""

    text: str | None
    why_not: str = ""
    megatron_lm: Namespace | None = None


def run_config_for(config: Mapping[str, Any], *, where: str, padded_vocab_size: int | None = None) -> RunConfig:
    """The file for a model.

    Args:
        config: contents of config.json.
        where: its path, for findings.
        padded_vocab_size: rows of the vocabulary where it is padded.

    Raises:
        SpecError: the provider spec does not account for a key of the config, or the model cannot be built.
    """
    architectures = [str(a) for a in config.get("architectures") or ()]
    if not set(architectures).intersection(listed_architectures("providers", architectures)):
        return RunConfig(None, f"no provider spec lists {', '.join(architectures) or 'its architecture'}")
    spec = choose_provider(config, where=where)
    if not spec.model.bridge:
        return RunConfig(None, f"provider spec `{spec.name}` knows no form of it")
    overrides: dict[str, Any] = {}
    if padded_vocab_size is not None:
        overrides = {"should_pad_vocab": True}
        overrides["make_vocab_size_divisible_by"] = _multiple(int(config["vocab_size"]), padded_vocab_size)
    resolved = resolve_provider(spec, config, overrides, where=where)
    return RunConfig(run_config_yaml(resolved), megatron_lm=megatron_lm_args(resolved))


def _multiple(vocab_size: int, padded: int) -> int:
    """What the vocabulary is padded to a multiple of: the largest power of two that gives `padded`, else `padded`."""
    powers = (1 << k for k in range(20, -1, -1))
    return next((d for d in powers if -(-vocab_size // d) * d == padded), padded)


def reference_from_run_config(run_config: Mapping[str, Any], path: Path) -> Reference | None:
    """The Hugging Face config of a checkpoint that came with run_config.yaml; `None` if no provider spec reads it."""
    where = str(path / "run_config.yaml")
    for file in available("providers").values():
        spec = read_provider(file)
        try:
            fields = provider_fields_from_run_config(spec, run_config, where=where)
        except SpecError:
            continue
        config = to_hf_config(spec, fields)
        return Reference(where, config, write_config(config).decode())
    return None
