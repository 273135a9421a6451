"""What `convert` says at the end, word for word: patterns, never thousands of lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import small, write_hf

from mapspec.convert import Converted, Output, convert
from mapspec.prepare import Request
from mapspec.render.summary import render_converted


@pytest.fixture(scope="module", autouse=True)
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same file system on every machine."""
    mounts = tmp_path_factory.mktemp("mounts") / "mountinfo"
    mounts.write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    with mock.patch("mapspec.io.filesystem._MOUNTS", mounts):
        yield


@pytest.fixture(scope="module")
def done(disk: None, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A conversion with everything there is to say: casts, padding, names that are passed through and left behind."""
    home = tmp_path_factory.mktemp("summary")
    spec = home / "variant.yaml"
    spec.write_text(
        "apiVersion: mapspec/v1\nkind: Mapping\nmetadata:\n  name: variant\n  version: 1.0.0\nextends: nemotron_h@1\n"
        "passthrough:\n  backbone.stats.**: statistics that only the Hugging Face side uses\n"
        'ignore_hf:\n  "backbone.layers.{layer}.junk": left over from an old training script\n'
    )
    source = write_hf(home / "hf", small(n_routed_experts=64))
    extra = {f"backbone.stats.{n}.mean": torch.ones(2) for n in range(300)}
    extra |= {f"backbone.layers.{n}.junk": torch.ones(2) for n in range(4)}
    save_file(load_file(source / "model.safetensors") | extra, source / "model.safetensors")
    (source / "tokenizer.json").write_text("{}")
    casts = {"router_bias": "bfloat16"}
    request = Request(source, spec=str(spec), casts=casts, padded_vocab_size=256, io="threads=2")
    return convert(request, Output(home / "megatron"))


@pytest.mark.parametrize("format", ["text", "md", "json"])
def test_the_summary(done: Converted, golden: Callable[[str, str], None], format: str) -> None:
    text = render_converted(done, format)
    text = text.replace(str(done.destination.parent), "HOME")
    text = re.sub(r"(?<=in )[\d.]+ s \([\d.]+ \w+/s; [\d.]+ s in all\)", "TIME", text)
    text = re.sub(r'(seconds": )[\d.e-]+', r"\1TIME", text)
    text = re.sub(r'(table_hash": ")\w+', r"\1HASH", text)
    text = re.sub(r"(nemotron_h\.yaml:)\d+", r"\1LINE", text)
    golden(f"summary/{format}.txt", text + "\n")
    assert len(text.splitlines()) < (400 if format == "json" else 60)


def test_every_tensor_and_byte_is_counted_once(done: Converted) -> None:
    body = json.loads(render_converted(done, "json"))
    targets = done.prepared.plan.targets
    assert sum(line["tensors"] for line in body["written"]) == len(targets) == body["tensors_written"]
    sizes = {"bfloat16": 2, "float32": 4}
    assert sum(line["bytes"] for line in body["written"]) == sum(
        torch.Size(t.shape).numel() * sizes[t.dtype] for t in targets
    )
