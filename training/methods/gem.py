"""GEM (Grebe et al., ICML 2026): a margin on the gap between two distances.

The velocity under the concept's prompt comes nearer to the base's under an anchor prompt than to its own old one, and
no further than that.
"""

from __future__ import annotations

import torch

from ..flow import Flow
from . import losses
from .anchored import AnchoredMethod
from .base import Term

GAMMA = 100.0  # the paper's γ


class GEM(AnchoredMethod):
    """The gap margin loss alone, with `ErasureConfig.eta` as its η; see `base.Method`.

    The paper takes x_t from the student's rollouts (see `refresh_every`), trains rank 16 on q and k of both streams
    (`targets` both_qk), and uses 250 samples in all.
    """

    def losses(self, level: str, flow: Flow, generator: torch.Generator) -> list[Term]:
        """The gap margin on random points of the bank."""
        config = self.config
        point, strength = self._erase_point(flow, generator)
        student, anchor = self._student(flow, point, strength), self._destination(point, strength)
        value = losses.gap_margin(student, anchor, point["own"], config.eta, GAMMA)
        return [Term("gem", value, config.weight_esd)]
