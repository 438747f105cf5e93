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
        config = self.config
        point, strength = self._erase_point(flow, generator)
        target = losses.negative_guidance_target(point["own"], point["empty"], config.eta, strength)
        value = losses.velocity_matching(self._student(flow, point, strength), target)
        return [Term("esd", value, config.weight_esd)]
