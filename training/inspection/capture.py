"""Recordings by the engine itself, without a host: one pass of the transformer over noised latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.attention import AttentionCapture
from ..models.concept_attention import ConceptCapture, concept_vectors
from ..models.text import TextEmbeds, TextEncoders
from ..models.velocity import velocity
from .recording import OUTPUT, Recording
from .words import read_prompt

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


def noised(latents: Tensor, noise: Tensor, t: float) -> Tensor:
    """x_t = (1 - t) x_0 + t noise."""
    return (1 - t) * latents + t * noise


@torch.no_grad()
def record_pass(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    t: float,
    embeds: TextEmbeds,
    guidance: float,
    grid: tuple[int, int],
    blocks: Sequence[int],
) -> Recording:
    """Records every text token's attention map at x_t = `latents` [B, N, 64], for each head separately."""
    length = embeds.t5.shape[1]
    capture = AttentionCapture(torch.eye(length)[None], blocks)
    velocity(
        transformer,
        latents,
        t,
        embeds,
        guidance,
        grid,
        capture=capture,
        stop_after_block=max(capture.resolve(transformer)),
    )
    double = len(transformer.transformer_blocks)
    recording = Recording(blocks=tuple(capture.resolve(transformer)), double=double)
    recording.begin(grid, length, length + latents.shape[1])
    recording.add(t, capture.columns)
    return recording


@torch.no_grad()
def record_concepts(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    t: float,
    embeds: TextEmbeds,
    guidance: float,
    grid: tuple[int, int],
    blocks: Sequence[int],
    labels: Sequence[str],
    vectors: Tensor,
) -> Recording:
    """Records the share of each concept at x_t = `latents` [B, N, 64]; `vectors` [1, C, D] from encode_concepts()."""
    capture = ConceptCapture(vectors, blocks)
    velocity(transformer, latents, t, embeds, guidance, grid, capture=capture, stop_after_block=max(blocks))
    recording = Recording(OUTPUT, tuple(blocks), len(transformer.transformer_blocks), labels=tuple(labels))
    recording.begin(grid, embeds.t5.shape[1], embeds.t5.shape[1] + latents.shape[1])
    recording.add(t, [shares[:, None] for shares in capture.shares])
    return recording


def encode_concepts(text: TextEncoders, labels: Sequence[str]) -> Tensor:
    """The T5 vectors of some concepts, each encoded alone: [1, C, D]."""
    tokens = []
    for label in labels:
        read = read_prompt(text.tokenizer_2, label, text.sequence_length)
        tokens.append(range(read.end) if read.end else range(1))
    return concept_vectors(text.encode(list(labels)).t5, tokens)
