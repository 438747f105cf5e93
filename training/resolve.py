"""The door of a training: what was asked for becomes what is done, once. Behind it nothing is decided again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .memory import explain, plan_memory
from .models.variants import FluxVariant, variant_of
from .parallel import ALONE, Group, placed
from .request import ErasureRequest
from .settings import ErasureConfig


@dataclass(frozen=True)
class ResolvedRequest:
    """A training that can be done as it is.

    request: what was asked for, valid, with precision, gradient checkpointing and streamed blocks decided, on this
    process's own device; digests are made of it. config: its settings with what they leave to the concept's kind
    decided. variant: of its model. decision: what was decided about memory and why, as a sentence; "" for nothing.
    """

    request: ErasureRequest
    config: ErasureConfig
    variant: FluxVariant
    decision: str


def resolve(request: ErasureRequest, folder: Path, group: Group = ALONE) -> ResolvedRequest:
    """Validates `request` and decides all that it leaves open.

    Args:
        folder: the training's; what was decided there before stays.
        group: the processes that train together. All of them call this, and do what the leader decides.

    Raises:
        ErasureError: one of its subclasses, where the request cannot be trained.
    """
    request.validate()
    device = (request := placed(request, group)).device
    choice = group.agreed(plan_memory(request, folder) if group.leads else None)
    request = replace(choice.plan.request, device=device)  # each process has its own
    config = request.config.for_kind(request.concept.kind)
    return ResolvedRequest(request, config, variant_of(request.source), explain(choice))
