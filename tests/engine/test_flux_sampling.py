"""Noise, sigmas, packing and whole images, against FluxPipeline and its scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from tests.support.flux_models import demo_parts, fp32_source, pipeline, pipeline_images, psnr
from training.models.loading import load_transformer
from training.models.sampling import decode, encode, generate, initial_noise, pack, sample, sigmas, to_pil, unpack
from training.models.variants import FLUX_DEV, FLUX_EMOJI, FLUX_SCHNELL, variant_of

PROMPTS = ["a car on a blue background", "a cat"]
SEEDS = [3, 2**40 + 1]
STEPS = 6  # fewer than the default only to save time


def test_images_agree_with_flux_pipeline(demo_folder: Path) -> None:
    parts = demo_parts(demo_folder)
    ours = generate(parts, PROMPTS, SEEDS, steps=STEPS)
    theirs = pipeline_images(pipeline(demo_folder), demo_folder, PROMPTS, SEEDS, STEPS)
    assert ours.shape == (2, 3, parts.variant.resolution, parts.variant.resolution)
    assert psnr(ours, theirs) >= 40
    assert psnr(ours[0], ours[1]) < 30  # two different images
    assert torch.equal(generate(parts, PROMPTS[0], SEEDS[0], steps=STEPS)[0], ours[0]) or (
        psnr(generate(parts, PROMPTS[0], SEEDS[0], steps=STEPS)[0], ours[0]) > 60  # batch size changes rounding only
    )


def test_embeddings_are_flux_pipelines(demo_folder: Path) -> None:
    parts = demo_parts(demo_folder)
    prompts = ["a car", "", "a red car next to a small green tree on a blue background, " * 8]  # the last one is cut
    embeds = parts.text.encode(prompts)
    t5, pooled, _ = pipeline(demo_folder).encode_prompt(prompts, max_sequence_length=parts.variant.sequence_length)
    torch.testing.assert_close(embeds.t5, t5, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeds.pooled, pooled, rtol=0, atol=1e-5)
    assert len(parts.text.token_ids(prompts[2])) == parts.variant.sequence_length


@pytest.mark.parametrize("variant", [FLUX_DEV, FLUX_SCHNELL, FLUX_EMOJI])
@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("tokens", [64, 1024, 4096])
def test_sigmas_are_the_schedulers(variant, steps: int, tokens: int) -> None:
    dynamic = variant.shift is None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if dynamic else variant.shift, use_dynamic_shifting=dynamic)
    mu = calculate_shift(tokens, base_shift=variant.base_shift, max_shift=variant.max_shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    torch.testing.assert_close(sigmas(variant, steps, tokens), scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_noise_is_what_the_pipeline_draws() -> None:
    noise = initial_noise([7, 8], (4, 6))
    for row, seed in zip(noise, (7, 8), strict=True):
        drawn = torch.randn((1, 16, 8, 12), generator=torch.Generator("cpu").manual_seed(seed))
        torch.testing.assert_close(row[None], FluxPipeline._pack_latents(drawn, 1, 16, 8, 12), rtol=0, atol=0)


def test_packing_is_the_pipelines_and_reversible() -> None:
    latents = torch.arange(2 * 16 * 8 * 12).reshape(2, 16, 8, 12).float()
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(packed, (4, 6)), latents)


def test_sampling_can_stop_and_reports_its_steps(demo_folder: Path) -> None:
    parts = demo_parts(demo_folder)
    grid, variant = parts.variant.grid, parts.variant
    levels = sigmas(variant, 4, grid[0] * grid[1])
    embeds, noise = parts.text.encode("a car"), initial_noise(5, grid)
    steps: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
    part = sample(
        parts.transformer, embeds, noise, levels, 3.5, grid, stop_at=2, callback=lambda *step: steps.append(step)
    )
    assert [(index, round(t, 4)) for index, t, _, _ in steps] == [(0, 1.0), (1, round(levels[1].item(), 4))]
    assert torch.equal(steps[0][2], noise)
    _, t, latents, flow = steps[1]
    torch.testing.assert_close(part, latents + (levels[2] - t) * flow)
    whole = sample(parts.transformer, embeds, noise, levels, 3.5, grid)
    rest = sample(parts.transformer, embeds, part, levels[2:], 3.5, grid)
    torch.testing.assert_close(rest, whole)


def test_decoded_images_are_8_bit_ready(demo_folder: Path) -> None:
    parts = demo_parts(demo_folder)
    images = decode(parts.vae, initial_noise([1, 2], parts.variant.grid) * 3, parts.variant.grid)
    assert images.min() >= 0 and images.max() <= 1
    (first, _) = to_pil(images)
    assert first.size == (parts.variant.resolution,) * 2
    assert first.getpixel((5, 9)) == tuple(int(value) for value in (images[0, :, 9, 5] * 255).round())


def test_encoding_undoes_decoding(demo_folder: Path) -> None:
    parts = demo_parts(demo_folder)
    image = generate(parts, "an owl", 3)
    latents = encode(parts.vae, image)
    assert latents.shape == (1, parts.variant.grid[0] * parts.variant.grid[1], 64)
    assert psnr(decode(parts.vae, latents, parts.variant.grid), image) > 25


def test_variant_and_precision(demo_folder: Path) -> None:
    source = fp32_source(demo_folder)
    variant = variant_of(source)
    assert (variant.name, variant.sequence_length, variant.resolution) == ("flux-emoji", 32, 128)
    half = load_transformer(source, "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in half.parameters())
