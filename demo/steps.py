"""`make demo`: the main job, end to end, on real files; what the demos of all models have in common.

transformers writes a small checkpoint, `mapspec convert` makes a Megatron-Core one of it, Megatron-Core itself loads
that strictly and runs it, `mapspec convert` goes back, and the bits are compared.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mapspec.quiet import quiet_libraries

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo" / "out"
sys.path.append(str(ROOT / "tests"))  # the models are some of the tests' tiny ones, a little larger


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


def load_with_megatron(hf: Path, checkpoint: Path) -> None:
    """Megatron-Core builds the model, loads the checkpoint strictly over NaN, and gives the logits of transformers."""
    import torch

    from mapspec.io.json_config import read_config
    from mapspec.logits.hf_model import build_hf
    from mapspec.logits.media import language_part, make_media
    from mapspec.logits.megatron_model import build_megatron, one_rank
    from mapspec.sources import open_source

    config = read_config(hf / "config.json")
    vocabulary = int(language_part(config)["vocab_size"])
    tokens = torch.randint(0, vocabulary, (2, 33), generator=torch.Generator().manual_seed(0))
    media = make_media(config)
    if media is not None:
        tokens = media.with_places(tokens)
    with torch.no_grad(), one_rank("cpu"):
        theirs = build_hf(hf, sets=(), dtype="float32", device="cpu")
        expected = theirs.forward(tokens)
        ours = build_megatron(config, open_source(checkpoint), dtype="float32", device="cpu")
        logits = ours.forward(tokens)
    difference = (logits - expected).abs().max().item()
    agree = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
    count = sum(p.numel() for p in ours.model.parameters())
    print(f"   {ours.about}: {count:,} parameters, none left unfilled")
    if media is not None:
        heard = "" if media.sound is None else f" and {len(media.sound)} frames of sound"
        print(f"   every sequence with {len(media.imgs_sizes)} images{heard}: {len(media.places)} placeholders")
    print(f"   logits against {theirs.about} (fp32): largest difference {difference:.1e} on values up to "
          f"{expected.abs().max().item():.1f}; argmax equal at {agree:.1%} of positions")  # fmt: skip
    assert difference < 1e-3, "the converted model computes something else"


def demo(what: str, mapping: str, tensor: str, make_checkpoint: Callable[[Path], None]) -> None:
    """Run the steps; any failure ends the demo with a non-zero exit code.

    Args:
        what: the checkpoint, for the title of the first step.
        mapping: its name.
        tensor: one of the checkpoint, to be looked up at the end.
        make_checkpoint: writes it into a folder.
    """
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    hf, megatron, back = OUT / "hf", OUT / "megatron", OUT / "hf-again"
    with quiet_libraries():
        with step(f"1  transformers writes {what}"):
            make_checkpoint(hf)
            size = sum(f.stat().st_size for f in hf.glob("*.safetensors"))
            files = sorted(f.name for f in hf.iterdir())
            print(f"   {size / 1e6:.1f} MB in {hf.relative_to(ROOT)}: {', '.join(files)}")
        with step("2  Hugging Face -> Megatron-Core"):
            mapspec("convert", str(hf), str(megatron), "--progress", "none")
        with step("3  Megatron-Core reads it back"):
            load_with_megatron(hf, megatron)
        with step("4  Megatron-Core -> Hugging Face"):
            mapspec("convert", str(megatron), str(back), "--progress", "none")
        with step("5  The same bits?"):
            mapspec("verify", str(hf), str(back))
            mapspec("verify", str(hf), str(megatron))
        with step("6  Do the two compute the same? Layer by layer, against a measured noise floor"):
            mapspec("verify", str(hf), str(megatron), "--logits")
        with step("7  Where does a tensor go?"):
            mapspec("resolve", mapping, tensor, "--checkpoint", str(megatron))
    print(f"\nAll of it lies in {OUT.relative_to(ROOT)}/: hf, megatron, hf-again.")
