"""Concepts carried through the text stream beside the prompt: output-space maps (ConceptAttention, ICML 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .attention import install_processors

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


def concept_shares(image_out: Tensor, concept_out: Tensor) -> Tensor:
    """The share of each concept in each image token: softmax over concepts of image output · concept output.

    image_out [B, H, N, d] and concept_out [B, H, C, d]: attention outputs, before the output projection, heads
    concatenated for the product. Returns [B, C, N] in fp32, sums of 1 over C (ConceptAttention, equation 7).
    """
    products = torch.einsum("bhcd,bhnd->bcn", concept_out.float(), image_out.float())
    return products.softmax(1)


def concept_vectors(t5: Tensor | Sequence[Tensor], tokens: Sequence[Sequence[int]]) -> Tensor:
    """One vector per concept, [1, C, D]: the mean of its tokens' T5 outputs.

    t5: of each of C concepts the encoded prompt of its own, [L, D] or [1, L, D]; tokens: its words' positions there.
    """
    return torch.stack([each.squeeze(0)[list(positions)].mean(0) for each, positions in zip(t5, tokens, strict=True)])[
        None
    ]


class ConceptCapture:
    """Records, in velocity(), how much of each concept is in each image token.

    concepts [1, C, D]: T5 vectors (see concept_vectors()); they need not be in the prompt. They pass through the text
    stream's weights as the prompt does and attend to themselves and to the image; nothing attends to them, so the
    velocity stays as it is. blocks: indices of double blocks, negative ones from the last. After the call `shares`
    holds one [B, C, N] per block in the order given. No gradients.
    """

    def __init__(self, concepts: Tensor, blocks: Sequence[int]) -> None:
        self.concepts = concepts
        self.blocks = tuple(blocks)
        self.shares: list[Tensor] = []
        self._recorder: _ConceptRecorder | None = None

    def start(self, transformer: FluxTransformer2DModel, text_length: int) -> dict[str, Any]:
        """Prepare a pass, as AttentionCapture.start() does."""
        double = len(transformer.transformer_blocks)
        indices = [block + double if block < 0 else block for block in self.blocks]
        if not indices or any(not 0 <= index < double for index in indices):
            raise ConfigError(f"Concepts live in the {double} double blocks: choose blocks from 0 to {double - 1}.")
        install_processors(transformer)
        recorder = self._recorder = _ConceptRecorder(transformer, self.concepts, indices, text_length)

        def remember(_module: object, _args: object, embedding: Tensor) -> None:
            recorder.modulation = embedding
            handle.remove()  # it runs once, before the blocks

        handle = transformer.time_text_embed.register_forward_hook(remember)
        return {"recorder": recorder}

    def finish(self, transformer: FluxTransformer2DModel) -> None:
        """Take the maps over from the pass."""
        assert self._recorder is not None, "finish() follows start()"
        self.shares = [self._recorder.found[index] for index in self._recorder.indices]


class _ConceptRecorder:
    def __init__(
        self, transformer: FluxTransformer2DModel, concepts: Tensor, indices: list[int], text_length: int
    ) -> None:
        parameter = transformer.context_embedder.weight
        self.blocks = transformer.transformer_blocks
        self.indices, self.text_length = indices, text_length
        self.found: dict[int, Tensor] = {}
        self.modulation: Tensor | None = None
        with torch.no_grad():
            self.state = transformer.context_embedder(concepts.to(parameter.device, parameter.dtype))

    def at(self, index: int) -> _BlockRecorder | None:
        return None if index > max(self.indices) else _BlockRecorder(self, index)

    @torch.no_grad()
    def record(self, index: int, key: Tensor, value: Tensor, out: Tensor) -> None:
        block, image = self.blocks[index], slice(self.text_length, None)
        attn = block.attn
        state = self.state.expand(key.shape[0], -1, -1)
        normed, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1_context(state, emb=self.modulation)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, attn.head_dim))

        # text sits at position 0, where the rotary embedding is the identity
        query = attn.norm_added_q(heads(attn.add_q_proj(normed))).transpose(1, 2)
        own_key = attn.norm_added_k(heads(attn.add_k_proj(normed))).transpose(1, 2)
        own_value = heads(attn.add_v_proj(normed)).transpose(1, 2)
        seen = F.scaled_dot_product_attention(
            query, torch.cat([own_key, key[:, :, image]], 2), torch.cat([own_value, value[:, :, image]], 2)
        )
        if index in self.indices:
            self.found[index] = concept_shares(out[:, :, image], seen)
        state = state + gate[:, None] * attn.to_add_out(seen.transpose(1, 2).flatten(2))
        normed = block.norm2_context(state) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        self.state = state + gate_mlp[:, None] * block.ff_context(normed)


@dataclass
class _BlockRecorder:
    whole: _ConceptRecorder
    index: int

    def record(self, _query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        self.whole.record(self.index, key, value, out)
