"""What is learned from: prompts, the trajectories sampled from them, and how many of their points a step takes."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from .field import STRICT, Number, setting


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    """Settings of the training's data."""

    erase_prompts: int = setting(
        24,
        "Different prompts with the concept in the bank. More where it still shows in other wordings.",
        "bank",
        1,
        1000,
    )
    preserve_prompts: int = setting(
        64,
        "How many of the concept's preservation prompts are used. More where other things change too; fewer start "
        "sooner.",
        "bank",
        0,
        10_000,
    )
    erase_synonyms: bool = setting(
        True, "Erase the synonyms too. Off where one has other meanings that must stay.", "bank"
    )
    shuffle: bool = setting(
        True,
        "Shuffle the words of a fifth of the prompts (the phrase stays whole). Off where word order matters.",
        "bank",
    )
    batch_erase: int = setting(
        0,
        "Samples in an erase step; 0: 1 for things, 4 for styles and relations. More for less noise in each step; they "
        "take time and memory.",
        "weights",
        0,
        256,
    )
    batch_preserve: int = setting(
        0,
        "Samples in a preserve step; 0: 1 for things, 4 for styles and relations. More where other things change too; "
        "they take time and memory.",
        "weights",
        0,
        256,
    )
    sampling_steps: int = setting(
        0,
        "Euler steps of the trajectories; 0: the model's default. Fewer start sooner, at some loss.",
        "bank",
        0,
        1000,
    )
    resolution: int = setting(
        0,
        "Side of the training images in pixels; 0: the model's own, 512 at most. Lower it where memory runs out.",
        "bank",
        0,
        4096,
    )
    t_min: Number = setting(
        0.5,
        "Train only on times above this (1 is noise): what is shown is decided there. Lower it where small details "
        "must go.",
        "bank",
        0,
        0.99,
    )
    refresh_every: int = setting(
        0,
        "Steps after which a quarter of the erasing trajectories is sampled again, with the LoRA on; 0: never. Set it "
        "where the concept still shows although the erasing loss is low.",
        "weights",
        0,
        100_000,
    )
    guidance: Number = setting(
        -1.0,
        "Guidance fed to the model; -1: the model's default. Set it where you sample with another.",
        "bank",
        -1,
        100,
    )
    seed: int = setting(0, "Seed of everything. Another number is another training.", "bank", 0, 2**63 - 1)
