"""Sample pictures of a training: the same prompts and seeds again and again, step 0 before any training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .concepts import Concept
from .events import Report, phase
from .flow import Flow
from .models.device import release_unused
from .models.loading import load_vae
from .models.sampling import decode, initial_noise, sample, to_pil
from .models.source import FluxSource
from .models.text import TextEmbeds


def sample_prompts(concept: Concept) -> list[str]:
    """What samples show: the concept, its first synonym, an irrelevant word of the nearest kind."""
    words = [concept.phrase, *concept.synonyms[:1], *concept.irrelevant[-1:]]
    return [concept.prompt(word) for word in words]


@dataclass(frozen=True)
class SampleWriter:
    """Renders prompts under seeds 0, 1, … into a folder.

    Attributes:
        folder: of the training; pictures go to samples/ in it.
        source: has the autoencoder, which is loaded for each rendering and let go of again.
        prompts, embeds: texts, and their embeddings in the same order.
        count: pictures of each prompt, rendered at a time; 0: nothing is rendered.
    """

    folder: Path
    source: FluxSource
    flow: Flow
    prompts: Sequence[str]
    embeds: TextEmbeds
    count: int
    report: Report

    def write(self, step: int) -> None:
        """Writes samples/step-NNNNNN-p<prompt>-s<seed>.png for every prompt and seed, and reports each."""
        if not self.count:
            return
        flow, seeds = self.flow, list(range(self.count))
        self.report(phase("samples", f"rendering samples at step {step}"))
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        vae = load_vae(self.source, flow.device)
        for number, prompt in enumerate(self.prompts):
            noise = initial_noise(seeds, flow.grid, flow.channels)
            with flow.computing():
                embeds = self.embeds[number].expand(len(seeds))
                latents = sample(flow.transformer, embeds, noise, flow.levels, flow.guidance, flow.grid)
            for seed, image in zip(seeds, to_pil(decode(vae, latents, flow.grid)), strict=True):
                file = f"samples/step-{step:06d}-p{number}-s{seed}.png"
                temporary = self.folder / "samples" / f".{Path(file).name}"
                image.save(temporary, format="PNG")
                os.replace(temporary, self.folder / file)
                self.report({"type": "sample", "step": step, "file": file, "prompt": prompt, "seed": seed})
        del vae
        release_unused(flow.device)
