"""Sentences about memory for users: why a plan was chosen, what is missing, which setting would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..models.device import pick_device
from ..models.source import QUANTISED
from ..models.variants import training_side, variant_of
from ..request import ErasureRequest
from .estimate import GB, estimate_memory
from .plan import MemoryPlan, PlanChoice

SMALLEST_SIDE = 4  # image tokens per side, below which no advice goes


def explain(choice: PlanChoice) -> str:
    """Why a training follows its plan, in one or two sentences; empty where there is nothing to say."""
    if choice.reason == "default":
        return ""
    reasons = {"only": "", "stored": f"Training goes on as it began: {choice.plan}."}
    sentence = reasons[choice.reason] if choice.reason in reasons else _chosen_by_memory(choice)
    return f"{sentence} {_streaming(choice.plan)}".strip()


def _chosen_by_memory(choice: PlanChoice) -> str:
    plan, plans, free = choice.plan, choice.plans, choice.free
    if free is None:
        return f"Training in {plan}: how much memory is free is not known here."
    needs = f"needs about {plan.need / GB:.1f} of {free / GB:.1f} GB that are free"
    if plan.need > free:
        return f"Training in {plan}, which needs least: it {needs}, and may run out."
    faster = plans[: plans.index(plan)]
    if not faster:
        return f"Training in {plan}, the fastest plan: it {needs}."
    return f"Training in {plan}, the fastest plan that fits: it {needs}, {faster[-1]} {faster[-1].need / GB:.1f} GB."


def _streaming(plan: MemoryPlan) -> str:
    if not plan.ring:
        return ""
    waiting = f", {plan.waiting / GB:.1f} GB wait in the computer's memory" if plan.waiting else ""
    return f"Blocks stream through {plan.ring / GB:.2f} GB of the device's memory{waiting}."


def cheaper(request: ErasureRequest, phase: str = "train") -> tuple[ErasureRequest, str] | None:
    """The request with the next setting changed that saves memory in a phase, and what changes in a few words.

    In this order, the least harmful first: gradient checkpointing (the same LoRA), smaller batches, fewer sample
    images, no sample images, on an accelerator fp8 weights and streamed blocks, a lower resolution, bf16 weights.

    Args:
        phase: one of `MemoryEstimate.phases`; any other counts as "train".

    Returns:
        None where no such setting is left.
    """
    return next(_savings(request, phase if phase in ("encode", "bank", "samples") else "train"), None)


def _savings(request: ErasureRequest, phase: str) -> Iterator[tuple[ErasureRequest, str]]:
    config = request.config

    def with_settings(**changes: Any) -> ErasureRequest:
        return replace(request, config=replace(config, **changes))

    def saves(other: ErasureRequest) -> bool:
        return estimate_memory(other).phases[phase] < estimate_memory(request).phases[phase]

    if phase == "train" and not config.checkpoints_blocks(request.source.precision):
        yield with_settings(gradient_checkpointing="on"), "gradient checkpointing"

    for_kind = config.for_kind(request.concept.kind)
    erase, preserve = for_kind.batch_erase, for_kind.batch_preserve
    if phase == "train" and max(erase, preserve) > 1:
        halves = {"batch_erase": max(1, erase // 2), "batch_preserve": max(1, preserve // 2)}
        sizes = (("erase", erase, halves["batch_erase"]), ("preserve", preserve, halves["batch_preserve"]))
        what = ", ".join(f"{name} {old} → {new}" for name, old, new in sizes if old != new)
        yield with_settings(**halves), f"smaller batches ({what})"
    if phase == "samples" and config.sample_every:
        if config.sample_count > 1:
            yield with_settings(sample_count=1), f"one sample image instead of {config.sample_count} at a time"
        else:
            yield with_settings(sample_every=0), "no sample images"
    if phase != "encode" and pick_device(request.device).type != "cpu":
        uncompiled = replace(config, compile=False)
        quantised = replace(request, source=replace(request.source, precision="fp8"), config=uncompiled)
        if request.source.precision not in QUANTISED and saves(quantised):
            yield quantised, "fp8 weights"
        streamed = with_settings(stream_blocks=2, gradient_checkpointing="auto")
        if not config.stream_blocks and saves(streamed):
            yield streamed, "streamed blocks"
    side = training_side(config.resolution, variant_of(request.source))
    lower = side * 3 // 4
    if phase != "encode" and lower >= SMALLEST_SIDE:
        yield with_settings(resolution=16 * lower), f"a lower resolution ({16 * side} → {16 * lower} pixels)"
    if request.source.precision not in ("bf16", *QUANTISED):
        halved = replace(request, source=replace(request.source, precision="bf16"))
        if estimate_memory(halved).need < estimate_memory(request).need:
            yield halved, "bf16 weights"


def shortage(request: ErasureRequest, free: int) -> str:
    """Why a request does not fit into `free` bytes and what would help, as one sentence; empty where it fits."""
    estimate = estimate_memory(request)
    if estimate.need <= free:
        return ""
    fitting, smaller = request, estimate
    while smaller.need > free:
        found = cheaper(fitting, smaller.peak)
        if found is None:
            break
        fitting = found[0]
        smaller = estimate_memory(fitting)
    missing = f"{(estimate.need - free) / GB:.1f} GB of memory are missing"
    where = f"on {pick_device(request.device)}"
    needs = f"the training needs about {estimate.need / GB:.1f} GB {where}, {free / GB:.1f} GB are free"
    if smaller.need > free:
        return f"Waiting: {missing} ({needs}): close other programs, no setting makes it fit."
    return f"Waiting: {missing} ({needs}): close other programs, or train with {_differences(request, fitting)}."


def _differences(old: ErasureRequest, new: ErasureRequest) -> str:
    """The settings that differ, with their new values."""
    before, after = old.config.to_dict(), new.config.to_dict()
    changed = [f"{name} {value}" for name, value in after.items() if value != before[name]]
    if old.source.precision != new.source.precision:
        changed.append(f"precision {new.source.precision}")
    return ", ".join(changed)
