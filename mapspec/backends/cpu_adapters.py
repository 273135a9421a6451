"""What Megatron-Core asks of CUDA on the reference path, answered by the CPU, for the length of a `with` block.

Megatron-Core 0.19 builds, runs and saves on a machine without a GPU except at a handful of places. Each of them gets
a stand-in here: the *names* `torch`, `TENorm`, `TELinear`, ... are replaced inside the few Megatron modules that need
it, and put back afterwards. The torch package itself is never altered, so nothing else in the process sees a change.

Module of Megatron-Core: what it wants -> what it gets

* transformer.moe.router: the current CUDA device for its buffers -> the CPU device
* transformer.multi_token_prediction: the current CUDA device for its loss log -> the CPU device
* transformer.moe.token_dispatcher: counts moved off the GPU, as numpy arrays -> the arrays, from CPU tensors too
* tensor_parallel.mappings: the current device for what ranks exchange -> the CPU device
* transformer.moe.token_dispatcher: a side stream and events for copies -> streams that do nothing
* dist_checkpointing filesystem_async: `synchronize` -> nothing
* dist_checkpointing state_dict_saver: the current device for a flag -> the CPU device
* dist_checkpointing filesystem_async: a helper process that holds a queue -> a queue in this process
* transformer.utils, fusions.fused_softmax: a causal mask on "cuda" -> the same mask on the CPU
* tensor_parallel.random: a tracker of CUDA random states -> a tracker that does nothing
* utils: a scratch buffer on the current device -> a fresh tensor on the CPU
* language_module: `.cuda()` before the embedding all-reduce -> the all-reduce on the CPU
* models.hybrid.hybrid_block: Transformer Engine's norm as the final norm -> the norm given by the caller
* transformer.moe.moe_layer: Transformer Engine's linear for latent MoE -> `DuplicatedLinear`

Functions that Megatron-Core wraps in `torch.compile` run eagerly: compiling them needs a C++ toolchain and takes longer
than the tiny models that run here.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["cpu_adapters"]

_MISSING = object()


class _IdleStream:
    """Answers as a CUDA stream or event would when all its work is done already."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing runs beside the caller."""

    def wait_event(self, event: Any) -> None:
        """Nothing runs beside the caller."""

    def record(self, stream: Any = None) -> None:
        """There is nothing to mark."""

    def record_event(self, event: Any = None) -> _IdleStream:
        """A stream that does nothing is its own event."""
        return self

    def wait(self, stream: Any = None) -> None:
        """Nothing runs beside the caller."""

    def synchronize(self) -> None:
        """Nothing runs beside the caller."""


_STREAM = _IdleStream()


class _CudaFacade:
    """The part of `torch.cuda` that the modules listed above use; everything else is torch's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def is_available(self) -> bool:
        return False

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def synchronize(self, device: Any = None) -> None:
        return None

    def current_stream(self, device: Any = None) -> _IdleStream:
        return _STREAM

    def Stream(self, *args: Any, **kwargs: Any) -> _IdleStream:  # noqa: N802 (torch's spelling)
        return _STREAM

    def Event(self, *args: Any, **kwargs: Any) -> _IdleStream:  # noqa: N802
        return _STREAM

    def stream(self, stream: Any) -> Any:
        return nullcontext()


class _TorchFacade:
    """torch as one Megatron module sees it: the real one, with `cuda` answered by the CPU."""

    cuda = _CudaFacade()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_TORCH = _TorchFacade()


class _IdleRngTracker:
    """A tracker of random states that tracks none: dropout is 0 and weights are drawn by the caller."""

    def fork(self, name: str = "") -> Any:
        return nullcontext()

    def add(self, name: str, seed: int) -> None:
        return None

    def is_initialized(self) -> bool:
        return True

    def get_states(self) -> dict[str, Any]:
        return {}


def _causal_mask(size: int) -> torch.Tensor:
    """Bool [size, size], true above the diagonal: the positions that attention must not see."""
    return torch.ones(size, size, dtype=torch.bool).triu(diagonal=1)


def _on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Stands for `maybe_move_tensor_to_cpu`, which leaves a CPU tensor as it is although the collectives need ints."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _scratch(self: Any, shape: Any, dtype: torch.dtype, name: str, *context: Any) -> torch.Tensor:
    """Stands for `GlobalMemoryBuffer.get_tensor`: an uninitialised tensor, not kept for reuse."""
    return torch.empty(tuple(shape), dtype=dtype)


def _share_embedding_on_cpu(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Replace "am I in the embedding group?" by an answer of no that does the group's work first.

    The caller moves the weight to CUDA and sums it over the first and last pipeline stage; the copy on the last stage
    is zero by then. Summing it here and answering no gives the same weights without the move.
    """

    def answer(self: Any) -> bool:
        if original(self) and not self.config.init_model_with_meta_device:
            weight = self.shared_embedding_or_output_weight()
            torch.distributed.all_reduce(weight.data, group=self.embd_group)
        return False

    return answer


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _replacements(final_norm: Callable[..., Any] | None) -> Iterator[tuple[Any, str, Any]]:
    from megatron.core import utils as core_utils
    from megatron.core.dist_checkpointing.strategies import filesystem_async, state_dict_saver
    from megatron.core.fusions import fused_softmax
    from megatron.core.models.common.language_module import language_module
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.tensor_parallel import mappings, random
    from megatron.core.transformer import multi_token_prediction, utils
    from megatron.core.transformer.moe import moe_layer, router, token_dispatcher

    from mapspec.backends.reference_layers import DuplicatedLinear, build_norm

    users = (mappings, multi_token_prediction, router, token_dispatcher, filesystem_async, state_dict_saver)
    for module in users:
        yield module, "torch", _TORCH
    # Blocking saves write with threads of this process; a queue for other processes would cost a second interpreter.
    yield filesystem_async, "_results_queue", queue.Queue()
    yield token_dispatcher.MoEAlltoAllTokenDispatcher, "cuda_dtoh_stream", _STREAM
    yield token_dispatcher, "maybe_move_tensor_to_cpu", _on_host
    for module in (utils, fused_softmax):
        yield module, "get_default_causal_mask", _causal_mask
    yield core_utils.GlobalMemoryBuffer, "get_tensor", _scratch
    yield random, "_CUDA_RNG_STATE_TRACKER", _IdleRngTracker()
    yield random, "_CUDA_RNG_STATE_TRACKER_INITIALIZED", True
    model = language_module.LanguageModule
    yield model, "_is_in_embd_group", _share_embedding_on_cpu(model._is_in_embd_group)
    yield hybrid_block, "TENorm", final_norm or build_norm
    yield moe_layer, "HAVE_TE", True
    yield moe_layer, "TELinear", DuplicatedLinear


@contextmanager
def cpu_adapters(*, final_norm: Callable[..., Any] | None = None) -> Iterator[None]:
    """Let Megatron-Core build, run, save and load a reference model on the CPU inside this block.

    `final_norm` builds the norm after the last layer (called with config, hidden_size, eps); by default a torch norm.
    Blocks nest. Everything is as before after the block, also when it raises.
    """
    with ExitStack() as stack:
        for owner, name, value in _replacements(final_norm):
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
