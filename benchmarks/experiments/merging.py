"""`merging`: what N erasures in one merged LoRA still erase, and what they leave, for every way to merge."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.environment import say

from ..page import conclude
from ..rows import key_of
from ..workplace import NOUNS, Workplace

# in the order in which they join a merge
MERGED = (
    *NOUNS,
    "cat",
    "umbrella",
    "elephant",
    "train",
    "apple",
    "sunflower",
    "clock",
    "owl",
    "donut",
    "balloon",
    "shark",
    "book",
    "dog",
    "fox",
    "panda",
    "bus",
    "airplane",
    "rocket",
    "banana",
    "strawberry",
    "pineapple",
    "mushroom",
)
# joining after them, to see where merging breaks: what is kept has fewer nouns there
BEYOND = ("lion", "frog", "duck", "octopus", "cake", "house", "cactus", "crown", "hamburger", "snail")
WAYS: dict[str, dict[str, Any]] = {
    "normalised": {"mode": "normalised"},
    "sum": {"mode": "sum"},
    "concat": {"mode": "concat"},
    "svd to 10 %": {"mode": "svd", "error": 0.1},
    "fusion": {"mode": "fusion"},
}
SEED = 0


def merging(args: argparse.Namespace) -> None:
    """Acc_e of every concept and Acc_ir as 1, 3, 5, … concepts are merged, for every way, beside their own LoRAs."""
    place = Workplace(args, "merging")
    phrases = args.concepts.split(",")
    counts = [int(count) for count in args.numbers.split(",") if int(count) <= len(phrases)]
    ways = [name.strip() for name in args.ways.split(",") if name.strip()] or list(WAYS)
    loras = [place.lora(phrase, SEED) for phrase in phrases[: max(counts)]]
    if None in loras:
        say("some concepts are being trained by another process: run this again when it has ended")
        return
    # one set of nouns to be kept for all merges of MERGED, so that they compare; without BEYOND for those with it
    size = len(MERGED)
    kept = {count: kept_nouns(place, phrases[:count]) for count in {size, *counts} if count >= size}
    for count, others in sorted(kept.items()):
        say(f"Acc_ir up to N = {count}: {len(others)} nouns that are none of the concepts: {', '.join(others)}")
    for number, (phrase, path) in enumerate(zip(phrases, loras, strict=False)):
        others = kept[size if number < size else max(kept)]
        keep(place, {"what": "single", "concept": phrase}, [phrase], [path], others, {"mode": "sum"})
    for count in counts:
        for way in ways:
            slot = {"what": "merge", "way": way, "n": count}
            keep(place, slot, phrases[:count], loras[:count], kept[max(count, size)], WAYS[way])
    conclude(place.rows, "merging")


def kept_nouns(place: Workplace, phrases: Sequence[str]) -> list[str]:
    """The model's nouns that no concept and no synonym of one is."""
    classifier, gone = place.classifier, set(phrases)
    for phrase in phrases:
        gone |= {*place.concept(phrase, SEED).synonyms, *classifier.synonyms.get(phrase, ())}
    return [noun for noun in classifier.nouns if noun not in gone]


def keep(
    place: Workplace,
    slot: dict[str, Any],
    phrases: list[str],
    loras: list[Path],
    others: list[str],
    settings: dict[str, Any],
) -> None:
    """Measures one row unless it is there or another process is at it."""
    from training.lora.merge import PRESERVE, RIDGE

    constants = {"constants": [PRESERVE, RIDGE]} if settings["mode"] == "fusion" else {}
    key = key_of(
        {
            **slot,
            **place.counts,
            "loras": [path.stem for path in loras],
            "others": others,
            "model": place.model,
            "merge": settings,
            **constants,
        }
    )
    if place.done(key):
        return
    with place.rows.claim(key) as mine:
        if not mine or place.done(key):
            return
        row = place.keep(key, slot, {"counts": place.counts, **merged(place, phrases, loras, others, settings)})
    accs = f"Acc_e {row['acc_e']['before']:.3f}→{row['acc_e']['after']:.3f}"
    accs += f"  Acc_ir {row['acc_ir']['before']:.3f}→{row['acc_ir']['after']:.3f}"
    print(f"{' '.join(str(value) for value in slot.values()):24s} {accs}  rank {row['rank']}", flush=True)


def merged(
    place: Workplace, phrases: list[str], loras: list[Path], others: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Shares with the merge of `loras` in the model: each concept's, their mean, and that of the other nouns."""
    import time

    import torch

    from training.evaluation import Case, Content, keys_of, render
    from training.evaluation.cases import FIRST_SEED
    from training.lora.adapter import load_adapter
    from training.lora.format import read_lora
    from training.lora.inputs import inputs_path, read_inputs
    from training.lora.merge import Source, merge

    sources = [Source(path.stem, read_lora(path)[0], 1.0, read_inputs(inputs_path(path))) for path in loras]
    began = time.monotonic()
    found = merge(sources, **settings)
    seconds = time.monotonic() - began

    def cases_of(noun: str, count: int) -> list[Case]:
        prompt = place.concept(phrases[0], SEED).prompt(noun)
        return [Case(prompt, FIRST_SEED + number, Content((noun,))) for number in range(count)]

    concepts = {phrase: cases_of(phrase, place.args.images) for phrase in phrases}
    rest = [case for noun in others for case in cases_of(noun, place.args.images_per_other)]
    every = [*(case for group in concepts.values() for case in group), *rest]
    parts, base = place.parts(), place.base
    render(parts, keys_of(every), base)
    load_adapter(parts.transformer, found.weights)
    after: dict[tuple[str, int], torch.Tensor] = {}
    render(parts, keys_of(every), after)

    def both(group: list[Case]) -> dict[str, float]:
        before, now = (round(sum(place.seen(group, pictures)) / max(1, len(group)), 4) for pictures in (base, after))
        return {"before": before, "after": now, "images": len(group)}

    return {
        "acc_e": both([case for group in concepts.values() for case in group]),
        "acc_ir": both(rest),
        "concepts": {phrase: both(group) for phrase, group in concepts.items()},
        "rank": found.report["rank"],
        "parameters": found.report["parameters"],
        "merge_seconds": round(seconds, 2),
        "notes": found.report["notes"],
    }
