"""What building two models needs: packages, a device, a data type. Said clearly where it is not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.sources import Kind

__all__ = ["check_packages", "choose_device", "choose_dtype"]

_NEEDED: dict[Kind, tuple[tuple[str, str], ...]] = {
    "hf": (("torch", "torch"), ("transformers", "transformers")),
    "megatron": (("torch", "torch"), ("megatron.core", "megatron-core"), ("einops", "einops"), ("psutil", "psutil")),
}
_DTYPES = ("float32", "bfloat16")


def check_packages(kinds: Collection[Kind]) -> None:
    """Raise MS820 unless everything is installed that models of these kinds need."""
    wanted = dict(pair for kind in sorted(kinds) for pair in _NEEDED[kind])
    missing = [package for module, package in wanted.items() if not _found(module)]
    if missing:
        message = f"comparing logits builds models, which needs {', '.join(missing)}; not installed here"
        raise SpecError(Diagnostic("MS820", message, where="--logits", help='pip install "mapspec[megatron]"'))


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def choose_device(asked: str) -> str:
    """`auto`, `cpu` or `cuda` -> the device that models run on.

    `auto` takes CUDA only where Transformer Engine and the Mamba kernels are installed as well.

    Raises:
        SpecError: MS821 for CUDA that is not there, or another word.
    """
    import torch

    if asked not in ("auto", "cpu", "cuda"):
        message = f"there is no device `{asked}`"
        raise SpecError(Diagnostic("MS821", message, where="--device", help="choose auto, cpu or cuda"))
    if asked == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        if asked == "auto":
            return "cpu"
        built = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device here"
        raise SpecError(Diagnostic("MS821", built, where="--device cuda", help="run with --device cpu, or elsewhere"))
    kernels = all(_found(name) for name in ("transformer_engine", "mamba_ssm", "causal_conv1d"))
    return "cuda" if asked == "cuda" or kernels else "cpu"


def choose_dtype(asked: str | None, device: str) -> str:
    """The data type that both models compute in: fp32 on the CPU, bf16 on CUDA, or what was asked for.

    Raises:
        SpecError: MS821 for another one than those two.
    """
    if asked is None:
        return "bfloat16" if device == "cuda" else "float32"
    if asked not in _DTYPES:
        message = f"models are not compared in `{asked}`"
        raise SpecError(Diagnostic("MS821", message, where="--dtype", help=f"choose {' or '.join(_DTYPES)}"))
    return asked
