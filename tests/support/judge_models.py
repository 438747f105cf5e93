"""Tiny random models in the layouts that detectors read: quick, and wrong about everything in a way of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch


def make_clip(folder: Path, demo_folder: Path) -> Path:
    """A tiny random CLIP with the demo model's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 1400, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {**size, "image_size": 48, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        for parameter in model.parameters():
            parameter.data.mul_(3)  # or all scores would be nearly equal
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(folder)
    shutil.copytree(demo_folder / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def make_vit(folder: Path, **settings) -> Path:
    """A tiny random image classifier."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            **settings,
        )
        model = ViTForImageClassification(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(10)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]).save_pretrained(folder)
    return folder
