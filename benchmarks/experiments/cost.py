"""`cost`: FLOPs and time of an erase and preserve pair, ours against the authors' schedule, and what they learn."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from scripts.environment import say

from ..page import conclude
from ..summaries import AUTHORS
from ..workplace import Workplace, course, seeds_of
from .variants import RSC, show

# The authors' η is 1; both train on one sample a step.
SCHEDULES: dict[str, dict[str, Any]] = {"ours": {}, AUTHORS: {"sampling_steps": 28, "eta": 1.0, **RSC}}


@dataclasses.dataclass
class Loop:
    """A method ready to be trained, and what its pair and its bank cost."""

    pair: Callable[[], None]
    pair_flops: int
    bank_flops: int
    bank_seconds: float


def prepare(place: Workplace, concept: Any, config: Any, factory: Callable) -> Loop:
    """Everything up to the first step, as `trainer.run` does it."""
    import torch

    from training.flow import adapted_flow
    from training.methods import Prompts
    from training.models.device import pick_device
    from training.models.loading import load_text_encoders
    from training.updates import make_optimizers, update

    device, config = pick_device(place.args.device), config.for_kind(concept.kind)
    encoders = load_text_encoders(place.source, device)
    method, prompts = factory(concept, config), Prompts()
    method.plan(prompts, encoders.tokenizer_2, encoders.sequence_length)
    embeds = encoders.encode(prompts.texts)
    flow, parameters = adapted_flow(place.source, config, device)

    def collect() -> dict:
        return method.collect(flow, embeds, lambda done, total: None)

    bank_flops = count_flops(collect, device)
    began = time.perf_counter()  # a second time: counting is slow
    method.use(collect(), embeds)
    seconds = time.perf_counter() - began
    optimizers, generator = make_optimizers(method, parameters, config), torch.Generator("cpu").manual_seed(config.seed)

    def pair() -> None:
        update(method, flow, optimizers, generator, parameters, 0)

    return Loop(pair, count_flops(pair, device), bank_flops, seconds)


def count_flops(work: Callable[[], object], device: Any) -> int:
    """Floating-point operations of matrix products in `work` on a torch device, backward passes included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # the counter knows the fused attention of GPUs, where whole attention matrices would not fit, not the CPU's
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    with counter, attention:
        work()
    return counter.get_total_flops()


def timed(loops: dict[str, Loop], repeats: int, pairs: int) -> dict[str, list[float]]:
    """Seconds per pair of each loop, `repeats` times in turn; the authors' by one pair a time, ours by `pairs`."""
    found: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop.pair()  # what is slow the first time
    for _ in range(repeats):
        for name, loop in loops.items():
            count, began = 1 if name == AUTHORS else pairs, time.perf_counter()
            for _ in range(count):
                loop.pair()
            found[name].append((time.perf_counter() - began) / count)
    return {name: [round(seconds, 5) for seconds in values] for name, values in found.items()}


def cost(args: argparse.Namespace) -> None:
    """FLOPs and time per pair, ours and on the authors' schedule in one run; then Acc after equally many pairs."""
    from training.methods import make_method
    from training.methods.published import PublishedSchedule

    place = Workplace(args, "cost")
    factories = {name: PublishedSchedule if name == AUTHORS else make_method for name in SCHEDULES}
    phrases, seeds = args.concepts.split(","), seeds_of(args.seeds)
    concept = place.concept(phrases[0], 0)
    configs = {name: place.config(overrides, 0) for name, overrides in SCHEDULES.items()}
    asked = {name: course(config) for name, config in configs.items()}
    key = place.key(phrases[0], 0, asked, concept, repeats=args.repeats, pairs=args.pairs, threads=place.threads)
    if not place.done(key):
        say("counting and timing pairs")
        loops = {name: prepare(place, concept, configs[name], factories[name]) for name in SCHEDULES}
        seconds = timed(loops, args.repeats, args.pairs)
        row = {
            "concept": phrases[0],
            "steps": configs["ours"].steps,
            "pair_seconds": seconds,
            "pair_flops": {name: loop.pair_flops for name, loop in loops.items()},
            "bank_flops": {name: loop.bank_flops for name, loop in loops.items()},
            "bank_seconds": {name: round(loop.bank_seconds, 3) for name, loop in loops.items()},
        }
        place.keep(key, {"what": "pairs"}, row)
        del loops
    for phrase in phrases:
        for seed in seeds:
            concept = place.concept(phrase, seed)
            plans = {name: place.config(overrides, seed) for name, overrides in SCHEDULES.items()}
            keys = {name: place.key(phrase, seed, [name, course(plan)], concept) for name, plan in plans.items()}
            if args.no_training or all(place.done(key) for key in keys.values()):
                continue
            with place.group(phrase, seed) as folder:
                if folder is None:
                    continue
                for name, config in plans.items():
                    if not place.done(keys[name]):
                        slot = {"what": "training", "schedule": name, "concept": phrase, "seed": seed}
                        factory = PublishedSchedule if name == AUTHORS else None
                        own = folder / "authors" if name == AUTHORS else folder
                        show(place.measured(slot, keys[name], own, concept, config, factory), name)
    conclude(place.rows, "cost")
