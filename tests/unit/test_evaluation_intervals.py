"""Confidence intervals against the formula, another bootstrap, and how often they hold the truth."""

from __future__ import annotations

import math
import random
import statistics
import warnings

import numpy as np
import pytest

from training.errors import ErasureError
from training.evaluation.intervals import bootstrap_mean, wilson


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 24), (24, 24), (3, 24), (12, 24), (199, 4703)])
def test_wilson_is_where_the_score_test_turns(hits: int, count: int, level: float) -> None:
    """By definition the ends are the shares π with (p − π)² = z²·π(1 − π)/n: found by bisection, not by the formula."""
    z, p = statistics.NormalDist().inv_cdf(0.5 + level / 2), hits / count

    def end(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            if (p - middle) ** 2 <= z * z * middle * (1 - middle) / count:
                inside = middle
            else:
                outside = middle
        return inside

    centre = (p + z * z / (2 * count)) / (1 + z * z / count)  # p itself at 0 and 1 lies on the end
    low, high = wilson(hits, count, level)
    assert low == pytest.approx(0.0 if hits == 0 else end(centre, 0.0), abs=1e-12)
    assert high == pytest.approx(1.0 if hits == count else end(centre, 1.0), abs=1e-12)
    assert 0 <= low <= p <= high <= 1 and low < high


@pytest.mark.parametrize(("hits", "count"), [(60, 200), (100, 200), (900, 1000)])
def test_of_many_images_wilson_is_the_bootstrap_of_the_share(hits: int, count: int) -> None:
    """Two ways to the same thing where images are many: the mean of as many ones and zeros."""
    assert wilson(hits, count) == pytest.approx(bootstrap_mean([1] * hits + [0] * (count - hits)), abs=0.01)


def test_a_known_wilson_interval() -> None:
    """81 of 263, the example of Newcombe, Statistics in Medicine 17 (1998), Table I: 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_of_nothing_measured_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert bootstrap_mean([]) == bootstrap_mean([7.0]) == (-math.inf, math.inf)


def test_bootstrap_of_the_mean_agrees_with_one_drawn_by_hand() -> None:
    values = [math.exp(random.Random(n).gauss(0, 1)) for n in range(40)]  # skewed, as distances are
    draw = random.Random(1)
    means = sorted(statistics.fmean(draw.choices(values, k=40)) for _ in range(20_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_mean(values)
    error = statistics.stdev(values) / math.sqrt(40)
    assert low == pytest.approx(means[500], abs=0.05 * error) and high == pytest.approx(means[19_500], abs=0.05 * error)
    assert low < statistics.fmean(values) < high
    assert bootstrap_mean(values, 0.5)[0] > low and bootstrap_mean(values, 0.5)[1] < high


def test_bootstrap_is_the_same_for_a_seed_and_knows_its_size() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(iter(values), seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean([0.25] * 9) == (0.25, 0.25)
    many = np.random.default_rng(0).normal(5, 2, 10_000)
    assert bootstrap_mean(many) == pytest.approx((many.mean() - 0.0392, many.mean() + 0.0392), abs=0.002)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Wilson over every outcome of 30 images, by the binomial probabilities themselves."""
    for share in (0.05, 0.2, 0.5, 0.9):
        covered = 0.0
        for hits in range(31):
            low, high = wilson(hits, 30)
            if low <= share <= high:
                covered += math.comb(30, hits) * share**hits * (1 - share) ** (30 - hits)
        assert 0.92 < covered < 0.99


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0), (1, 5, math.nan), (1, -5)])
def test_shares_that_cannot_be_are_refused(arguments: tuple) -> None:
    with pytest.raises(ErasureError, match=r"are no share|between 0 and 1"):
        wilson(*arguments)


def test_means_that_cannot_be_are_refused() -> None:
    with pytest.raises(ErasureError, match="not a number"):
        bootstrap_mean([1.0, math.nan, 2.0])
    with pytest.raises(ErasureError, match="between 0 and 1"):
        bootstrap_mean([1.0, 2.0], level=95)
