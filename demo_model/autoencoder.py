"""Trains the demo model's AutoencoderKL (sides 8 times smaller, 16 channels) and encodes scenes to latents."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import stages
from .scenes import random_scene

SCALING, SHIFT = 0.3611, 0.1159  # Flux's own latent constants, so that every Flux loader finds what it expects
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": (16, 32, 64, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 128,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": SCALING,
    "shift_factor": SHIFT,
    "force_upcast": True,
}
KL_WEIGHT = 2e-4  # keeps latents smooth; per latent element, against the mean absolute pixel error
CROP_SHARE = 0.8  # first part of training on 64-pixel crops: four times cheaper, and detail is local


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _pool(sprites: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = random.Random(seed)
    return np.stack([random_scene(rng).render(sprites) for _ in range(count)])


def train_autoencoder(
    sprites: np.ndarray, folder: Path, device: torch.device, steps: int = 1300, batch: int = 24
) -> AutoencoderKL:
    """Train, or go on training, in `folder`; at the end each latent channel gets deviation 1 after Flux's constants."""
    torch.manual_seed(0)
    model = AutoencoderKL(**CONFIG).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    pool = _pool(sprites, 5000, seed=1)

    def loss_of(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = model.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        restored = model.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp()).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        error = restored - pixels
        return error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * kl, error.square().mean()

    def step_fn(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * stages.cosine(step, steps, 100)
        side, count = (64, batch) if step < CROP_SHARE * steps else (128, batch // 3)
        generator = np.random.default_rng(step)
        picks = generator.integers(len(pool), size=count)
        corners = generator.integers(0, 129 - side, size=(count, 2))
        crops = np.stack([pool[p, y : y + side, x : x + side] for p, (y, x) in zip(picks, corners, strict=False)])
        pixels = to_tensor(crops).to(device)
        with stages.autocast(device):
            loss, mse = loss_of(pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item(), "psnr": 10 * float(torch.log10(4 / mse.detach()))}

    stages.train("autoencoder", steps, step_fn, {"model": model, "optimizer": optimizer}, folder / "autoencoder.pt")
    model.eval()
    with torch.no_grad():
        _normalize(model, to_tensor(pool[:400]).to(device))
    return model


def _normalize(model: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Rescale the latent channels exactly, by moving an affine map between encoder.conv_out and decoder.conv_in.

    Afterwards (z - SHIFT) * SCALING has deviation 1 per channel; the KL term keeps the means small. The decoder's
    conv_in has zero padding,
    which an added offset would disturb at the borders, so channel means are left to the encoder's bias and only the
    scale is moved.
    """
    latents = torch.cat([model.encode(p).latent_dist.mean for p in pixels.split(50)])
    std = latents.std(dim=(0, 2, 3))
    scale = 1 / (std * SCALING)
    out, into = model.encoder.conv_out, model.decoder.conv_in
    channels = len(scale)
    out.weight[:channels] *= scale[:, None, None, None]
    out.bias[:channels] = out.bias[:channels] * scale
    out.bias[channels:] += 2 * scale.log()  # log-variance follows the scale
    into.weight /= scale[None, :, None, None]


@torch.no_grad()
def encode(model: AutoencoderKL, images: np.ndarray, device: torch.device, batch: int = 50) -> torch.Tensor:
    """uint8 [B, 128, 128, 3] -> normalised latents [B, 16, 16, 16] in bf16 (posterior means)."""
    parts = []
    for chunk in np.array_split(images, max(1, len(images) // batch)):
        with stages.autocast(device):
            latents = model.encode(to_tensor(chunk).to(device)).latent_dist.mean
        parts.append(((latents.float() - SHIFT) * SCALING).bfloat16().cpu())
    return torch.cat(parts)


@torch.no_grad()
def psnr(model: AutoencoderKL, images: np.ndarray, device: torch.device) -> float:
    """Mean PSNR in dB of reconstructions of uint8 [B, 128, 128, 3]."""
    pixels = to_tensor(images).to(device)
    restored = torch.cat([model.decode(model.encode(p).latent_dist.mean).sample for p in pixels.split(25)])
    mse = (restored.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / mse)).mean())


def polish_decoder(
    model: AutoencoderKL, sprites: np.ndarray, folder: Path, device: torch.device, steps: int = 900, batch: int = 8
) -> AutoencoderKL:
    """Train the decoder alone, on whole pictures and on slightly wrong latents such as a sampler leaves."""
    torch.manual_seed(2)
    model.encoder.requires_grad_(False)
    weights = list(model.decoder.parameters())
    optimizer = torch.optim.AdamW(weights, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    pool = _pool(sprites, 3000, seed=3)

    def step_fn(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * stages.cosine(step, steps, 50)
        pixels = to_tensor(pool[np.random.default_rng(step).integers(len(pool), size=batch)]).to(device)
        with stages.autocast(device):
            with torch.no_grad():
                latents = model.encode(pixels).latent_dist.mean
                latents = latents + 0.1 / SCALING * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(
                    latents
                )
            restored = model.decode(latents).sample
        restored = restored.float()
        edges = sum((torch.diff(restored, dim=d) - torch.diff(pixels, dim=d)).abs().mean() for d in (2, 3))
        mse = (restored - pixels).square().mean()
        loss = (restored - pixels).abs().mean() + 0.5 * mse + 0.5 * edges
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return {"loss": loss.item(), "psnr": 10 * float(torch.log10(4 / mse.detach()))}

    stages.train("decoder", steps, step_fn, {"model": model, "optimizer": optimizer}, folder / "decoder.pt")
    return model.eval()
