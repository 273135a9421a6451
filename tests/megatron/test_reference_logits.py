"""The reference model computes what transformers computes, whole and split over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_hf import VARIANTS, write_tiny
from oracle import build_for, fill_model, load_with_megatron, read_hf, save_with_megatron, sharded_lines, spawn
from torch import Tensor

from mapspec.backends.reference import ParallelSizes, cpu_adapters, one_process_group, reference_logits
from mapspec.backends.reference_ssd import ssd_scan

pytestmark = pytest.mark.megatron

TOLERANCE = 1e-4


def tokens_for(vocab: int) -> Tensor:
    """Two sequences of 21 tokens: not a multiple of any chunk size."""
    return torch.randint(0, vocab, (2, 21), generator=torch.Generator().manual_seed(1))


def transformers_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Logits of transformers' own model, in fp32, with the step size unclamped as Megatron has it."""
    from transformers import NemotronHForCausalLM

    hf = NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if hf.config.tie_word_embeddings:  # transformers never ties this architecture
        hf.lm_head.weight.data.copy_(hf.get_input_embeddings().weight)
    for module in hf.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    with torch.no_grad():
        logits: Tensor = hf(tokens).logits
    return logits


@pytest.mark.parametrize(
    ("variant", "norms", "experts"),
    [
        ("dense", "fused", "sequential"),
        ("dense", "separate", "sequential"),
        ("moe", "fused", "sequential"),
        ("moe", "separate", "grouped"),
        ("latent", "fused", "grouped"),
        ("latent", "separate", "sequential"),
        ("mtp1", "fused", "sequential"),
        ("mtp2", "fused", "grouped"),
        ("mtp_mamba", "separate", "sequential"),
        ("odd_vocab", "fused", "sequential"),
        ("tied", "fused", "sequential"),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, variant: str, norms: str, experts: str) -> None:
    folder = write_tiny(VARIANTS[variant].but(dtype="float32"), tmp_path / variant)
    state, config = read_hf(folder)
    tokens = tokens_for(config["vocab_size"])
    with one_process_group():
        model = build_for(config, norms=norms, experts=experts)
        assert fill_model(model, state, config) == set(state)
        ours = reference_logits(model, tokens)
    theirs = transformers_logits(folder, tokens)
    scale = max(1.0, theirs.abs().max().item() / 10)
    assert (ours - theirs).abs().max() < TOLERANCE * scale
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_padded_vocabulary_only_adds_zero_logits(tmp_path: Path) -> None:
    folder = write_tiny(VARIANTS["odd_vocab"].but(dtype="float32"), tmp_path / "odd")
    state, config = read_hf(folder)
    tokens = tokens_for(config["vocab_size"])
    with one_process_group():
        plain, padded = build_for(config), build_for(config, vocab_size=256)
        for model in (plain, padded):
            fill_model(model, state, config)
        wide = reference_logits(padded, tokens)
        torch.testing.assert_close(wide[..., :251], reference_logits(plain, tokens), atol=1e-6, rtol=1e-5)
    assert not wide[..., 251:].any()


def forward_in_stages(rank: int, model: Any, tokens: Tensor, hidden: int) -> Tensor | None:
    """Run a model that is cut into one stage per rank; logits on the last rank."""
    world = torch.distributed.get_world_size()
    if rank:
        received = torch.empty(tokens.shape[1], tokens.shape[0], hidden)
        torch.distributed.recv(received, src=rank - 1)
        model.set_input_tensor(received)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with cpu_adapters(), torch.no_grad():
        out = model(tokens, positions, None, runtime_gather_output=True)
    if rank < world - 1:
        torch.distributed.send(out.contiguous(), dst=rank + 1)
        return None
    return out


def fill_run_save(
    rank: int, source: str, target: str, cuts: tuple[int, ...], switches: dict[str, Any], staged: bool
) -> tuple[set[str], list[str], Any]:
    """One rank's part: fill its model, run it, save it with Megatron."""
    state, config = read_hf(Path(source))
    model = build_for(config, cuts=cuts, **switches)
    used = fill_model(model, state, config)
    logits = None
    tokens = tokens_for(config["vocab_size"])
    if staged:
        logits = forward_in_stages(rank, model, tokens, config["hidden_size"])
    elif not cuts:
        logits = reference_logits(model, tokens)
    save_with_megatron(model, Path(target))
    return used, sharded_lines(model), None if logits is None else logits.numpy()


@pytest.mark.parametrize(
    ("variant", "sizes", "cuts", "switches"),
    [
        pytest.param("latent", ParallelSizes(tp=2), (), {}, id="tp2"),
        pytest.param("mtp_mamba", ParallelSizes(tp=4), (), {"norms": "separate"}, id="tp4-two-query-groups"),
        pytest.param("moe", ParallelSizes(ep=2), (), {"experts": "grouped"}, id="ep2-grouped"),
        pytest.param("mtp1", ParallelSizes(tp=2, ep=2, etp=2), (), {}, id="tp2-ep2-etp2"),
        pytest.param("mtp2", ParallelSizes(pp=2), (1,), {}, id="pp2-mtp"),
        pytest.param("tied", ParallelSizes(pp=2), (1,), {}, id="pp2-tied"),
        pytest.param("mtp1", ParallelSizes(tp=2, pp=2), (3,), {}, id="tp2-pp2"),
    ],
)
def test_split_model_computes_and_stores_the_same(
    tmp_path: Path, variant: str, sizes: ParallelSizes, cuts: tuple[int, ...], switches: dict[str, Any]
) -> None:
    folder = write_tiny(VARIANTS[variant].but(dtype="float32"), tmp_path / "hf")
    target = tmp_path / "ckpt"
    staged = sizes.pp > 1 and sizes.tp == 1
    ranks = spawn(fill_run_save, sizes.world, str(folder), str(target), cuts, switches, staged, sizes=sizes)

    state, config = read_hf(folder)
    with one_process_group():
        whole, loaded = build_for(config, **switches), build_for(config, **switches)
        fill_model(whole, state, config)
        expected = reference_logits(whole, tokens_for(config["vocab_size"]))
        assert load_with_megatron(loaded, target, "return_all") == [set(), set()]
        lines = sharded_lines(whole)
        before, after = whole.state_dict(), loaded.state_dict()
    assert set().union(*(used for used, _, _ in ranks)) == set(state)
    assert sorted(set().union(*(stored for _, stored, _ in ranks))) == lines
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value is None or torch.equal(value, after[name]), name
    for _, _, logits in ranks:
        if logits is not None:
            scale = max(1.0, expected.abs().max().item() / 10)
            assert (torch.from_numpy(logits) - expected).abs().max() < TOLERANCE * scale
    assert any(logits is not None for _, _, logits in ranks) == (staged or not cuts)


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_chunked_scan_equals_the_recurrence(chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    batch, length, heads, width, groups, size = 2, 7, 4, 3, 2, 5
    x = torch.randn(batch, length, heads, width, generator=generator, dtype=torch.float64)
    dt = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    a = -torch.rand(heads, generator=generator, dtype=torch.float64)
    b, c = torch.randn(2, batch, length, groups, size, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for sample in range(batch):
        for head in range(heads):
            group = head // (heads // groups)
            state = torch.zeros(width, size, dtype=torch.float64)
            for t in range(length):
                step = dt[sample, t, head]
                state = (step * a[head]).exp() * state + step * torch.outer(x[sample, t, head], b[sample, t, group])
                expected[sample, t, head] = state @ c[sample, t, group]
    torch.testing.assert_close(ssd_scan(x, dt, a, b, c, chunk), expected)
