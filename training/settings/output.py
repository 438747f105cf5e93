"""What a training leaves behind on its way: checkpoints and sample images."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from .field import STRICT, setting


@dataclass(frozen=True, config=STRICT)
class OutputSettings:
    """Settings of what is written besides the LoRA."""

    checkpoint_every: int = setting(
        50,
        "Steps between checkpoints. Fewer where little may be lost when the worker is killed.",
        "output",
        1,
        100_000,
    )
    keep_checkpoints: int = setting(
        2,
        "How many checkpoints stay on disk, the newest ones. More where you may want to go back by hand.",
        "output",
        1,
        1000,
    )
    sample_every: int = setting(
        200, "Steps between sample images; 0: none. Fewer show more, and take longer.", "output", 0, 100_000
    )
    sample_count: int = setting(2, "Seeds per sample image. More show more, and take longer.", "output", 1, 16)
