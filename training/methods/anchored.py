"""The part that anchored methods share: they send a prompt to the same prompt with an anchor in the concept's place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..concepts import ErasePrompt, occurrences, plural, substitute, vocabulary_of
from ..errors import ConceptError
from . import losses
from .base import Prompts
from .trajectories import TrajectoryMethod, one_of_each_distance


class AnchoredMethod(TrajectoryMethod):
    """A trajectory method whose bank holds v_o under the anchor prompt c_a, as "erase.anchor".

    If `ErasureConfig.anchor` is empty, the anchor is the concept's irrelevant word of middle distance, which is near
    enough for the rest of the picture to stay as it is. (ESD's target, the empty prompt, does not ask for the rest.)
    """

    other = "anchor"

    @property
    def anchor(self) -> str:
        """The word, or phrase, that takes the concept's place."""
        return " ".join(self.config.anchor.split()) or one_of_each_distance(self.concept.irrelevant)[-1]

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """See `base.Method`.

        Raises:
            ConceptError: Where the anchor contains the concept, or the text encoder does not know it.
        """
        if any(occurrences(self.anchor, name) for name in self.concept.names()):
            raise ConceptError(f'The anchor "{self.anchor}" contains the concept: choose what is to take its place.')
        if not vocabulary_of(tokenizer)(self.anchor):
            raise ConceptError(
                f'This model\'s text encoder does not know the anchor "{self.anchor}": choose words it was trained on.'
            )
        super().plan(prompts, tokenizer, sequence_length)

    def target(self, prompt: ErasePrompt) -> str:
        """The anchor prompt, in the plural where the prompt has the concept's plural."""
        several = prompt.phrase != prompt.name and prompt.phrase == plural(prompt.name)  # else it is a misspelling
        return substitute(prompt.text, prompt.phrase, plural(self.anchor) or self.anchor if several else self.anchor)

    @property
    def on_target_paths(self) -> bool:
        """False: trajectories are sampled under the concept's own prompts, for every kind."""
        return False

    def _destination(self, point: dict[str, Tensor], strength: float) -> Tensor:
        """v_o(c_a) at strength 1, v_o(c) at 0: ESD's target at η = 0 with c_a in the empty prompt's place."""
        return losses.negative_guidance_target(point["own"], point["anchor"], 0.0, strength)
