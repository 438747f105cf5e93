"""A LoRA that acts only in a part of the sampling, or only on prompts that are about what it erases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..training.concepts import THRESHOLD, concept_keys, relevance
from ..training.errors import ConfigError, LoraError
from ..training.lora.files import erased_names
from .joint_attention import read_clip_prompt
from .native import PlacedLora


@dataclass(frozen=True)
class Gate:
    """Lets prompts through whose `relevance` to one of `keys` reaches `threshold`.

    Args:
        keys: [n, D] for each LoRA's names, see `concept_keys`.
        threshold: in 0..1.
        on_similarity: Called with the largest similarity of a batch.
    """

    keys: tuple[Tensor, ...]
    threshold: float
    on_similarity: Callable[[float], None] = lambda similarity: None

    def open(self, context: Tensor) -> Tensor:
        """Text embeddings [B, L, D] → [B] bool."""
        found = relevance(context, self.keys)
        self.on_similarity(float(found.max()))
        return found >= self.threshold


def make_gate(lora: PlacedLora, clip: Any, threshold: float, on_similarity: Callable[[float], None]) -> Gate:
    """The gate of one LoRA, for the names in its metadata as this CLIP's T5 reads them. LoraError, ConfigError."""
    if not 0 < threshold <= 1:
        raise ConfigError(f"The threshold {threshold} is outside 0 to 1: {THRESHOLD} is a good one.")
    if clip is None:
        raise ConfigError("Only when asked for needs the text encoder: connect CLIP to Apply Erasure LoRA.")
    names = erased_names(lora.file.metadata)
    if not names:
        raise LoraError(f"{lora.name} does not say what it erases: switch off only when asked for.")

    def encode(text: str) -> Tensor:
        return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[0][0]

    keys = concept_keys(names, encode, lambda text, name: read_clip_prompt(clip, text).phrase(name).tokens)
    return Gate(keys, threshold, on_similarity)


class ConditionalLora:
    """Computes a LoRA beside the weights, so that it can be on for some rows of a batch and some steps only.

    Where it is off, nothing is added: those images are the same to the last bit as without it.

    sigmas: (highest, lowest) at which it acts.
    """

    def __init__(self, lora: PlacedLora, strength: float, sigmas: tuple[float, float], gate: Gate | None) -> None:
        self.sigmas, self.gate = sigmas, gate
        self.rows: Tensor | None = None  # indices of the batch's rows where it acts in this pass
        self.layers: dict[str, list[tuple[Tensor, Tensor, slice]]] = {}
        for module, places in lora.places.items():
            a, b, alpha = lora.file.weights[module]
            for weight, outputs, rows in places:
                part = (a, b[rows] * (strength * alpha / len(a)), outputs or slice(None))
                self.layers.setdefault(weight, []).append(part)

    def __deepcopy__(self, memo: dict) -> ConditionalLora:
        return self  # the host copies a MODEL's options in depth; the wrapper and the layers must stay one object

    def put_on(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of the MODEL with this LoRA; the MODEL given stays as it is."""
        patched = model.clone()
        for weight, parts in self.layers.items():
            place = weight.removesuffix(".weight") + ".forward"
            patched.add_object_patch(place, self._forward(patched.get_model_object(place), parts))
        # a key of its own: several of them act on one MODEL
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, f"erase_anything.lora.{id(self)}", self._pass)
        return patched

    def _forward(self, inner: Callable, parts: Sequence[tuple[Tensor, Tensor, slice]]) -> Callable:
        ready: dict[tuple, list[tuple[Tensor, Tensor, slice]]] = {}

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out = inner(x, *args, **kwargs)
            if self.rows is None:
                return out
            kind = (x.device, x.dtype)
            if kind not in ready:
                ready[kind] = [(a.to(*kind), b.to(*kind), outputs) for a, b, outputs in parts]
            for a, b, outputs in ready[kind]:
                out[self.rows, ..., outputs] += (x[self.rows] @ a.T @ b.T).to(out.dtype)
            return out

        return forward

    def _pass(self, executor: Callable, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Any:
        highest, lowest = self.sigmas
        sigma = float(timestep.flatten()[0])
        if lowest <= sigma <= highest:
            on = torch.ones(len(x), dtype=torch.bool) if self.gate is None else self.gate.open(context).cpu()
            self.rows = on.nonzero().flatten().to(x.device) if on.any() else None
        try:
            return executor(x, timestep, context, *args, **kwargs)
        finally:
            self.rows = None


def sigma_range(model: ModelPatcher, start: float, end: float) -> tuple[float, float]:
    """(highest, lowest) sigma of the part of the sampling from `start` to `end` (0..1). ConfigError."""
    if not 0 <= start < end <= 1:
        raise ConfigError("The LoRA acts from start to end of the sampling, 0 to 1: start must be below end.")
    sampling = model.get_model_object("model_sampling")
    return float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end))
