"""Facts of the Flux variants, in one table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .source import FluxSource, read_json


@dataclass(frozen=True)
class FluxVariant:
    """What sampling needs to know of a Flux.

    sequence_length: T5 tokens (padded to it); resolution: pixels of a square image; shift: static timestep shift, or
    None for Flux's dynamic one, which interpolates from base_shift (256 image tokens) to max_shift (4096).
    """

    name: str
    sequence_length: int
    resolution: int
    default_steps: int
    default_guidance: float
    shift: float | None = None
    base_shift: float = 0.5
    max_shift: float = 1.15

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of image tokens at the variant's resolution."""
        return self.resolution // 16, self.resolution // 16


FLUX_DEV = FluxVariant("flux.1-dev", sequence_length=512, resolution=1024, default_steps=28, default_guidance=3.5)
FLUX_SCHNELL = FluxVariant(
    "flux.1-schnell", sequence_length=256, resolution=1024, default_steps=4, default_guidance=0.0, shift=1.0
)
FLUX_EMOJI = FluxVariant(
    "flux-emoji", sequence_length=32, resolution=128, default_steps=14, default_guidance=3.5, shift=1.0
)

# The width that tells the published models from small ones.
_FULL_HIDDEN_SIZE = 3072


def training_side(resolution: int, variant: FluxVariant) -> int:
    """Image tokens per side of a training at `resolution` pixels; 0: at the variant's own, 512 pixels at most."""
    return max(1, (resolution or min(512, variant.resolution)) // 16)


def variant_of(source: FluxSource) -> FluxVariant:
    """The variant of a source; a small model takes text length, resolution and shift from its own folder."""
    config = source.transformer_config()
    if config["num_attention_heads"] * config["attention_head_dim"] == _FULL_HIDDEN_SIZE or source.kind == "files":
        return FLUX_DEV if config["guidance_embeds"] else FLUX_SCHNELL
    folder = Path(source.folder)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return replace(
        FLUX_EMOJI,
        sequence_length=read_json(folder / "tokenizer_2" / "tokenizer_config.json").get(
            "model_max_length", FLUX_EMOJI.sequence_length
        ),
        resolution=read_json(folder / "vae" / "config.json").get("sample_size", FLUX_EMOJI.resolution),
        shift=None if scheduler.get("use_dynamic_shifting") else scheduler.get("shift", 1.0),
        base_shift=scheduler.get("base_shift", 0.5),
        max_shift=scheduler.get("max_shift", 1.15),
    )
