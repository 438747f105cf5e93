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
    """The prompts that a method needs encoded, each once; from then on a row number stands for a prompt."""

    texts: list[str] = field(default_factory=list)

    def row(self, text: str) -> int:
        """The row of `text`, which is added if it is new."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)


class Method(Protocol):
    """An erasure method. The trainer knows nothing else of it.

    A method is made for one concept. The trainer calls `plan`, then gives it the bank (`collect` makes it once, later
    runs read it from the file), then asks for the losses of its levels at every step. All randomness comes from the
    generator that the trainer passes in, and all state is in the bank, the adapter and that generator: this is why a
    run can be resumed.
    """

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """Registers the prompts that must be encoded, and locates token spans. Raises ConceptError."""

    def collect(self, flow: Flow, embeds: TextEmbeds, progress: Progress) -> dict[str, Tensor]:
        """Computes the bank, which depends only on the frozen base: trajectories and teacher outputs, by name."""

    def use(self, bank: dict[str, Tensor], embeds: TextEmbeds) -> None:
        """Takes the bank that `collect` made in this run or an earlier one, with the changes that `refresh` made."""

    def refresh(self, flow: Flow, step: int, progress: Progress) -> dict[str, Tensor]:
        """Brings the bank up to date with the student; called before every step.

        It may depend on nothing but `step`, the adapter and the bank, because a resumed run repeats it.

        Args:
            step: Steps that are done.

        Returns:
            The tensors of the bank that changed, each as a whole; the trainer stores them in its checkpoints.
        """

    def levels(self) -> tuple[Level, ...]:
        """The levels of a step, in the order in which they are updated."""

    def residue(self, flow: Flow) -> float:
        """How much of the concept is left: 1 as in the base, 0 where the method sends it.

        It is measured without gradients, on the same points every time; `ErasureConfig.early_stopping` uses it.
        """

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """The loss terms of one level for one step, with gradients; `generator` makes its random choices."""


# A method for a concept; the settings are decided for its kind (`ErasureConfig.for_kind`).
MethodFactory = Callable[[Concept, ErasureConfig], Method]
