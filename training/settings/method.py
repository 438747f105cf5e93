"""How a concept is erased: the method, its losses, and how long and how fast it learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .field import STRICT, Number, setting


@dataclass(frozen=True, config=STRICT)
class MethodSettings:
    """Settings of the erasing itself."""

    method: Literal["eraseanything", "esd", "concept_ablation", "gem"] = setting(
        "eraseanything", "The erasure method. Those after the first are there to be compared with it.", "bank"
    )
    bilevel: bool = setting(
        True,
        "Erase and preserve in turn (eraseanything). Off: one sum of all losses, at the erasing learning rate, to "
        "compare with.",
        "weights",
    )
    anchor: str = setting(
        "",
        "What takes the concept's place (concept_ablation, gem); empty: its irrelevant word of middle distance. Set it "
        "where you know what should be seen instead.",
        "bank",
    )
    erase_to: Literal["auto", "empty", "rest"] = setting(
        "auto",
        "Which prompt the concept's prompts are sent to (eraseanything, esd): the empty one, or the rest of the same "
        "prompt, with another relation in a relation's place. auto: the rest for styles and relations, which are only "
        "a part of what is seen.",
        "bank",
    )
    eta: Number = setting(
        -1.0,
        "How far beyond its target the concept is sent; -1: 0.5 for things, 3 for styles, 0 for relations. Raise it "
        "where the concept still shows.",
        "weights",
        -1,
        20,
    )
    steps: int = setting(
        400, "Erase and preserve steps, in pairs. More where the concept still shows.", "weights", 1, 100_000
    )
    early_stopping: int = setting(
        0,
        "Stop when what is left of the concept has not become less for so many steps; 0: train all steps. Set it (40) "
        "with more steps than you think you need.",
        "weights",
        0,
        100_000,
    )
    lr_erase: Number = setting(
        8e-4,
        "Learning rate of the erasing level. Lower it where the losses jump, raise it where they stay.",
        "weights",
        0,
        1,
    )
    lr_preserve: Number = setting(
        7e-4, "Learning rate of the preserving level. Raise it where other things change too.", "weights", 0, 1
    )
    weight_decay: Number = setting(
        0.0,
        "AdamW's weight decay on the LoRA: pulls it towards changing nothing. Raise it where other things change too.",
        "weights",
        0,
        10,
    )
    weight_esd: Number = setting(
        1.0, "Weight of the erasing velocity loss. Raise it where the concept still shows.", "weights", 0, 1e6
    )
    weight_attn: Number = setting(
        1.0,
        "Weight of the concept's attention mass. Raise it where parts of the concept still show.",
        "weights",
        0,
        1e6,
    )
    weight_lora: Number = setting(
        1.0,
        "Weight of velocity matching on preservation prompts. Raise it where other things change too.",
        "weights",
        0,
        1e6,
    )
    weight_rsc: Number = setting(
        0.0,
        "Weight of the reverse self-contrastive loss; 0 leaves it out, as nothing measured was better with it. Set it "
        "(0.01) where synonyms still show the concept.",
        "bank",
        0,
        1e6,
    )
    tau: Number = setting(
        0.07,
        "Temperature of the contrastive loss. Lower it so that the nearest words count most, raise it so that all do.",
        "weights",
        1e-3,
        10,
    )
    capture_blocks: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = setting(
        (), "Double blocks whose attention is used; empty: all. Name early ones alone for faster steps.", "bank"
    )
    random_strength: bool = setting(
        False,
        "Train at random strengths, so that the strength slider is proportional. On where you want to erase by halves.",
        "weights",
    )
