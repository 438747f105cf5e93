"""Confidence intervals of what is measured on a sample of images: of shares and of means."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import ErasureError

RESAMPLES = 9_999
_NUMBERS_AT_ONCE = 4_000_000  # resampled values held at a time (32 MB), however many images were measured


def wilson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (JASA 1927) of the share behind `hits` of `count`, both ends in 0..1.

    Unlike the share ± its standard error it stays inside 0..1 and keeps a width at 0 and at `count` hits. Of nothing
    measured nothing is known: (0.0, 1.0) for `count` 0.
    Raises ErasureError where 0 ≤ hits ≤ count or 0 < level < 1 does not hold.
    """
    from scipy.stats import binomtest

    _require_level(level)
    if not 0 <= hits <= count:
        raise ErasureError(f"{hits} hits of {count} images are no share: hits are counted from 0 up to all images.")
    if count == 0:
        return 0.0, 1.0
    found = binomtest(int(hits), int(count)).proportion_ci(confidence_level=level, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_mean(values: Iterable[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13) of the mean of `values`, in their unit.

    The same values, level and seed give the same interval. Fewer than two values say nothing about their spread:
    (-inf, inf). Raises ErasureError where a value is not finite or 0 < level < 1 does not hold.
    """
    import numpy as np
    from scipy.stats import bootstrap

    _require_level(level)
    sample = np.fromiter((float(value) for value in values), dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ErasureError("One of the measured values is not a number, so their mean has no interval: leave it out.")
    if len(sample) < 2:
        return -math.inf, math.inf
    found = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _NUMBERS_AT_ONCE // len(sample)),
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ErasureError(f"A confidence level lies between 0 and 1, as 0.95 does, and cannot be {level}.")
