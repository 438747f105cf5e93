"""Concept Ablation, model-based (Kumari et al., ICCV 2023): a prompt with the concept becomes one with an anchor word.

Under the concept's prompt the model learns the base's velocity under the anchor prompt. Under the anchor prompt itself
it stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..flow import Flow
from . import losses
from .anchored import AnchoredMethod
from .base import Term


class ConceptAblation(AnchoredMethod):
    """‖v_θ(x_t, c) − v_o(x_t, c_a)‖² + retention on c_a, in one sum; see `base.Method`."""

    def preserve_prompts(self) -> Sequence[str]:
        """The anchor prompts."""
        return list(dict.fromkeys(self.target(prompt) for prompt in self.erase_prompts))

    @property
    def on_target_paths(self) -> bool:
        """True: the paper's training images show the anchor."""
        return True

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """Ablation, then retention, each on random points of the bank."""
        point, strength = self._erase_point(flow, generator)
        value = losses.velocity_matching(self._student(flow, point, strength), self._destination(point, strength))
        return [Term("anchor", value, self.config.weight_esd), *self._retention(flow, generator)]
