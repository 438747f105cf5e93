"""The protocol between the trainer and an erasure method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..concepts import Concept
from ..flow import Flow, Progress
from ..models.text import TextEmbeds
from ..settings import ErasureConfig


@dataclass(frozen=True)
class Level:
    """One update per step with an optimiser of its own: a bi-level method has two."""

    name: str
    learning_rate: float


@dataclass(frozen=True)
class Term:
    """One loss term of a level: its name in reports, its value (unweighted, a scalar), its weight in the sum."""

    name: str
    value: Tensor
    weight: float = 1.0


@dataclass
class Prompts:
    """The prompts a method needs encoded, each once; a row number stands for a prompt from then on."""

    texts: list[str] = field(default_factory=list)

    def row(self, text: str) -> int:
        """The row of `text`, which is added where it is new."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)


class Method(Protocol):
    """An erasure method. The trainer knows nothing else of it.

    A method is made for one concept; it is planned, then given its bank (`collect` once, later runs read the file),
    then asked for its levels' losses step after step. What is random in them comes from the generator it is given, and
    what lives from step to step is in the bank, the adapter and that generator: so a run can be resumed.
    """

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """Registers the prompts that must be encoded, and locates token spans. Raises ConceptError."""

    def collect(self, flow: Flow, embeds: TextEmbeds, progress: Progress) -> dict[str, Tensor]:
        """Everything that depends only on the frozen base, computed once: trajectories and teacher outputs."""

    def use(self, bank: dict[str, Tensor], embeds: TextEmbeds) -> None:
        """Takes the bank that `collect` made, in this run or in an earlier one, with what `refresh` changed in it."""

    def refresh(self, flow: Flow, step: int, progress: Progress) -> dict[str, Tensor]:
        """Brings the bank up to date with the student after `step` steps; → the tensors that changed, whole.

        Called before every step. It may depend on nothing but `step`, the adapter and the bank: a resumed run repeats
        it. The trainer keeps what changed in its checkpoints.
        """

    def levels(self) -> tuple[Level, ...]:
        """The levels of a step, in the order in which they are updated."""

    def residue(self, flow: Flow) -> float:
        """How much of the concept is left: 1 as the base, 0 where the method sends it. Without gradients, on points
        that stay the same; asked for where `ErasureConfig.early_stopping` is on."""

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """The terms of one level for one step, with gradients."""


# A method for a concept; the settings are decided for its kind (`ErasureConfig.for_kind`).
MethodFactory = Callable[[Concept, ErasureConfig], Method]
