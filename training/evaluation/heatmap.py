"""Where the concept's word points in the base's own picture, before and after an erasure: a pass each, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..inspection.capture import noised, record_pass
from ..inspection.heatmaps import Figure, figure_of, overlays, png_bytes
from ..inspection.recording import default_blocks, default_time
from ..inspection.words import read_prompt
from ..models.sampling import encode, initial_noise
from .cases import Key
from .pictures import write_whole

if TYPE_CHECKING:
    from ..models.loading import FluxParts


class WordHeatmaps:
    """The attention that one picture pays to a phrase of its prompt, under the transformer as it is each time."""

    def __init__(self, parts: FluxParts, phrase: str, key: Key, picture: Tensor) -> None:
        """picture: uint8 [3, H, W], made from `key`'s prompt and seed at the variant's resolution."""
        self.parts, self.key = parts, key
        self.prompt = read_prompt(parts.text.tokenizer_2, key[0], parts.text.sequence_length)
        self.word = self.prompt.phrase(phrase)
        self.picture = picture
        double = len(parts.transformer.transformer_blocks)
        self.blocks, self.t = default_blocks(double), default_time(double)
        self.figures: dict[str, Figure] = {}

    def record(self, name: str) -> None:
        """Records one pass as the figure `name`."""
        parts, (prompt, seed) = self.parts, self.key
        with parts.computing(), torch.no_grad():
            latents = encode(parts.vae, self.picture[None] / 255)
            x_t = noised(latents, initial_noise(seed, parts.variant.grid).to(latents), self.t)
            recording = record_pass(
                parts.transformer,
                x_t,
                self.t,
                parts.text.encode([prompt]),
                parts.variant.default_guidance,
                parts.variant.grid,
                self.blocks,
            )
        image = self.picture.permute(1, 2, 0) / 255
        self.figures[name] = figure_of(recording, self.prompt, [self.word], image)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes `heatmaps/<name>.png` of every figure, one colour scale for all; → the facts about them, as JSON."""
        top = max(float(figure.maps[: figure.drawn].max()) for figure in self.figures.values()) or 1.0
        sets = {}
        for name, figure in self.figures.items():
            file = f"heatmaps/{name}.png"
            write_whole(folder / file, png_bytes(overlays(figure, top)[0]))
            sets[name] = {"file": file, "mass": round(figure.mass()[0], 6)}
        prompt, seed = self.key
        names = next(iter(self.figures.values())).blocks
        return {
            "word": self.word.text,
            "prompt": prompt,
            "seed": seed,
            "t": self.t,
            "blocks": names,
            "top": round(top, 6),
            "sets": sets,
        }
