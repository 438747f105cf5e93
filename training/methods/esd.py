"""ESD (Gandikota et al., ICCV 2023): velocities under the concept's prompts are sent away from it; nothing is kept."""

from __future__ import annotations

import torch

from ..flow import Flow
from . import losses
from .base import Term
from .trajectories import TrajectoryMethod


class ESD(TrajectoryMethod):
    """L_esd alone; see `base.Method`. Published with x_t from the student's own sampling: that is `refresh_every`."""

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """L_esd on a fresh draw from the bank."""
        point, strength = self._erase_point(flow, generator)
        value = losses.velocity_matching(self._student(flow, point, strength), self._destination(point, strength))
        return [Term("esd", value, self.config.weight_esd)]
