"""`make demo`: the main job, end to end, on real files.

transformers writes a small Nemotron-H checkpoint, `mapspec convert` makes a Megatron-Core one of it, Megatron-Core
itself loads that strictly and runs it, `mapspec convert` goes back, and the bits are compared.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapspec.quiet import quiet_libraries

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo" / "out"
sys.path.append(str(ROOT / "tests"))  # the demo's model is one of the tests' tiny ones, a little larger


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step and say how long it took."""
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n== {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"   ({time.monotonic() - began:.1f} s)", flush=True)


def mapspec(*arguments: str) -> None:
    """Run the command line, showing the command."""
    print("   $ mapspec " + " ".join(a.replace(str(ROOT) + "/", "") for a in arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "mapspec", *arguments], cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).replace(str(ROOT) + "/", "").strip().splitlines()
    print("\n".join(f"   {line}" for line in lines), flush=True)
    if done.returncode:
        sys.exit(done.returncode)


def make_checkpoint(folder: Path) -> None:
    """A checkpoint with every kind of layer, latent experts and an MTP block, in three shards."""
    from fixtures_hf import TinyModel, write_tiny

    model = TinyModel(
        "MEM*E-ME", mtp_pattern="*E", mtp_blocks=1, latent=128, vocab=4096, dialect="published",
        max_shard_size="20MB",
        config={
            "hidden_size": 384, "intermediate_size": 1024, "head_dim": 48, "mamba_head_dim": 64, "ssm_state_size": 32,
            "n_routed_experts": 16, "moe_intermediate_size": 512, "moe_shared_expert_intermediate_size": 768,
        },
    )  # fmt: skip
    write_tiny(model, folder)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    files = sorted(f.name for f in folder.iterdir())
    print(f"   {size / 1e6:.1f} MB in {folder.relative_to(ROOT)}: {', '.join(files)}")


def load_with_megatron(hf: Path, checkpoint: Path) -> None:
    """Megatron-Core builds the model, loads the checkpoint strictly over NaN, and gives the logits of transformers."""
    import torch
    from megatron.core import dist_checkpointing
    from transformers import NemotronHForCausalLM

    from mapspec.backends.reference import cpu_adapters, one_process_group, reference_logits
    from mapspec.provider.provider import Provider

    tokens = torch.randint(0, 4096, (2, 33), generator=torch.Generator().manual_seed(0))
    reference = NemotronHForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    for module in reference.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))  # Megatron and the released code do not clamp the step size
    with torch.no_grad():
        expected = reference(tokens).logits
    with one_process_group():
        provider: Any = Provider.from_hf(hf, params_dtype="float32", bf16=False, backend="reference")
        model = provider.provide()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
        with cpu_adapters():
            state = dist_checkpointing.load(
                {"model": model.sharded_state_dict()}, str(checkpoint), strict="raise_unexpected"
            )
        model.load_state_dict(state["model"], strict=True)
        logits = reference_logits(model, tokens)
    unfilled = [name for name, p in model.named_parameters() if p.isnan().any()]
    difference = (logits - expected).abs().max().item()
    agree = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
    count = sum(p.numel() for p in model.parameters())
    print(f"   HybridModel of megatron-core: {count:,} parameters, none left unfilled")
    print(f"   logits against transformers (fp32): largest difference {difference:.1e} on values up to "
          f"{expected.abs().max().item():.1f}; argmax equal at {agree:.1%} of positions")  # fmt: skip
    assert not unfilled, unfilled
    assert difference < 1e-3, "the converted model computes something else"


def main() -> None:
    """Run the steps; any failure ends the demo with a non-zero exit code."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    hf, megatron, back = OUT / "hf", OUT / "megatron", OUT / "hf-again"
    with quiet_libraries():
        run(hf, megatron, back)
    print(f"\nAll of it lies in {OUT.relative_to(ROOT)}/: hf, megatron, hf-again.")


def run(hf: Path, megatron: Path, back: Path) -> None:
    """The steps."""
    with step("1  transformers writes a Nemotron-H checkpoint (Mamba, attention, MLP, latent MoE; MTP tensors added)"):
        make_checkpoint(hf)
    with step("2  Hugging Face -> Megatron-Core"):
        mapspec("convert", str(hf), str(megatron), "--progress", "none")
    with step("3  Megatron-Core reads it back"):
        load_with_megatron(hf, megatron / "iter_0000000")
    with step("4  Megatron-Core -> Hugging Face"):
        mapspec("convert", str(megatron), str(back), "--progress", "none")
    with step("5  The same bits?"):
        mapspec("verify", str(hf), str(back))
        mapspec("verify", str(hf), str(megatron))
    with step("6  Do the two compute the same? Layer by layer, against a measured noise floor"):
        mapspec("verify", str(hf), str(megatron), "--logits")
    with step("7  Where does a tensor go?"):
        mapspec("resolve", "nemotron_h", "mtp.layers.0.mixer.k_proj.weight", "--checkpoint", str(megatron))


if __name__ == "__main__":
    main()
