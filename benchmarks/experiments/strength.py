"""`strength`: how often the concept is seen as the LoRA's strength goes from 0 to 1, and what stays of the rest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..page import conclude
from ..summaries import spearman
from ..workplace import Workplace, course, seeds_of

STRENGTHS = [round(0.1 * number, 1) for number in range(11)]


def strength(args: argparse.Namespace) -> None:
    """The share of images that show the concept at 11 strengths, Acc_ir at each, and whether strength 0 changes
    nothing at all."""
    place = Workplace(args, "strength")
    for phrase in args.concepts.split(","):
        for seed in seeds_of(args.seeds):
            concept, config = place.concept(phrase, seed), place.config({}, seed)
            key = place.key(phrase, seed, course(config), concept, strengths=STRENGTHS)
            if place.done(key) or (path := place.lora(phrase, seed)) is None:
                continue
            with place.rows.claim(key) as mine:
                if not mine or place.done(key):
                    continue
                row = {"config": config.to_dict(), "counts": place.counts, "seconds": place.seconds_of(path)}
                row |= rates(place, path)
                row = place.keep(key, {"concept": phrase, "seed": seed}, row)
            least = min(row["acc_ir"])
            print(f"{phrase:12s} {seed:2d}  {row['rates']}  ρ {row['spearman']}  Acc_ir ≥ {least}", flush=True)
    conclude(place.rows, "strength")


def rates(place: Workplace, lora: Path, strengths: Sequence[float] = STRENGTHS) -> dict[str, Any]:
    """{"strengths", "rates", "images", "spearman", "acc_ir", "acc_ir_images", "same_at_zero"}.

    acc_ir: of all other nouns, seen in a preservation prompt or not; same_at_zero compares whole images with the
    base's, bit by bit.
    """
    import json

    import torch

    from training.concepts import Concept
    from training.evaluation import concept_cases, keys_of, render
    from training.evaluation.cases import ACC_E, ACC_IR, ACC_IR_SEEN, in_suite
    from training.lora.adapter import load_adapter, set_adapter_scale
    from training.lora.format import KEY_CONCEPT, read_lora
    from training.models.sampling import generate

    weights, metadata = read_lora(lora)
    concept = Concept.from_dict(json.loads(metadata[KEY_CONCEPT]))
    every = concept_cases(concept, place.classifier, place.args.images, place.args.images_per_other)
    direct, others = in_suite(every, ACC_E), in_suite(every, ACC_IR, ACC_IR_SEEN)
    parts = place.parts()
    prompts, seeds = [case.prompt for case in direct[:4]], [case.seed for case in direct[:4]]

    def some() -> torch.Tensor:
        with parts.computing():
            return generate(parts, prompts, seeds, batch_size=4)

    before = some()
    load_adapter(parts.transformer, weights)
    set_adapter_scale(parts.transformer, 0.0)
    same = bool(torch.equal(before, some()))
    found: dict[str, list[float]] = {"rates": [], "acc_ir": []}
    for scale in strengths:
        set_adapter_scale(parts.transformer, scale)
        pictures = place.base if scale == 0 else {}
        render(parts, keys_of([*direct, *others]), pictures)
        for name, group in (("rates", direct), ("acc_ir", others)):
            found[name].append(round(sum(place.seen(group, pictures)) / max(1, len(group)), 4))
    set_adapter_scale(parts.transformer, 1.0)
    return {
        "strengths": list(strengths),
        **found,
        "images": len(direct),
        "acc_ir_images": len(others),
        "spearman": spearman(strengths, found["rates"]),
        "same_at_zero": same,
    }
