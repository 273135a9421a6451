"""Multi-token prediction on the Hugging Face side, out of transformers' own layers.

transformers drops these weights. What they compute is written in Megatron-Core's `multi_token_prediction.py`: with e
the embeddings of the tokens one further ahead and h the hidden states so far, `eh_proj([enorm(e); hnorm(h)])`, the
layers of the block, `final_layernorm`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import VerifyError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["build_mtp"]


def build_mtp(model: Any, folder: Path, values: Mapping[str, Any]) -> Any:
    """The prediction blocks of a checkpoint, or `None` where it has none.

    Raises:
        VerifyError: MS822 where the tensors `mtp.**` do not fill the blocks.
    """
    import torch
    from torch import nn
    from transformers.models.nemotron_h import modeling_nemotron_h as theirs

    state = _read(folder)
    applied = int(values.get("num_nextn_predict_layers") or 0)
    kinds = list(model.config.mtp_layers_block_type or ())
    if not state or not applied or not kinds:
        return None
    blocks = 1 if values.get("mtp_use_repeated_layer") else applied
    config = copy.deepcopy(model.config)
    config.layers_block_type = kinds
    size, eps = config.hidden_size, config.layer_norm_epsilon

    class Block(nn.Module):
        """One prediction block; parameters are named as in the checkpoint, below `mtp.layers.{first}`."""

        def __init__(self) -> None:
            super().__init__()
            self.enorm, self.hnorm, self.final_layernorm = (theirs.NemotronHRMSNorm(size, eps=eps) for _ in range(3))
            self.eh_proj = nn.Linear(2 * size, size, bias=False)
            self.layers = nn.ModuleList(theirs.NemotronHBlock(config, layer_idx=i) for i in range(len(kinds)))

        def forward(self, ahead: Tensor, hidden: Tensor) -> Tensor:
            """[batch, s, hidden] each -> [batch, s, hidden]."""
            x = self.eh_proj(torch.cat([self.enorm(ahead), self.hnorm(hidden)], dim=-1))
            for layer in self.layers:
                x = layer(x)
            out: Tensor = self.final_layernorm(x)
            return out

    class Blocks(nn.Module):
        """All of them, one after the other; `hidden` is called with the outcome of each so that it can be watched."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(blocks))
            self.hidden = nn.Identity()
            self.embed = [model.get_input_embeddings()]  # in a list: it stays the model's own

        def forward(self, tokens: Tensor, hidden: Tensor) -> None:
            """Token ids [batch, s] and the hidden states [batch, s, hidden] behind the final norm."""
            for number in range(applied):
                tokens = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
                hidden = self.blocks[min(number, blocks - 1)](self.embed[0](tokens), hidden)
                self.hidden(hidden)

    with torch.device(model.device):
        mtp = Blocks()
    mtp.to(model.dtype)
    for name, buffer in mtp.named_buffers():
        if name.endswith("e_score_correction_bias"):  # stays fp32, as in the rest of the model
            buffer.data = buffer.data.float()
    _fill(mtp, state, len(kinds), folder)
    return mtp


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                inner = name.removeprefix(
                    "language_model."
                )  # beside a language model that is part of another, or in it
                if inner.startswith("mtp."):
                    out[inner] = file.get_tensor(name)
    return out


def _fill(mtp: nn.Module, state: Mapping[str, Tensor], length: int, folder: Path) -> None:
    """Copy `mtp.layers.{block * length + inner}.*` into the blocks; every tensor and every place exactly once."""
    import torch

    left = dict(state)
    missing = []
    targets = [*mtp.named_parameters(), *((n, b) for n, b in mtp.named_buffers() if n.endswith("correction_bias"))]
    for name, target in targets:
        _, block, rest = name.split(".", 2)
        first = int(block) * length
        inner = length - 1 if rest.startswith("final_layernorm") else 0
        if rest.startswith("layers."):
            _, number, rest = rest.split(".", 2)
            inner = int(number)
        key = f"mtp.layers.{first + inner}.{rest}"
        if key not in left and ".experts." in key:
            stem, projection = key.rsplit(".", 1)
            names = [f"{stem}.{expert}.{projection}.weight" for expert in range(target.shape[0])]
            if all(one in left for one in names):
                left[key] = torch.stack([left.pop(one) for one in names])
        value = left.pop(key, None)
        if value is None or value.shape != target.shape:
            missing.append(key)
        else:
            target.data.copy_(value)
    found = []
    for names, what in ((missing, "lacks, or has with another shape,"), (sorted(left), "has no place for")):
        if names:
            more = f" and {len(names) - 4} more" if names[4:] else ""
            message = f"multi-token prediction {what} {', '.join(f'`{n}`' for n in names[:4])}{more}"
            found.append(Diagnostic("MS822", message, where=str(folder)))
    if found:
        raise VerifyError(found)
