"""The Megatron-Core model of a torch_dist checkpoint, loaded strictly by Megatron-Core's own loader over NaN."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError, VerifyError
from mapspec.logits.media import language_part, make_media
from mapspec.logits.trace import Built
from mapspec.provider.provider import Provider
from mapspec.sources import Source

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_megatron", "load_strictly", "one_rank", "provider_for"]

# Keys that a training run writes beside the weights, and empty stubs that this backend need not ask for.
_NOT_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine_state", "common_state", "_extra_state")
_EMBEDDING = "embedding.word_embeddings.weight"


@contextmanager
def one_rank(device: str) -> Iterator[None]:
    """Process groups of one rank for the length of the block; groups that exist already are used as they are."""
    import torch
    from megatron.core import parallel_state

    from mapspec.backends.reference_parallel import one_process_group, process_groups

    if parallel_state.model_parallel_is_initialized():
        yield
    elif torch.distributed.is_initialized():
        with process_groups():
            yield
    elif device == "cpu":
        with one_process_group():
            yield
    else:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
        try:
            with process_groups():
                from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

                model_parallel_cuda_manual_seed(0)
                yield
        finally:
            torch.distributed.destroy_process_group()


def provider_for(config: Mapping[str, Any], source: Source, *, dtype: str, device: str) -> Provider:
    """The provider for a config, with what only the checkpoint says: where norms live, rows of the vocabulary."""
    rows = next((tensor.shape[0] for name, tensor in source.tensors.items() if name.endswith(_EMBEDDING)), None)
    separate = any(name.endswith((".input_layernorm.weight", "layers.0.norm.weight")) for name in source.tensors)
    fused = any(name.endswith(".layer_norm_weight") for name in source.tensors)
    made = Provider.from_hf(
        config,
        params_dtype=dtype,
        bf16=dtype == "bfloat16",
        backend="reference" if device == "cpu" else "transformer_engine",
        norms="separate" if separate or not fused else "fused",
    )
    if rows is not None and rows > made.vocab_size:
        made.vocab_size = rows
    return made


def build_megatron(config: Mapping[str, Any], source: Source, *, dtype: str, device: str) -> Built:
    """The model of a checkpoint; process groups have to exist.

    Raises:
        SpecError: Megatron-Core cannot build it.
        CheckpointError: MS821 for an assembly that cannot be compared.
        VerifyError: MS822 where the checkpoint does not fill the model, or holds weights that it has no place for.
    """
    import torch

    if any(name.startswith("llava_model.") for name in source.tensors):
        message = "the llava assembly reads other sequences than transformers: one token for a whole tile"
        help_ = "convert with --flavour assembly=expanded and compare that"
        raise CheckpointError(Diagnostic("MS821", message, where=str(source.path), help=help_))
    provider = provider_for(config, source, dtype=dtype, device=device)
    model: Any = provider.provide()
    model.to(device).eval()
    load_strictly(model, source.root, device)
    language = getattr(model, "language_model", model)
    media = None if language is model else make_media(config)
    watched = [("embedding", language.embedding), ("final norm", language.decoder.final_norm)]
    watched += [(f"layer {i}", layer) for i, layer in enumerate(language.decoder.layers)]
    watched += [("mtp", layer) for layer in getattr(getattr(language, "mtp", None), "layers", ())]
    if media is not None:
        watched.append(("vision features", model.vision_projection))
    if getattr(model, "sound_projection", None) is not None:
        watched.append(("sound features", model.sound_projection))
    vocab = int(language_part(config)["vocab_size"])

    def forward(tokens: Any) -> Any:
        given = tokens.to(device)
        positions = torch.arange(given.shape[1], device=device).expand_as(given)
        others = {} if media is None else media.inputs(len(given), device)
        with _adapters(device):
            logits = model(given, positions, None, runtime_gather_output=True, **others)
        return logits[..., :vocab]

    about = f"Megatron-Core's {type(model).__name__}, backend {provider.fields['backend']}"
    return Built(model, forward, tuple(watched), True, about)


def _adapters(device: str) -> Any:
    """What lets Megatron-Core run without CUDA; nothing on a GPU."""
    from mapspec.backends.cpu_adapters import cpu_adapters

    return cpu_adapters() if device == "cpu" else nullcontext()


def load_strictly(model: nn.Module, folder: Path, device: str) -> None:
    """Load `folder` into the model by `megatron.core.dist_checkpointing`, over NaN.

    Raises:
        VerifyError: MS822 for keys that either side lacks, other shapes, and parameters that stayed NaN.
    """
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException

    held: Any = model
    with torch.no_grad():
        for tensor in held.state_dict(keep_vars=True).values():  # not what a module computes for itself
            if torch.is_tensor(tensor) and tensor.is_floating_point():
                tensor.fill_(float("nan"))
    try:
        with _adapters(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state, unasked, lacking = dist_checkpointing.load(
                {"model": held.sharded_state_dict()}, str(folder), strict="return_all"
            )
    except (CheckpointingException, RuntimeError, ValueError) as error:
        message = f"Megatron-Core refuses the checkpoint: {str(error).strip().splitlines()[0]}"
        raise VerifyError(Diagnostic("MS822", message, where=str(folder))) from error
    found = [
        *_keys({str(k) for k in lacking}, "the model asks for keys that the checkpoint lacks", folder),
        *_keys(
            {str(k) for k in unasked if not any(part in str(k) for part in _NOT_WEIGHTS)},
            "the checkpoint holds weights that the model has no place for",
            folder,
        ),
    ]
    if found:
        raise VerifyError(found)
    held.load_state_dict(state["model"], strict=True)
    empty = [name for name, value in held.state_dict().items() if torch.is_tensor(value) and value.isnan().any()]
    if empty:
        raise VerifyError(list(_keys(empty, "parameters hold NaN after loading", folder)))


def _keys(keys: Iterable[str], what: str, folder: Path) -> Iterator[Diagnostic]:
    names = sorted(keys)
    if names:
        more = f" and {len(names) - 4} more" if names[4:] else ""
        yield Diagnostic("MS822", f"{what}: {', '.join(f'`{n}`' for n in names[:4])}{more}", where=str(folder))
