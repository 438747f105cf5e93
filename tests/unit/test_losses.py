"""Every loss term against a naive float64 version of its formula, and its gradient against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.methods import losses


def rand(*shape: int, seed: int = 0, positive: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if positive else torch.randn
    return draw(*shape, generator=generator, dtype=torch.float64)


V, U, W = rand(3, 5, 4, seed=1), rand(3, 5, 4, seed=2), rand(3, 5, 4, seed=3)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_negative_guidance_is_esd_at_full_strength_and_the_base_at_none(eta: float):
    concept, empty = V, U
    esd = empty - eta * (concept - empty)  # Eq. 7, as printed
    torch.testing.assert_close(losses.negative_guidance_target(concept, empty, eta), esd)
    torch.testing.assert_close(losses.negative_guidance_target(concept, empty, eta, 0.0), concept)
    half = losses.negative_guidance_target(concept, empty, eta, 0.5)
    torch.testing.assert_close(half, (concept + esd) / 2)
    strengths = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)[:, None, None]
    mixed = losses.negative_guidance_target(concept, empty, eta, strengths)
    torch.testing.assert_close(mixed[0], concept[0])
    torch.testing.assert_close(mixed[1], esd[1])
    torch.testing.assert_close(mixed[2], half[2])


def test_velocity_matching_against_loops():
    total = sum((float(V[b, n, c]) - float(U[b, n, c])) ** 2 for b in range(3) for n in range(5) for c in range(4))
    assert float(losses.velocity_matching(V, U)) == pytest.approx(total / 60, rel=1e-6)
    assert float(losses.velocity_matching(V, V)) == 0


def test_relative_velocity_matching_against_loops():
    shares = []
    for b in range(3):
        error = sum((float(V[b, n, c]) - float(U[b, n, c])) ** 2 for n in range(5) for c in range(4))
        shares.append(error / sum(float(W[b, n, c]) ** 2 for n in range(5) for c in range(4)))
    assert float(losses.relative_velocity_matching(V, U, W)) == pytest.approx(sum(shares) / 3, rel=1e-5)
    # 1 for a student that is still the base, however far the target is
    assert float(losses.relative_velocity_matching(V, U, U - V)) == pytest.approx(1, rel=1e-5)
    assert math.isfinite(float(losses.relative_velocity_matching(V, U, torch.zeros_like(V))))


def test_attention_mass_against_loops():
    columns = [rand(2, 3, 7, seed=i, positive=True) for i in range(4)]
    values = [float(c[b, h, q]) for c in columns for b in range(2) for h in range(3) for q in range(7)]
    assert float(losses.attention_mass(columns)) == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_attention_features_against_numpy():
    columns = [rand(2, 3, 7, seed=i, positive=True) for i in range(4)]
    mean = np.stack([c.numpy() for c in columns]).mean(axis=(0, 2))
    expected = mean / np.sqrt((mean**2).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses.attention_features(columns).numpy(), expected, rtol=1e-5)


def unit(*shape: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(rand(*shape, seed=seed, positive=True), dim=-1)


def naive_contrast(student: torch.Tensor, synonym: torch.Tensor, irrelevant: torch.Tensor, tau: float) -> float:
    values = []
    for b in range(len(student)):
        good = sum(math.exp(float(student[b] @ k) / tau) for k in irrelevant[b])
        bad = math.exp(float(student[b] @ synonym[b]) / tau)
        values.append(-math.log(good / (bad + good)))
    return sum(values) / len(values)


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_reverse_self_contrastive_against_the_formula(tau: float):
    student, synonym, irrelevant = unit(2, 9, seed=1), unit(2, 9, seed=2), unit(2, 3, 9, seed=3)
    value = float(losses.reverse_self_contrastive(student, synonym, irrelevant, tau))
    assert value == pytest.approx(naive_contrast(student, synonym, irrelevant, tau), rel=1e-5)


def test_reverse_self_contrastive_goes_towards_the_irrelevant_words():
    synonym, irrelevant = unit(1, 9, seed=2), unit(1, 3, 9, seed=3)
    at_synonym = losses.reverse_self_contrastive(synonym, synonym, irrelevant)
    at_irrelevant = losses.reverse_self_contrastive(irrelevant[:, 0], synonym, irrelevant)
    assert float(at_irrelevant) < float(at_synonym)


def test_gap_margin_against_loops():
    values = []
    for b in range(3):
        near, far = float((V[b] - U[b]).norm()), float((V[b] - W[b]).norm())
        values.append(max(0.0, near - 0.7 * far))
    expected = 100 * sum(values) / 3
    assert expected > 0
    assert float(losses.gap_margin(V, U, W, 0.7, 100)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.gap_margin(V, V, W, 1.0, 100)) == 0  # at the anchor nothing is left to do


def test_gap_margin_has_a_slope_where_the_student_is_still_the_base():
    """There the second norm is zero, and has no derivative of its own."""
    student = W.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses.gap_margin(student, U, W, 1.0, 100.0), student)
    expected = torch.stack([(W[b] - U[b]) / (W[b] - U[b]).norm() for b in range(3)]) * 100 / 3
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


STUDENT = {
    "velocity_matching": lambda x: losses.velocity_matching(x, U),
    "relative_velocity_matching": lambda x: losses.relative_velocity_matching(x, U, W),
    "attention_mass": lambda x: losses.attention_mass([x, x.square()]),
    "attention_features": lambda x: (losses.attention_features([x.abs() + 0.1]) * U[:, 0, :1]).sum(),
    "reverse_self_contrastive": lambda x: losses.reverse_self_contrastive(
        torch.nn.functional.normalize(x.flatten(1), dim=-1), unit(3, 20, seed=5), unit(3, 2, 20, seed=6), 0.5
    ),
    "gap_margin": lambda x: losses.gap_margin(x, U, W, 0.5, 10.0),
}


@pytest.mark.parametrize("name", STUDENT)
def test_gradients_are_those_of_finite_differences(name: str):
    # the terms compute in fp32, so steps are large and the comparison is along a direction rather than per entry
    loss, point, step = STUDENT[name], V.clone().requires_grad_(True), 1e-2
    (gradient,) = torch.autograd.grad(loss(point), point)
    for seed in range(3):
        direction = rand(3, 5, 4, seed=10 + seed)
        ahead, behind = (float(loss(V + sign * step * direction)) for sign in (1, -1))
        numeric = (ahead - behind) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-2, abs=1e-4)


def test_targets_are_constants():
    target = U.clone().requires_grad_(True)
    student = V.clone().requires_grad_(True)
    features = torch.nn.functional.normalize(target.flatten(1), dim=-1)
    mine = torch.nn.functional.normalize(student.flatten(1), dim=-1)
    total = (
        losses.velocity_matching(student, target)
        + losses.velocity_matching(student, losses.negative_guidance_target(target, W, 1.0))
        + losses.reverse_self_contrastive(mine, features, features[:, None])
        + losses.gap_margin(student, target, target, 0.5, 1.0)
        + losses.relative_velocity_matching(student, target, target)
    )
    total.backward()
    assert target.grad is None and student.grad is not None
