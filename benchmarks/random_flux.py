"""Transformers of Flux's shapes with random weights: what time and memory are measured on."""

from __future__ import annotations

from typing import Any

# Geometry under diffusers' names, and what of a variant of Flux it is.
MODELS: dict[str, dict[str, Any]] = {
    "flux-dev-random": {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "in_channels": 64,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    "flux-tiny-random": {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "in_channels": 64,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
}
STD = 0.02  # of the random weights


def random_weights(model: Any, device: Any) -> Any:
    """A transformer from the meta device, with random weights on `device`, always the same ones there."""
    import torch

    model = model.to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(std=STD, generator=generator)
    return model
