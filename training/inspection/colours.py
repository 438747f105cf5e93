"""Colour maps that are perceptually uniform and keep their order for the colour-blind, made in OKLab."""

from __future__ import annotations

import numpy as np

STEPS = 256

# Björn Ottosson, "A perceptual color space for image processing" (2020): OKLab -> cone responses -> linear sRGB.
_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)

# Corners (lightness, green-red, blue-yellow) of each map's way through OKLab. Lightness rises all the way in the
# sequential ones, which is what survives every kind of colour blindness; the diverging one falls to both sides of its
# middle, blue against orange.
_CORNERS = {
    "blue to yellow": [(0.28, -0.012, -0.12), (0.92, -0.025, 0.145)],
    "ember": [(0.12, 0.01, -0.03), (0.38, 0.13, -0.08), (0.66, 0.14, 0.10), (0.96, -0.01, 0.07)],
    "grey": [(0.1, 0.0, 0.0), (1.0, 0.0, 0.0)],
    "blue and orange": [(0.42, -0.02, -0.13), (0.97, 0.0, 0.0), (0.42, 0.09, 0.075)],
}
DIVERGING = "blue and orange"


def to_srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab [..., 3] -> sRGB [..., 3], in 0..1 where the colour exists in sRGB."""
    linear = (lab @ _TO_CONES.T) ** 3 @ _TO_LINEAR.T
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055)


def _table(corners: list[tuple[float, float, float]]) -> np.ndarray:
    """[STEPS, 3] uint8 along the straight lines between the corners, at equal distances in OKLab."""
    points = np.array(corners)
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    reached = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0, reached[-1], STEPS)
    lab = np.stack([np.interp(at, reached, points[:, channel]) for channel in range(3)], axis=1)
    return np.rint(to_srgb(lab).clip(0, 1) * 255).astype(np.uint8)


TABLES: dict[str, np.ndarray] = {name: _table(corners) for name, corners in _CORNERS.items()}
COLOUR_MAPS = tuple(name for name in TABLES if name != DIVERGING)


def colourise(values: np.ndarray, name: str) -> np.ndarray:
    """Values in 0..1 (clipped) -> sRGB uint8 [..., 3]."""
    return TABLES[name][np.rint(np.clip(values, 0, 1) * (STEPS - 1)).astype(int)]
