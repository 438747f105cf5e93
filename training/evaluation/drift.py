"""How far pictures move from the base's at equal seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 100.0  # of equal pictures, whose ratio has no bound


@dataclass(frozen=True)
class Drift:
    """Means over `images` pictures. perceptual: `perceptual_distance`, 0..2, None where nothing gives features; psnr:
    dB, MAX_PSNR at most."""

    perceptual: float | None
    psnr: float
    images: int


def perceptual_distance(first: Tensor, second: Tensor) -> Tensor:
    """LPIPS' form without its learnt weights: mean over positions of ‖f̂ − ĝ‖², f̂ and ĝ of unit length over channels.

    Args:
        first, second: Feature maps [B, C, h, w].

    Returns:
        [B], 0..2 for features ≥ 0.

    Source: Zhang et al., CVPR 2018, Eq. 1, one layer.
    """
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean((1, 2))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B, 3, H, W] in 0..1, MAX_PSNR at most. → [B]."""
    error = (first - second).square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp_min(10 ** (-MAX_PSNR / 10)))).clamp_max(MAX_PSNR)


@torch.no_grad()
def drift_of(features: Callable[[Tensor], Tensor] | None, before: Tensor, after: Tensor) -> Drift:
    """The drift between two stacks of equally many pictures [B, 3, H, W] in 0..1, B > 0.

    Args:
        features: Gives the feature maps of pictures; None: the drift has no perceptual distance.
    """
    distance = None
    if features is not None:
        pairs = zip(before.split(64), after.split(64), strict=True)
        each = [perceptual_distance(features(a), features(b)) for a, b in pairs]
        distance = round(float(torch.cat(each).mean()), 4)
    return Drift(distance, round(float(psnr(before, after).mean()), 2), len(before))
