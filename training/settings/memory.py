"""How memory is saved, and time: the same LoRA (with compile: to rounding)."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator
from pydantic.dataclasses import dataclass

from ..errors import ConfigError
from ..models.source import QUANTISED
from .field import STRICT, setting


@dataclass(frozen=True, config=STRICT)
class MemorySettings:
    """Settings of how the device is used."""

    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "auto",
        "Keep only what goes into each block, and compute the rest again in the backward pass: the same LoRA with far "
        "less memory, about a third slower. auto: on where the weights are quantised (fp8, int8, nf4), which saves "
        "nothing without it, where blocks are streamed, and where memory is short. Off where you know that it fits.",
        "output",
    )
    stream_blocks: int = setting(
        0,
        "How many of the transformer's blocks are on the device at a time, 2 or more; the others wait in the "
        "computer's own memory. 0: all, or what fits where Load Flux leaves the precision open (auto). 2 where the "
        "transformer does not fit even in nf4; slower, and the same LoRA.",
        "output",
        0,
        1000,
    )
    compile: bool = setting(
        False,
        "Compile the transformer's blocks before they run: faster steps after a minute or two at the start, the same "
        "LoRA to rounding. On for long trainings of a full-size Flux on a GPU; off where a training takes minutes.",
        "output",
    )

    @field_validator("stream_blocks")
    @classmethod
    def _not_one(cls, blocks: int) -> int:
        if blocks == 1:
            raise ConfigError("The setting stream_blocks must be 0 or at least 2: one block computes, one is copied.")
        return blocks

    def checkpoints_blocks(self, precision: str) -> bool:
        """Whether blocks are computed again in the backward pass: `gradient_checkpointing` decided for a source's
        precision. Without it, autograd would keep a copy in bf16 of every quantised weight."""
        if self.gradient_checkpointing == "auto":
            return precision in QUANTISED or self.stream_blocks > 0
        return self.gradient_checkpointing == "on"

    def streams_encoder(self, precision: str) -> bool:
        """Whether T5 visits the device layer by layer: where the transformer takes less memory there than T5 would."""
        return self.stream_blocks > 0 or precision == "nf4"
