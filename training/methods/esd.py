"""ESD (Gandikota et al., ICCV 2023): moves velocities under the concept's prompts away from it, preserves nothing."""

from __future__ import annotations

import torch

from ..flow import Flow
from . import losses
from .base import Term
from .trajectories import TrajectoryMethod


class ESD(TrajectoryMethod):
    """L_esd alone; see `base.Method`.

    The paper samples x_t with the student itself: `ErasureConfig.refresh_every` comes nearest to that.
    """

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """L_esd on random points of the bank."""
        point, strength = self._erase_point(flow, generator)
        value = losses.velocity_matching(self._student(flow, point, strength), self._destination(point, strength))
        return [Term("esd", value, self.config.weight_esd)]
