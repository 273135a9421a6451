"""`make demo MODEL=nemotron_omni`: language, vision and sound in one checkpoint go to Megatron-Core and back."""

from __future__ import annotations

from pathlib import Path

from steps import demo


def make_checkpoint(folder: Path) -> None:
    """A checkpoint with every tower, as the released ones are spelled; buffers of the feature extractors included."""
    from fixtures_hf import TinyModel
    from fixtures_omni import TinyOmni, write_tiny_omni

    language = TinyModel(
        "MEM*E-ME", mtp_pattern="*E", mtp_blocks=1, vocab=4096,
        config={
            "hidden_size": 192, "intermediate_size": 512, "head_dim": 24, "mamba_head_dim": 48, "ssm_state_size": 16,
            "moe_intermediate_size": 256, "moe_shared_expert_intermediate_size": 384,
        },
    )  # fmt: skip
    write_tiny_omni(TinyOmni(language, vision_layers=4, dialect="published"), folder)


if __name__ == "__main__":
    demo(
        "a Nemotron Omni checkpoint (Nemotron-H, RADIO, Parakeet, projectors; MTP tensors and buffers added)",
        "nemotron_omni",
        "vision_model.radio_model.model.blocks.1.attn.qkv.weight",
        make_checkpoint,
    )
