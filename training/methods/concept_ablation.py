"""Concept Ablation, model-based (Kumari et al., ICCV 2023): a prompt with the concept becomes one with an anchor word.

Under the concept's prompt the model learns to do what the base does under the anchor prompt; there it stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flow import Flow, Progress
from ..flux.text import TextEmbeds
from . import losses
from .anchored import AnchoredMethod
from .base import Term


class ConceptAblation(AnchoredMethod):
    """‖v_θ(x_t, c) − v_o(x_t, c_a)‖² + retention on c_a, in one sum; see `base.Method`."""

    def kept(self) -> Sequence[str]:
        """The anchor prompts."""
        return list(dict.fromkeys(self.target(text, phrase) for text, phrase in self.wanted))

    def record_erase(
        self,
        flow: Flow,
        embeds: TextEmbeds,
        pairs: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        progress: Progress,
        student: bool = False,
    ) -> dict[str, Tensor]:
        """On the base's trajectories under the anchor, from which the paper takes its images; the student's under c."""
        if student:
            return super().record_erase(flow, embeds, pairs, seeds, progress, student)
        points = super().record_erase(flow, embeds, [(anchor, row) for row, anchor in pairs], seeds, progress)
        rows = torch.tensor([row for row, _ in pairs])
        rows = rows.repeat_interleave(len(points["erase.row"]) // len(pairs))
        return {**points, "erase.row": rows, "erase.own": points["erase.anchor"], "erase.anchor": points["erase.own"]}

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """Ablation, then retention, each on a fresh draw from the bank."""
        point, strength = self._erase_point(flow, generator)
        value = losses.velocity_matching(self._student(flow, point, strength), self._destination(point, strength))
        return [Term("anchor", value, self.config.weight_esd), *self._keep(flow, generator)]
