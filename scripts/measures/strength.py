"""`strength`: how often the concept is seen as the LoRA's strength goes from 0 to 1."""

from __future__ import annotations

import argparse

from .page import conclude, spearman
from .workplace import Workplace, seeds_of

STRENGTHS = [round(0.1 * number, 1) for number in range(11)]


def strength(args: argparse.Namespace) -> None:
    """The share of images that show the concept at 11 strengths, and whether strength 0 changes nothing at all."""
    place = Workplace(args, "strength")
    for phrase in args.concepts.split(","):
        for seed in seeds_of(args.seeds):
            concept, config = place.concept(phrase, seed), place.config({}, seed)
            key = place.key(phrase, seed, config.to_dict(), concept, strengths=STRENGTHS)
            if place.done(key):
                continue
            with place.group(phrase, seed) as folder:
                if folder is not None:
                    trained = place.train(concept, config, folder)
                    row = {"config": config.to_dict(), "counts": place.counts, "seconds": trained.seconds}
                    row |= rates(place, trained.concept, trained.weights)
                    row = place.keep(key, {"concept": phrase, "seed": seed}, row)
                    print(f"{phrase:12s} {seed:2d}  {row['rates']}  ρ {row['spearman']}", flush=True)
    conclude(place.rows, "strength")


def rates(place: Workplace, concept, weights) -> dict:
    """{"strengths", "rates", "images", "spearman", "same_at_zero"}: the latter compares whole images with the base's,
    bit by bit."""
    import torch

    from training.evaluation import paint, probes
    from training.flux.sampling import generate
    from training.lora.adapter import load_adapter, set_adapter_scale

    wanted = [probe for probe in probes(concept, place.classifier, place.args.images, 0) if probe.share == "acc_e"]
    parts = place.parts()
    prompts, seeds = [probe.prompt for probe in wanted[:4]], [probe.seed for probe in wanted[:4]]

    def some() -> torch.Tensor:
        with parts.computing():
            return generate(parts, prompts, seeds, batch_size=4)

    before = some()
    load_adapter(parts.transformer, weights)
    set_adapter_scale(parts.transformer, 0.0)
    same = bool(torch.equal(before, some()))
    found = []
    for scale in STRENGTHS:
        set_adapter_scale(parts.transformer, scale)
        pictures = place.base if scale == 0 else {}
        paint(parts, wanted, pictures)
        stack = torch.stack([pictures[probe.prompt, probe.seed] for probe in wanted]).float() / 255
        verdict = place.classifier.classify(stack)
        found.append(sum(probe.content.shown(verdict, n) for n, probe in enumerate(wanted)) / len(wanted))
    set_adapter_scale(parts.transformer, 1.0)
    return {
        "strengths": STRENGTHS,
        "rates": [round(rate, 4) for rate in found],
        "images": len(wanted),
        "spearman": spearman(STRENGTHS, found),
        "same_at_zero": same,
    }
