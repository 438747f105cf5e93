"""What methods share that send each prompt with the concept to the same prompt with an anchor word in its place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..concepts import ErasePrompt, occurrences, plural, substitute, vocabulary_of
from ..errors import ConceptError
from . import losses
from .base import Prompts
from .trajectories import TrajectoryMethod, one_of_each_distance


class AnchoredMethod(TrajectoryMethod):
    """The bank's "erase.anchor" holds v_o under the anchor prompt c_a.

    Without `ErasureConfig.anchor` the anchor is the concept's irrelevant word of middle distance: near enough for the
    rest of the picture to stay as it is. (The empty prompt says nothing of the rest, and is where ESD goes.)
    """

    other = "anchor"

    @property
    def anchor(self) -> str:
        """The word, or phrase, that takes the concept's place."""
        return " ".join(self.config.anchor.split()) or one_of_each_distance(self.concept.irrelevant)[-1]

    def plan(self, prompts: Prompts, tokenizer: Any, sequence_length: int) -> None:
        """As every method, once the anchor is known to be of use: ConceptError where it is not."""
        if any(occurrences(self.anchor, name) for name in self.concept.names()):
            raise ConceptError(f'The anchor "{self.anchor}" contains the concept: choose what is to take its place.')
        if not vocabulary_of(tokenizer)(self.anchor):
            raise ConceptError(
                f'This model\'s text encoder does not know the anchor "{self.anchor}": choose words it was trained on.'
            )
        super().plan(prompts, tokenizer, sequence_length)

    def target(self, prompt: ErasePrompt) -> str:
        """The anchor prompt, in the same number."""
        several = prompt.phrase != prompt.name and prompt.phrase == plural(prompt.name)  # else it is a misspelling
        return substitute(prompt.text, prompt.phrase, plural(self.anchor) or self.anchor if several else self.anchor)

    @property
    def on_target_paths(self) -> bool:
        """On the concept's own, for every kind."""
        return False

    def _destination(self, point: dict[str, Tensor], strength: float) -> Tensor:
        """v_o(c_a) at strength 1, v_o(c) at 0: ESD's target at η = 0 with c_a in the empty prompt's place."""
        return losses.negative_guidance_target(point["own"], point["anchor"], 0.0, strength)
