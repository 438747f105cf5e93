"""Rendering pictures of prompts and seeds by the model as it is, into a mapping that may lie on a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..concepts import forms_of, span_mask, token_spans
from ..models.sampling import generate
from .cases import Key

if TYPE_CHECKING:
    from ..models.loading import FluxParts

Pictures = MutableMapping[Key, Tensor]  # (prompt, seed) → RGB uint8 [3, H, W]


def render(
    parts: FluxParts,
    keys: Iterable[Key],
    pictures: Pictures,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    deleted: str = "",
    guidance: float | None = None,
) -> None:
    """Renders what `pictures` lacks of `keys`, by the transformer as it is, into `pictures`.

    Args:
        progress: Called with (Euler steps done, in all).
        deleted: A phrase whose tokens get no attention.
        guidance: None for the model's default.
    """
    missing = [key for key in dict.fromkeys(keys) if key not in pictures]
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    for number, batch in enumerate(batches):  # one by one, so that pictures on a disk survive an interruption
        prompts, seeds = [prompt for prompt, _ in batch], [seed for _, seed in batch]

        def step(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(batches) * total)

        with parts.computing():
            made = generate(
                parts,
                prompts,
                seeds,
                guidance=guidance,
                batch_size=len(batch),
                callback=step,
                deleted=span_masks(parts, prompts, deleted) if deleted else None,
            )
        for key, picture in zip(batch, made.mul(255).round().byte(), strict=True):
            pictures[key] = picture


def stacked(pictures: Pictures, keys: Iterable[Key]) -> Tensor:
    """The pictures as judges take them: fp32 [n, 3, H, W] in 0..1."""
    return torch.stack([pictures[key] for key in keys]).float() / 255


def span_masks(parts: FluxParts, prompts: Sequence[str], phrase: str) -> Tensor:
    """[n, L]: 1 at the phrase's tokens, and its plural's, in each prompt."""
    length, tokenizer = parts.text.sequence_length, parts.text.tokenizer_2
    masks = [
        [span_mask(token_spans(tokenizer, prompt, form, length), length) for form in forms_of(phrase)]
        for prompt in prompts
    ]
    return torch.stack([torch.stack(each).any(0) for each in masks]).float()
