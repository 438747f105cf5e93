"""The engine's recordings: columns of the demo model against a naive float64 softmax, concepts against whole blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.flux_models import TINY_GRID, TINY_TEXT, demo_parts, tiny_inputs, tiny_transformer
from training.errors import ConfigError
from training.inspection.capture import encode_concepts, record_concepts, record_pass
from training.models.attention import attend, attention_columns, install_processors, text_columns
from training.models.concept_attention import ConceptCapture, concept_shares
from training.models.sampling import initial_noise
from training.models.velocity import velocity


class Spy:
    """A capture that keeps every block's query, key, value and attention output."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def start(self, transformer, _text_length: int) -> dict:
        install_processors(transformer)
        return {"recorder": self}

    def finish(self, _transformer) -> None:
        pass

    def at(self, index: int) -> SpyBlock:
        return SpyBlock(self, index)


@dataclass
class SpyBlock:
    spy: Spy
    index: int

    def record(self, *tensors: Tensor) -> None:
        self.spy.seen[self.index] = tensors


def naive(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt d) in float64, [B, H, queries, keys]."""
    return (query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the whole: ||found - expected|| / ||expected||."""
    return float((found.double() - expected).norm() / expected.norm())


def worst_entry(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of a single entry."""
    return float(((found.double() - expected).abs() / expected.abs()).max())


@pytest.fixture(scope="module")
def demo_pass(demo_folder: Path) -> tuple:
    """The demo model's inputs at t = 0.6 for two images, and what every block did with them."""
    parts = demo_parts(demo_folder)
    grid = parts.variant.grid
    latents = initial_noise([1, 2], grid)
    embeds = parts.text.encode(["a cat next to a car", "a photo of a penguin"])
    spy = Spy()
    with torch.no_grad():
        velocity(parts.transformer, latents, 0.6, embeds, 3.5, grid, capture=spy)
    return parts, latents, embeds, spy.seen


def test_columns_of_the_demo_model_are_the_float64_softmax(demo_pass: tuple) -> None:
    parts, latents, embeds, seen = demo_pass
    length = embeds.t5.shape[1]
    recording = record_pass(parts.transformer, latents, 0.6, embeds, 3.5, parts.variant.grid, range(6))
    for index, (query, key, _, _) in seen.items():
        expected = naive(query[:, :, length:], key)[..., :length].transpose(2, 3)
        normaliser = attend(query[:, :, length:], key, key)[1]
        found = text_columns(query[:, :, length:], key, normaliser, length)
        assert relative_error(found, expected) < 1e-5
        # An entry's relative error is the absolute error of its logit, here up to 23: what fp32 allows, and what
        # PyTorch's own fp32 softmax has.
        scores = query[:, :, length:] @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        own = scores.softmax(-1)[..., :length].transpose(2, 3)
        assert worst_entry(found, expected) < max(1.5 * worst_entry(own, expected), 1e-5)
        means = text_columns(query[:, :, length:], key, normaliser, length, mean_heads=True)
        assert relative_error(means[:, 0], expected.mean(1)) < 1e-5
        # fp16 keeps three digits of the recorded ones
        kept = recording.maps[0, index].double() / recording.unit
        assert ((kept - expected).abs() <= 6e-4 * expected + 1e-9).all()
        assert expected.std() > 1e-3
    assert len(seen) == 6


def test_both_ways_to_columns_agree(demo_pass: tuple) -> None:
    _, _, embeds, seen = demo_pass
    length = embeds.t5.shape[1]
    query, key, value, out = seen[2]
    tokens = torch.rand(2, 5, length, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = attention_columns(query, key, tokens)
    differentiable = attention_columns(query.clone().requires_grad_(), key, tokens)
    assert differentiable.requires_grad and not plain.requires_grad
    torch.testing.assert_close(plain, differentiable.detach(), rtol=1e-5, atol=1e-8)
    found, normaliser = attend(query, key, value)
    torch.testing.assert_close(found, out, rtol=1e-5, atol=1e-6)
    scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    torch.testing.assert_close(normaliser.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-6)


def test_columns_without_a_fused_kernel() -> None:
    """On other devices the softmax's denominator comes from chunks of queries."""
    query, key = (torch.randn(1, 2, n, 16, generator=torch.Generator().manual_seed(n)) for n in (600, 620))
    expected = (query @ key.transpose(-1, -2) / 4).logsumexp(-1)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    _, normaliser = attend(query.as_subclass(Elsewhere), key, key)
    torch.testing.assert_close(normaliser.as_subclass(torch.Tensor), expected)


def test_bf16_columns_are_close_to_their_own_float64_softmax(demo_pass: tuple) -> None:
    _, _, embeds, seen = demo_pass
    length = embeds.t5.shape[1]
    query, key = (x.bfloat16() for x in seen[2][:2])
    query = query[:, :, length:]
    found = text_columns(query, key, attend(query, key, key)[1], length)
    assert relative_error(found, naive(query, key)[..., :length].transpose(2, 3)) < 1e-3


def test_concepts_pass_through_the_blocks_as_text_does() -> None:
    """Every block run with the concepts in place of the prompt gives their states and outputs."""
    latents, t, embeds = tiny_inputs()
    model = tiny_transformer()
    concepts = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(7))
    spy, inputs = Spy(), []
    handles = [
        block.register_forward_pre_hook(lambda _m, _a, kwargs: inputs.append(dict(kwargs)), with_kwargs=True)
        for block in model.transformer_blocks
    ]
    plain = velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=spy)
    for handle in handles:
        handle.remove()

    capture = ConceptCapture(concepts, [1, 0, -1])
    torch.testing.assert_close(velocity(model, latents, t, embeds, 3.5, TINY_GRID, capture=capture), plain)

    state = model.context_embedder(concepts).expand(2, -1, -1)
    expected = []
    for index, block in enumerate(model.transformer_blocks):
        other = Spy()
        rope = tuple(torch.cat([r[:3], r[TINY_TEXT:]]) for r in inputs[index]["image_rotary_emb"])
        state, _ = block(
            hidden_states=inputs[index]["hidden_states"],
            encoder_hidden_states=state,
            temb=inputs[index]["temb"],
            image_rotary_emb=rope,
            joint_attention_kwargs={"recorder": other},
        )
        image_out, concept_out = spy.seen[index][3][:, :, TINY_TEXT:], other.seen[index][3][:, :, :3]
        products = concept_out.transpose(1, 2).flatten(2).double() @ (
            image_out.transpose(1, 2).flatten(2).double().transpose(1, 2)
        )
        expected.append(products.softmax(1))
    for found, index in zip(capture.shares, (1, 0, 1), strict=True):
        assert found.shape == (2, 3, latents.shape[1])
        torch.testing.assert_close(found.double(), expected[index], rtol=1e-4, atol=1e-6)
    assert expected[1].std() > 1e-3


def test_shares_sum_to_one() -> None:
    shares = concept_shares(torch.randn(2, 4, 10, 8), torch.randn(2, 4, 3, 8))
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 10))


def test_concepts_need_not_be_in_the_prompt(demo_pass: tuple) -> None:
    parts, latents, embeds, _ = demo_pass
    vectors = encode_concepts(parts.text, ["cat", "soccer ball", ""])
    assert vectors.shape == (1, 3, embeds.t5.shape[2])
    recording = record_concepts(
        parts.transformer, latents, 0.6, embeds, 3.5, parts.variant.grid, (1, 2), ["cat", "soccer ball", ""], vectors
    )
    assert recording.maps.shape == (1, 2, 2, 1, 3, 64)
    torch.testing.assert_close(recording.mean(1).sum(0), torch.ones(8, 8), rtol=0, atol=2e-3)
    with pytest.raises(ConfigError, match="double blocks"):
        record_concepts(parts.transformer, latents, 0.6, embeds, 3.5, (8, 8), (3,), ["cat"], vectors[:, :1])
