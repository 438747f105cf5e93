"""Distances and CLIP scores against closed forms, another square root, and transformers' own CLIP."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor, nn

from tests.support.judge_models import make_clip
from training.errors import ConfigError, ErasureError, SourceError
from training.evaluation.fidelity import (
    INCEPTION_FEATURES,
    SUBSET,
    clip_scores,
    distances,
    frechet,
    kernel,
    make_features,
    mean_score,
    parse,
    read_reference,
)
from training.evaluation.judges.clip import Clip


def sample(count: int, mean: Tensor, root: Tensor) -> Tensor:
    """[count, D] whose mean is `mean` and whose covariance (with n − 1) is root·rootᵀ, exactly but for rounding."""
    drawn = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    drawn -= drawn.mean(0)
    white = drawn @ torch.linalg.inv(torch.linalg.cholesky(drawn.T @ drawn / (count - 1))).T
    return white @ root.T + mean


def test_the_frechet_distance_of_normal_distributions_is_the_closed_form() -> None:
    """Diagonal covariances: ‖μ₁ − μ₂‖² + Σ(σ₁ − σ₂)² (Dowson & Landau 1982)."""
    first, second = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    means = torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor([3.0, 1.0, 4.0]).double()
    found = frechet(sample(50, means[0], first.diag()), sample(70, means[1], second.diag()))
    assert found == pytest.approx(25 + 1 + 1, rel=1e-9)
    assert frechet(sample(40, means[0], first.diag()), sample(40, means[0], first.diag())) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_agrees_with_scipys_square_root() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(60, 12, generator=generator) @ torch.randn(12, 12, generator=generator) for _ in range(2))
    (m1, c1), (m2, c2) = ((x.numpy().astype(float).mean(0), np.cov(x.numpy().astype(float).T)) for x in (a, b))
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6) and expected > 1
    assert frechet(b, a) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_the_unbiased_estimate_by_hand() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(7, 5, generator=generator).double(), torch.randn(7, 5, generator=generator).double() + 0.5

    def k(u: Tensor, v: Tensor) -> float:
        return (float(u @ v) / 5 + 1) ** 3

    n = len(x)
    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected = within - 2 * sum(k(u, v) for u in x for v in y) / n**2
    mean, deviation = kernel(x, y)
    assert mean == pytest.approx(expected, rel=1e-9) and math.isnan(deviation)
    many = torch.randn(SUBSET + 50, 3, generator=generator)
    before = torch.random.get_rng_state()
    first, second = kernel(many, many + 1, seed=5), kernel(many, many + 1, seed=5)
    assert first == second != kernel(many, many + 1, seed=6) and first[1] > 0
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's numbers change


def test_equal_pictures_are_at_no_distance_and_few_are_told_without_a_deviation() -> None:
    same = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    found = distances(same, same)
    assert found["frechet"] == pytest.approx(0, abs=1e-6) and found["kernel_deviation"] is None
    assert found["images"] == 5


def test_the_clip_score_is_the_logit_of_transformers_without_its_scale(tmp_path: Path, demo_folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    folder = make_clip(tmp_path / "clip", demo_folder)
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(2)).mul(255).round() / 255
    captions = ["a photo of a car", "a dog", "an owl next to a castle"]
    found = clip_scores(Clip(folder), images, captions)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    pixels = (images - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        logits = model(**tokenizer(captions, return_tensors="pt", padding=True), pixel_values=pixels).logits_per_image
    expected = (100 * logits.diagonal() / model.logit_scale.exp()).clamp_min(0).tolist()
    assert found == pytest.approx(expected, abs=1e-3) and max(found) > 1
    told = mean_score(found)
    assert told["mean"] == pytest.approx(sum(expected) / 3, abs=2e-3) and told["images"] == 3
    assert mean_score([5.0]) == {"mean": 5.0, "interval": None, "images": 1}
    long = "a very long caption about a car " * 40  # cut where the encoder ends, as CLIP's own tokenizer does
    assert 0 <= clip_scores(Clip(folder), images[:1], [long])[0] <= 100


class InceptionLike(nn.Module):
    """What NVIDIA's file looks like from outside: uint8 pictures of any size in, features out."""

    def __init__(self, features: int = INCEPTION_FEATURES) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(-1, 1, 3 * features).reshape(3, features))

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean([2, 3]) @ self.weights


def test_fid_takes_the_network_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(InceptionLike()).save(str(path))
    features = make_features(f"inception:{path}", None, "cpu")
    assert features.is_fid and len(features.sha256) == 64
    images = torch.rand(4, 3, 20, 30, generator=torch.Generator().manual_seed(7))
    expected = images.mul(255).round().mean((2, 3)) @ InceptionLike().weights
    assert torch.allclose(features(images), expected, atol=1e-3)
    torch.jit.script(InceptionLike(64)).save(str(path))
    with pytest.raises(SourceError, match="no \\[B, 2048\\]"):
        make_features(f"inception:{path}", None, "cpu")(images)


def test_reference_pictures_that_cannot_be_read_are_named(tmp_path: Path, demo_folder: Path) -> None:
    features = make_features("model", demo_folder, "cpu")
    for number in range(3):
        Image.new("RGB", (128, 128), (number * 50, 10, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    found = read_reference(tmp_path, features)
    assert found.features.shape == (3, 144) and list(found.unreadable) == ["cut.png"]
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    with pytest.raises(ErasureError, match="1 usable pictures, 1 cannot be read"):
        read_reference(tmp_path, features)
    with pytest.raises(ErasureError, match="cannot be read"):
        read_reference(tmp_path / "nowhere", features)


def test_features_are_named_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("clip:a:b") == ("clip", "a:b") and parse("model") == ("model", "")
    for wrong in ("clip", "model:x", "inception:", "eyes"):
        with pytest.raises(ConfigError, match="Unknown features"):
            parse(wrong)
    with pytest.raises(ErasureError, match="has no classifier of its own"):
        make_features("model", tmp_path, "cpu")
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.fid", None)  # as where it is not installed
    with pytest.raises(ErasureError, match="pip install torchmetrics"):
        make_features("model", tmp_path, "cpu")
