"""Output-space maps in the host's Flux: concepts carried through the text stream beside the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..training.errors import ConfigError
from ..training.inspection.recording import Recording
from ..training.models.concept_attention import concept_shares, concept_vectors
from .joint_attention import Attention, Call, Tap, read_clip_prompt


class ConceptRecorder(Tap):
    """Fills a Recording with the share of every concept in each image token.

    vectors [1, C, D]: T5 vectors of the recording's labels (encode_clip_concepts()). They take the text stream's way
    through the double blocks, attending to themselves and the image; nothing attends to them, so the picture stays.
    """

    def __init__(self, recording: Recording, vectors: Tensor, start: float = 1.0, end: float = 0.0) -> None:
        if any(index >= recording.double for index in recording.blocks):
            raise ConfigError("Concepts live in the double blocks: choose best, double or a list without s.")
        # all blocks on the way, not only those that are recorded
        super().__init__(range(max(recording.blocks) + 1), recording.double, start, end)
        self.recording, self.vectors = recording, vectors
        self._flux: Any = None
        self._state: Tensor | None = None
        self._modulation: Tensor | None = None

    def begin(self) -> None:
        self.recording.clear()

    def prepare(self, call: Call, flux: Any, x: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        vectors = self.vectors.to(x.device, x.dtype)
        self._flux, self._state = flux, flux.txt_in(vectors).expand(call.rows.stop - call.rows.start, -1, -1)
        replaced = dict(options.get("patches_replace", {}))
        hooks = dict(replaced.get("dit", {}))
        for index in self.blocks:
            hooks["double_block", index] = self._modulated(hooks.get(("double_block", index)))
        return {**options, "patches_replace": {**replaced, "dit": hooks}}

    def _modulated(self, inner: Callable | None) -> Callable:
        """Sees what modulates a block, and calls another pack's replacement of the block if there is one."""

        def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            self._modulation = args["vec"]
            return extra["original_block"](args) if inner is None else inner(args, extra)

        return block

    def attention(
        self, call: Call, index: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, plain: bool
    ) -> Tensor:
        out = attention(q, k, v)
        heads = q.shape[1]
        assert self._modulation is not None, "a block's hook runs before its attention"
        seen = self._step(index, k[call.rows, :, call.image], v[call.rows, :, call.image], self._modulation[call.rows])
        if index in self.recording.blocks:
            if not call.found:
                self.recording.begin(call.grid, call.text_length, k.shape[2])
            image_out = out[call.rows, call.image].unflatten(-1, (heads, -1)).transpose(1, 2)
            call.found[index] = concept_shares(image_out, seen)[:, None]
        return out

    def _step(self, index: int, image_key: Tensor, image_value: Tensor, modulation: Tensor) -> Tensor:
        """The concepts' attention output in one block, [B, heads, C, d]; moves their state to the next block."""
        block, state = self._flux.double_blocks[index], self._state
        first, second = block.txt_mod(modulation)
        qkv = block.txt_attn.qkv((1 + first.scale) * block.txt_norm1(state) + first.shift)
        query, key, value = qkv.unflatten(-1, (3, image_key.shape[1], -1)).permute(2, 0, 3, 1, 4)
        query, key = block.txt_attn.norm(query, key, value)
        # text sits at position 0, where the rotary embedding is the identity
        seen = F.scaled_dot_product_attention(query, torch.cat([key, image_key], 2), torch.cat([value, image_value], 2))
        state = state + first.gate * block.txt_attn.proj(seen.transpose(1, 2).flatten(2))
        moved = (1 + second.scale) * block.txt_norm2(state) + second.shift
        self._state = state + second.gate * block.txt_mlp(moved)
        return seen

    def finish(self, call: Call) -> None:
        self._flux = self._state = self._modulation = None
        times = self.recording.times
        if len(call.found) == len(self.recording.blocks) and not (times and times[-1] == call.t):
            self.recording.add(call.t, [call.found[index] for index in self.recording.blocks])


def encode_clip_concepts(clip: Any, labels: Sequence[str]) -> Tensor:
    """[1, C, D]: the T5 vectors of some concepts, each encoded alone; ConfigError for fewer than two."""
    if len(labels) < 2:
        raise ConfigError("Concepts are shares of each picture part: write at least two, such as: cat, background.")
    encoded = [clip.encode_from_tokens(clip.tokenize(label))[0] for label in labels]
    return concept_vectors(encoded, [range(max(read_clip_prompt(clip, label).end, 1)) for label in labels])
