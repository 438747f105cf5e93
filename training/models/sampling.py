"""Sampling with Flux's own noise, sigmas and Euler steps, and decoding to images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from .batches import batches
from .text import TextEmbeds
from .variants import FluxVariant
from .velocity import velocity

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    from .loading import FluxParts

# callback(step, t, x_t, v): before step `step` (from 0) is taken from latents x_t [B, N, 64] at t with velocity v
StepCallback = Callable[[int, float, Tensor, Tensor], None]


def sigmas(variant: FluxVariant, steps: int, tokens: int) -> Tensor:
    """[steps + 1] fp32 noise levels from 1 to 0, as FluxPipeline's scheduler spaces and shifts them for `tokens` image
    tokens."""
    levels = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)
    if variant.shift is None:
        mu = variant.base_shift + (variant.max_shift - variant.base_shift) * (tokens - 256) / (4096 - 256)
        levels = math.exp(mu) / (math.exp(mu) + 1.0 / levels - 1.0)
    else:
        levels = variant.shift * levels / (1.0 + (variant.shift - 1.0) * levels)
    return torch.cat([levels, levels.new_zeros(1)]).float()


def pack(latents: Tensor) -> Tensor:
    """[B, C, 2h, 2w] -> [B, h * w, 4C]: 2x2 patches as tokens, channels first within a token."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h * w, 4C] -> [B, C, 2h, 2w], the inverse of pack()."""
    batch, _, width = tokens.shape
    patches = tokens.reshape(batch, *grid, width // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // 4, 2 * grid[0], 2 * grid[1])


def initial_noise(seeds: int | Sequence[int], grid: tuple[int, int], channels: int = 16) -> Tensor:
    """[B, N, 4 * channels] fp32 on the CPU: per seed the noise that FluxPipeline (CPU generator) and ComfyUI draw."""
    seeds = [seeds] if isinstance(seeds, int) else seeds
    shape = (1, channels, 2 * grid[0], 2 * grid[1])
    return pack(
        torch.cat([torch.randn(shape, generator=torch.Generator("cpu").manual_seed(int(seed))) for seed in seeds])
    )


@torch.no_grad()
def trajectory(
    predict: Callable[[Tensor, float], Tensor], latents: Tensor, levels: Tensor, steps: int | None = None
) -> Tensor:
    """Euler steps of dx/dt = v(x, t) along `levels`, without gradients: the only loop of its kind.

    Args:
        predict: (x_t [B, N, C], t) -> v [B, N, C], asked once before each step; what it sees is what may be recorded.
        latents: [B, N, C], x at levels[0]; they stay in this dtype and on this device.
        levels: [n + 1] noise levels, see sigmas().
        steps: how many steps to take, all n by default.

    Returns:
        [B, N, C], x at levels[steps].
    """
    times = levels.tolist()
    for step in range(len(times) - 1 if steps is None else steps):
        latents = latents + (times[step + 1] - times[step]) * predict(latents, times[step])
    return latents


@torch.no_grad()
def sample(
    transformer: FluxTransformer2DModel,
    embeds: TextEmbeds,
    noise: Tensor,
    levels: Tensor,
    guidance: float,
    grid: tuple[int, int],
    *,
    stop_at: int | None = None,
    callback: StepCallback | None = None,
    deleted: Tensor | None = None,
) -> Tensor:
    """Euler steps along `levels` (see sigmas()) from packed noise [B, N, 64]; the latents after stop_at steps (all by
    default).

    The latents stay in the noise's dtype, on the transformer's device. `deleted`: as `velocity` takes it.
    """
    device = next(transformer.parameters()).device
    embeds, steps = embeds.to(device), itertools.count()

    def predict(latents: Tensor, t: float) -> Tensor:
        v = velocity(transformer, latents, t, embeds, guidance, grid, deleted=deleted)
        if callback is not None:
            callback(next(steps), t, latents, v)
        return v

    return trajectory(predict, noise.to(device), levels, stop_at)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Packed latents [B, N, 64] -> images [B, 3, H, W] in 0..1, fp32 on the CPU."""
    parameter = next(vae.parameters())
    raw = (
        unpack(latents, grid).to(parameter.device, torch.float32) / vae.config.scaling_factor + vae.config.shift_factor
    )
    return (vae.decode(raw.to(parameter.dtype), return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1).cpu()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in 0..1, sides in multiples of 16 -> packed latents [B, N, 64], fp32 on the VAE's device; the
    inverse of decode(), as far as the VAE has one."""
    parameter = next(vae.parameters())
    raw = vae.encode(images.to(parameter.device, parameter.dtype) * 2 - 1).latent_dist.mode().float()
    return pack((raw - vae.config.shift_factor) * vae.config.scaling_factor)


def to_pil(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in 0..1 -> PIL images, rounded to 8 bits."""
    return [Image.fromarray(image.permute(1, 2, 0).mul(255).round().byte().numpy()) for image in images]


def generate(
    parts: FluxParts,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 8,
    callback: Callable[[int, int], None] | None = None,
    deleted: Tensor | None = None,
) -> Tensor:
    """Images [n, 3, H, W] in 0..1 for n prompts and as many seeds (one of either serves all), at the variant's
    defaults.

    callback(done, total) counts Euler steps over all batches. `deleted`: as `velocity` takes it, [n, L].
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    count = max(len(prompts), len(seeds))
    prompts = prompts * count if len(prompts) == 1 else prompts
    seeds = seeds * count if len(seeds) == 1 else seeds
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds do not pair up")
    variant = parts.variant
    grid = grid or variant.grid
    levels = sigmas(variant, steps or variant.default_steps, grid[0] * grid[1])
    guidance = variant.default_guidance if guidance is None else guidance
    total, images = (len(levels) - 1) * math.ceil(count / batch_size), []
    for number, chunk in enumerate(batches(count, batch_size)):

        def count_step(step: int, *_: object, before: int = number * (len(levels) - 1)) -> None:
            if callback is not None:
                callback(before + step + 1, total)

        noise = initial_noise(seeds[chunk], grid, parts.transformer.config.in_channels // 4)
        latents = sample(
            parts.transformer,
            parts.text.encode(prompts[chunk]),
            noise,
            levels,
            guidance,
            grid,
            callback=count_step,
            deleted=None if deleted is None else deleted[chunk],
        )
        images.append(decode(parts.vae, latents, grid))
    return torch.cat(images)
