"""`make demo`: a Nemotron-H checkpoint with every kind of layer goes to Megatron-Core and back."""

from __future__ import annotations

from pathlib import Path

from steps import demo


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


if __name__ == "__main__":
    demo(
        "a Nemotron-H checkpoint (Mamba, attention, MLP, latent MoE; MTP tensors added)",
        "nemotron_h",
        "mtp.layers.0.mixer.k_proj.weight",
        make_checkpoint,
    )
