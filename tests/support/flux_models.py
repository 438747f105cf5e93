"""Models that tests share: a tiny random Flux, the demo model in the engine and in diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from training.models.loading import FluxParts, load_parts
from training.models.source import FluxSource
from training.models.text import TextEmbeds

TINY_GRID = (4, 6)
TINY_TEXT = 7


def tiny_transformer(seed: int = 0, dtype: torch.dtype = torch.float32, gain: float = 2.0) -> FluxTransformer2DModel:
    """2 double and 2 single blocks, 2 heads of 32, random weights; frozen, in eval mode.

    gain: of the usual initial weights; above 1, so that attention is far from uniform.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=20,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(gain)
    return model.to(dtype).eval().requires_grad_(False)


def tiny_folder(demo_folder: Path, target: Path, seed: int = 0) -> Path:
    """The demo model with a much smaller random transformer, in diffusers layout."""
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler"):
        shutil.copytree(demo_folder / part, target / part)
    shutil.copyfile(demo_folder / "model_index.json", target / "model_index.json")
    text = json.loads((demo_folder / "transformer" / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=text["joint_attention_dim"],
            pooled_projection_dim=text["pooled_projection_dim"],
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
    model.save_pretrained(target / "transformer")
    return target


def tiny_inputs(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, TextEmbeds]:
    """(latents, t, embeds) for tiny_transformer on TINY_GRID."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, TINY_GRID[0] * TINY_GRID[1], 16, generator=generator, dtype=dtype)
    t5 = torch.randn(batch, TINY_TEXT, 24, generator=generator, dtype=dtype)
    pooled = torch.randn(batch, 20, generator=generator, dtype=dtype)
    return latents, torch.tensor([0.9, 0.4][:batch]), TextEmbeds(t5, pooled)


def fp32_source(folder: Path) -> FluxSource:
    return FluxSource(kind="diffusers", folder=str(folder), precision="fp32")


@cache
def demo_parts(folder: Path) -> FluxParts:
    """The demo model in the engine, fp32 on the CPU; leave it as it is."""
    return load_parts(fp32_source(folder), "cpu")


def pipeline(folder: Path) -> FluxPipeline:
    """The demo model in diffusers' own pipeline, fp32 on the CPU."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_images(pipe: FluxPipeline, folder: Path, prompts: list[str], seeds: list[int], steps: int) -> torch.Tensor:
    """[n, 3, H, W] in 0..1 as FluxPipeline renders them with the variant's text length, size and guidance."""
    variant = demo_parts(folder).variant
    return pipe(
        prompts,
        height=variant.resolution,
        width=variant.resolution,
        num_inference_steps=steps,
        guidance_scale=variant.default_guidance,
        max_sequence_length=variant.sequence_length,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1."""
    return float(-10 * torch.log10((a.float() - b.float()).pow(2).mean().clamp_min(1e-12)))
