"""Precision, gradient checkpointing and streamed blocks where a request leaves them open: the fastest plan that fits.

A plan is chosen when a training starts, and stored in its folder: what a resumed training computes must not depend on
what else is in the memory by then.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..models.device import pick_device
from ..models.source import PACKAGES
from ..request import ErasureRequest
from .estimate import ModelSize, estimate_memory, free_memory, model_size

FILE = "memory.json"  # in a training's folder, where a plan was chosen by what was free
RING = 2  # blocks on the device in plans that stream them


@dataclass(frozen=True)
class MemoryPlan:
    """A plan for training a request.

    Attributes:
        request: with nothing left open.
        need: bytes that must be free on its device, estimated.
        waiting: bytes in the computer's own memory, for what streams to the device.
        ring: of `need`, the buffers that blocks stream through.
    """

    request: ErasureRequest
    need: int
    waiting: int = 0
    ring: int = 0

    @property
    def settings(self) -> dict[str, str | int]:
        """What a request may leave open, by name."""
        config = self.request.config
        return {
            "precision": self.request.source.precision,
            "gradient_checkpointing": config.gradient_checkpointing,
            "stream_blocks": config.stream_blocks,
        }

    def __str__(self) -> str:
        config, precision = self.request.config, self.request.source.precision
        parts = [precision if precision != "auto" else "fp32"]
        if config.stream_blocks:
            parts.append("streamed blocks")
        elif config.checkpoints_blocks(precision):
            parts.append("gradient checkpointing")
        return " with ".join(parts)


@dataclass(frozen=True)
class PlanChoice:
    """Which plan a training follows, and why.

    Attributes:
        plans: those it was chosen from, the fastest first.
        free: bytes that were free on the device; None where that was not asked or cannot be known.
        reason: "only": there is one plan; "stored": it was chosen when the training began; "default": the request's
            own settings fit; "memory": chosen by what was free.
    """

    plan: MemoryPlan
    plans: tuple[MemoryPlan, ...]
    reason: Literal["only", "stored", "default", "memory"]
    free: int | None = None


def memory_plans(request: ErasureRequest, size: ModelSize | None = None) -> list[MemoryPlan]:
    """Every plan for a request, the fastest first; at least one.

    Open are: gradient checkpointing on "auto", on any device; precision "auto" on a CUDA or XPU device, and with it
    whether blocks are streamed. Weights on the device in bf16 are fastest without checkpointing and next with it; then
    those in fewer bits, which are cast in every pass (and which compiled blocks cannot have); copying all weights for
    every pass costs most.

    Args:
        size: see `estimate_memory`.

    Raises:
        SourceError: as `estimate_memory`.
    """
    size = size or model_size(request.source)
    estimates = ((complete, estimate_memory(complete, size)) for complete in _completions(request))
    return [MemoryPlan(complete, found.need, found.waiting, found.ring) for complete, found in estimates]


def _completions(request: ErasureRequest) -> Iterator[ErasureRequest]:
    """The request with all that it leaves open filled in, in every possible combination, the fastest first."""
    kind, config = pick_device(request.device).type, request.config
    precisions, rings = [request.source.precision], [config.stream_blocks]
    if request.source.precision == "auto" and kind != "cpu":
        precisions = ["bf16"]
        if kind in ("cuda", "xpu"):
            fewer = () if config.compile else ("fp8", "nf4")
            precisions += [p for p in fewer if p not in PACKAGES or importlib.util.find_spec(PACKAGES[p])]
            rings += [] if config.stream_blocks else [RING]
    for ring in rings:
        for precision in precisions:
            source = replace(request.source, precision=precision)
            complete = replace(request, source=source, config=replace(config, stream_blocks=ring))
            yield complete
            if config.gradient_checkpointing == "auto" and not complete.config.checkpoints_blocks(precision):
                yield replace(complete, config=replace(complete.config, gradient_checkpointing="on"))


def choose(plans: list[MemoryPlan], free: int | None) -> MemoryPlan:
    """The first plan that fits into `free` bytes, and into the computer's memory what waits there.

    Where none fits, the one that needs least; where free is None (it cannot be known), the first.
    """
    if free is None:
        return plans[0]
    own = free_memory("cpu")
    fitting = [plan for plan in plans if plan.need <= free and (own is None or plan.waiting <= own)]
    return fitting[0] if fitting else min(plans, key=lambda plan: (plan.need, plan.waiting))


def plan_memory(request: ErasureRequest, folder: Path, free: int | None = None) -> PlanChoice:
    """Chooses a plan for a training in `folder`, and stores there what the request had left open.

    Args:
        folder: the training's; the plan that is stored there is chosen again.
        free: bytes that are free on the device; asked of the device by default.

    Raises:
        SourceError: as `estimate_memory`.
    """
    plans = memory_plans(request)
    if len(plans) == 1:
        return PlanChoice(plans[0], tuple(plans), "only")
    stored = _stored_plan(plans, folder)
    if stored is not None:
        return PlanChoice(stored, tuple(plans), "stored")
    free = free_memory(request.device) if free is None else free
    plan = choose(plans, free)
    if plan is plans[0] and request.source.precision == plan.request.source.precision:
        return PlanChoice(plan, tuple(plans), "default", free)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.part"
    temporary.write_text(json.dumps(plan.settings), encoding="utf-8")
    os.replace(temporary, folder / FILE)
    return PlanChoice(plan, tuple(plans), "memory", free)


def load_plan(plans: list[MemoryPlan], folder: Path) -> MemoryPlan:
    """Which of the plans a training in `folder` follows; the first, where none is stored there."""
    return _stored_plan(plans, folder) or plans[0]


def planned_request(request: ErasureRequest, folder: Path) -> ErasureRequest:
    """The request as a training in `folder` follows it; by the fastest plan, where none is stored there."""
    return load_plan(memory_plans(request), folder).request


def _stored_plan(plans: list[MemoryPlan], folder: Path) -> MemoryPlan | None:
    try:
        settings = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none was chosen yet, or a power cut came between: it is chosen now
        return None
    return next((plan for plan in plans if plan.settings == settings), None)


def overview(request: ErasureRequest) -> dict[str, Any]:
    """What a training would need, before it starts, as JSON can hold it.

    Returns:
        "free": bytes on its device, None where that cannot be known; "ways": the plans, the fastest first, each with
        its settings, "text", "need", "waiting", "ring" (bytes), and whether it "fits" and is "taken" as things are now.

    Raises:
        SourceError: as `estimate_memory`.
    """
    plans, free = memory_plans(request), free_memory(request.device)
    chosen = choose(plans, free)
    return {
        "free": free,
        "ways": [
            {
                **plan.settings,
                "text": str(plan),
                "need": plan.need,
                "waiting": plan.waiting,
                "ring": plan.ring,
                "fits": free is None or plan.need <= free,
                "taken": plan is chosen,
            }
            for plan in plans
        ],
    }
