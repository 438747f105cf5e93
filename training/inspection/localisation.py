"""How well a heatmap finds an object whose mask is known: pointing game, IoU, average precision, energy, leakage."""

from __future__ import annotations

import numpy as np

BINS = 256  # of Otsu's histogram


def localisation(heat: np.ndarray, mask: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """The measures of one heatmap, each 0..1.

    Args:
        heat: [H, W], not negative.
        mask: bool [H, W], the object.
        others: bool [H, W], the other objects.

    Returns:
        "pointing": whether the highest value lies on the object; "iou_best", "iou_otsu": intersection over union of the
        map above the best threshold for it, and above Otsu's; "precision": average precision over pixels; "energy": the
        share of the map's sum on the object (energy pointing game); "leakage": its share on the other objects.
    """
    total = float(heat.sum()) or 1.0
    return {
        "pointing": float(mask[np.unravel_index(heat.argmax(), heat.shape)]),
        "iou_best": best_iou(heat, mask),
        "iou_otsu": iou(heat > otsu(heat), mask),
        "precision": average_precision(heat, mask),
        "energy": float(heat[mask].sum()) / total,
        "leakage": float(heat[others].sum()) / total,
    }


def area_baseline(mask: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """The measures of a map without any information: a uniform one that points at random."""
    area = float(mask.mean())
    return {
        **dict.fromkeys(("pointing", "iou_best", "iou_otsu", "precision", "energy"), area),
        "leakage": float(others.mean()),
    }


def iou(found: np.ndarray, mask: np.ndarray) -> float:
    """|found ∩ mask| / |found ∪ mask|."""
    union = (found | mask).sum()
    return float((found & mask).sum() / union) if union else 1.0


def best_iou(heat: np.ndarray, mask: np.ndarray) -> float:
    """The highest IoU of heat >= threshold over all thresholds."""
    hits, counts = _ranked(heat, mask)
    return float((hits / (counts + mask.sum() - hits)).max())


def otsu(heat: np.ndarray) -> float:
    """Otsu's threshold (1979): the one that separates the histogram's two classes with the most variance between."""
    counts, edges = np.histogram(heat, BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    # the upper edge of the bin that ends the lower class
    return float(edges[np.nanargmax(between[:-1]) + 1]) if np.isfinite(between[:-1]).any() else float(heat.max())


def average_precision(heat: np.ndarray, mask: np.ndarray) -> float:
    """Mean of the precision at every object pixel in the order of falling values; equal values share one rank."""
    if not mask.any():
        return 0.0
    hits, counts = _ranked(heat, mask)
    return float((hits / counts * np.diff(hits, prepend=0)).sum() / mask.sum())


def _ranked(heat: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every distinct value, falling: object pixels and pixels with at least that value."""
    _, inverse, counts = np.unique(-heat.ravel(), return_inverse=True, return_counts=True)
    hits = np.bincount(inverse.ravel(), weights=mask.ravel(), minlength=len(counts))
    return np.cumsum(hits), np.cumsum(counts)
