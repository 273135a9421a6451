"""What the machine has: versions of everything that takes part, and whether the packages can be imported at all."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Mapping

from gpu_results import Runner, Skip

__all__ = ["check_machine", "driver", "versions"]

_PACKAGES = (
    "torch", "megatron-core", "transformer-engine", "transformer-engine-torch", "mamba-ssm", "causal-conv1d",
    "transformers", "triton",
)  # fmt: skip
# Modules with compiled parts: that they are installed does not mean that they can be loaded.
_COMPILED = ("transformer_engine.pytorch", "causal_conv1d", "mamba_ssm.ops.triton.ssd_combined", "mamba_ssm")


def versions() -> dict[str, str]:
    """Name -> version, in the order of the summary. What is not installed is said to be so."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    try:
        import torch
    except ImportError:
        return out
    out["CUDA of torch"] = torch.version.cuda or "none"
    out["driver"] = driver()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    out["devices"] = ", ".join(torch.cuda.get_device_name(i) for i in devices) or "no CUDA device"
    return out


def driver() -> str:
    """Version of the NVIDIA driver, by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer"
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"


def check_machine(runner: Runner, *, on_gpu: bool) -> None:
    """A CUDA device that computes, and every compiled package imported."""

    def device() -> Mapping[str, object]:
        import torch

        if not on_gpu:
            raise Skip("dry run on the CPU")
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        ones = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
        assert (ones @ ones)[0, 0].item() == 256
        free, total = torch.cuda.mem_get_info()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        return {"capability": capability, "free GB": free / 1e9, "of GB": total / 1e9}

    def load(module: str) -> Mapping[str, object]:
        if not on_gpu:
            raise Skip("dry run on the CPU")
        found = importlib.import_module(module)
        return {"version": getattr(found, "__version__", "")}

    runner.check("device", device)
    for module in _COMPILED:
        runner.check(f"import {module}", lambda module=module: load(module))  # type: ignore[misc]
