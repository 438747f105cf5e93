"""Text encoding as FluxPipeline does it: T5 outputs of every token (padding too) and CLIP's pooled output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import batches, prompts_at_once


@dataclass
class TextEmbeds:
    """t5: [B, L, D] joint-attention text tokens; pooled: [B, P] CLIP's pooled output."""

    t5: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return self.t5.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> TextEmbeds:
        """A part of the batch; an int keeps the batch dimension (B = 1)."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return TextEmbeds(self.t5[index], self.pooled[index])

    def to(self, *args: Any, **kwargs: Any) -> TextEmbeds:
        return TextEmbeds(self.t5.to(*args, **kwargs), self.pooled.to(*args, **kwargs))

    def expand(self, batch: int) -> TextEmbeds:
        """One prompt (B = 1) for a batch of images."""
        return TextEmbeds(self.t5.expand(batch, -1, -1), self.pooled.expand(batch, -1)) if len(self) == 1 else self

    @staticmethod
    def cat(parts: Sequence[TextEmbeds]) -> TextEmbeds:
        return TextEmbeds(torch.cat([part.t5 for part in parts]), torch.cat([part.pooled for part in parts]))


@dataclass
class TextEncoders:
    """CLIP-L and T5 with their tokenizers; sequence_length: T5 tokens per prompt, longer prompts are cut."""

    clip: Any  # transformers' CLIPTextModel
    t5: Any  # and T5EncoderModel
    tokenizer: Any
    tokenizer_2: Any
    sequence_length: int

    @property
    def device(self) -> torch.device:
        return next(self.clip.parameters()).device  # T5's weights may wait elsewhere

    def token_ids(self, prompt: str) -> list[int]:
        """T5 token ids as the model sees them: end token, then padding up to sequence_length."""
        return self.tokens(self.tokenizer_2, [prompt], self.sequence_length)[0].tolist()

    @torch.no_grad()
    def encode(self, prompts: str | Sequence[str], batch_size: int = 0) -> TextEmbeds:
        """Embeddings of the prompts, on the encoders' device and in their dtype; no gradients.

        Args:
            batch_size: prompts in a pass; 0: as `prompts_at_once` says.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        parts = []
        for batch in batches(len(prompts), batch_size or prompts_at_once(self.t5.config.num_heads)):
            chunk = prompts[batch]
            t5 = self.t5(self.tokens(self.tokenizer_2, chunk, self.sequence_length).to(self.device))[0]
            pooled = self.clip(
                self.tokens(self.tokenizer, chunk, self.tokenizer.model_max_length).to(self.device)
            ).pooler_output
            parts.append(TextEmbeds(t5, pooled))
        return TextEmbeds.cat(parts)

    @staticmethod
    def tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
        """[B, length] token ids; Flux attends to padding, so no attention mask is kept."""
        return tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
