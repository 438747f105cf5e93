"""One step of a training: for each of the method's levels its losses, their gradients, clipping, an AdamW update."""

from __future__ import annotations

import math
from typing import Any

import torch

from .errors import ConfigError, ErasureError
from .flow import Flow
from .methods import Method
from .settings import ErasureConfig

CLIP_NORM = 1.0  # gradient norm of a level's update; a guard, rarely reached


class TrainingDiverged(ErasureError):
    """A loss is no longer a number."""


def make_optimizers(
    method: Method, parameters: list[torch.nn.Parameter], config: ErasureConfig
) -> dict[str, torch.optim.Optimizer]:
    """AdamW over the adapter for each of the method's levels, by the level's name.

    On CUDA it runs as one fused kernel: a LoRA is many small tensors, and to start a kernel for each of them takes
    longer than its work.
    """
    options: dict[str, Any] = {"fused": True} if parameters[0].is_cuda else {"foreach": False}
    return {
        level.name: torch.optim.AdamW(parameters, lr=level.learning_rate, weight_decay=config.weight_decay, **options)
        for level in method.levels()
    }


def update(
    method: Method,
    flow: Flow,
    optimizers: dict[str, torch.optim.Optimizer],
    generator: torch.Generator,
    parameters: list[torch.nn.Parameter],
    step: int,
) -> dict[str, float]:
    """Updates the adapter once for each level of the method.

    Args:
        optimizers: By level, see `make_optimizers`.
        parameters: The adapter's.
        step: The number of this step, from 0.

    Returns:
        The loss terms, unweighted, by name.

    Raises:
        TrainingDiverged: Where a loss is no longer a number.
        ConfigError: Where a level's loss does not depend on the adapter.
    """
    losses: dict[str, float] = {}
    for level in method.levels():
        losses |= update_level(method, level.name, flow, optimizers[level.name], generator, parameters, step)
    return losses


def update_level(
    method: Method,
    level: str,
    flow: Flow,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    parameters: list[torch.nn.Parameter],
    step: int,
) -> dict[str, float]:
    """One level's part of `update`."""
    terms = method.losses(level, flow, generator)
    optimizer.zero_grad(set_to_none=True)
    first, *others = (term.weight * term.value for term in terms)
    total = sum(others, start=first)
    if not total.requires_grad:
        raise ConfigError(f"No {level} loss depends on the LoRA: choose other targets, blocks or loss weights.")
    total.backward()
    # read now: before the backward pass was queued, an accelerator would have had nothing to do meanwhile
    losses = flow.group.average(parameters, {term.name: float(term.value.detach()) for term in terms})
    for name, value in losses.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f'The loss term "{name}" is no longer a number after step {step}: lower the learning rates; the last '
                "good checkpoint was kept."
            )
    torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=parameters[0].is_cuda)
    optimizer.step()
    return losses
