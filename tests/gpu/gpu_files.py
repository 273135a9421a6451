"""What needs no GPU: the checkpoints, and the logits that the GPU model is held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from gpu_backend import Backend, distance
from gpu_checks import MismatchError
from gpu_models import hf_logits, tokens_for, write_model
from gpu_results import Runner
from torch import Tensor

from mapspec.convert import Output, convert
from mapspec.prepare import Request
from mapspec.verify import verify

__all__ = ["check_files"]

_FP32_LIMIT = 1e-3  # of the largest logit: two programs that add in another order


def check_files(model: str, work: Path, runner: Runner) -> None:
    """Write, convert, verify; transformers in fp32 (`truth.pt`), and the reference backend against it."""
    home = work / model
    kept: dict[str, Tensor] = {}

    def write() -> Mapping[str, object]:
        home.mkdir(parents=True, exist_ok=True)
        return {"bytes": write_model(model, home / "hf")}

    def there_and_back() -> Mapping[str, object]:
        done = convert(Request(home / "hf"), Output(home / "megatron", overwrite=True))
        found = verify(home / "hf", home / "megatron")
        if found.findings:
            raise MismatchError(found.findings[0].message)
        return {"tensors": found.tensors, "seconds": done.seconds}

    def truth() -> Mapping[str, object]:
        kept["transformers"] = hf_logits(home / "hf", tokens_for(model, home / "hf"), torch.float32, "cpu")
        torch.save(kept, home / "truth.pt")
        return {"largest logit": kept["transformers"].abs().max().item()}

    def reference() -> Mapping[str, object]:
        backend = Backend("reference")
        with backend.groups():
            # fp32 has to be said: the config promises bf16.
            built = backend.provider(home / "hf", params_dtype="float32").provide().eval()
            backend.load(built, home / "megatron" / "iter_0000000")
            kept["reference"] = backend.logits(built, tokens_for(model, home / "hf"), home / "hf")
        found = distance(kept["reference"], kept["transformers"])
        numbers = {"rms": found.rms, "largest": found.largest, "argmax equal": f"{found.agree:.1%}"}
        scale = kept["transformers"].abs().max().item()
        if not found.largest <= _FP32_LIMIT * scale:
            raise MismatchError(f"largest difference {found.largest:.3g} on logits up to {scale:.3g}", **numbers)
        torch.save(kept, home / "truth.pt")
        return numbers

    runner.check(f"{model} written", write)
    runner.check(f"{model} converted", there_and_back, [f"{model} written"])
    runner.check(f"{model} transformers fp32", truth, [f"{model} written"])
    runner.check(f"{model} reference fp32", reference, [f"{model} converted", f"{model} transformers fp32"])
