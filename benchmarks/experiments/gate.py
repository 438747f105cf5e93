"""`gate`: whether "only when the prompt is about it" lets the right prompts through."""

from __future__ import annotations

import argparse
import random
from typing import Any

from ..page import conclude
from ..rows import key_of
from ..workplace import Workplace

THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
MISSPELT = 8  # spellings of each concept
UNRELATED = 40  # prompts for each concept


def gate(args: argparse.Namespace) -> None:
    """Which prompts a concept's gate lets through, at several thresholds: direct, synonym, misspelt, unrelated."""
    from training.concepts import THRESHOLD

    place = Workplace(args, "gate")
    phrases = args.concepts.split(",") if args.concepts else list(place.classifier.nouns)
    for phrase in phrases:
        slot, concept = {"concept": phrase}, place.concept(phrase, 0)
        key = key_of(
            {
                **slot,
                "model": place.model,
                "concept": concept.to_dict(),
                "thresholds": THRESHOLDS,
                "prompts": [MISSPELT, UNRELATED],
            }
        )
        if not place.done(key):
            place.keep(key, slot, {"default": THRESHOLD, "thresholds": THRESHOLDS, "prompts": passed(place, phrase)})
            print(f"· {phrase}", flush=True)
    conclude(place.rows, "gate")


def passed(place: Workplace, phrase: str) -> dict[str, dict[str, Any]]:
    """kind of prompt → {"prompts": how many, "passed": how many at each threshold}.

    "misspelt and painted": those spellings whose picture shows the concept to the classifier, which are the ones that
    matter: a model that does not understand a word paints nothing that a LoRA should erase.
    """
    import torch

    from training.concepts import concept_keys, relevance, token_spans
    from training.concepts.prompts import COLORS, ENTITY_PATTERNS, PAIR_PATTERNS, fill
    from training.evaluation import Case, Content, keys_of, render
    from training.evaluation.attacks import misspelling
    from training.evaluation.cases import FIRST_SEED

    parts, concept, classifier = place.parts(), place.concept(phrase, 0), place.classifier
    text, draw = parts.text, random.Random(f"gate:{phrase}")
    length = text.sequence_length
    keys = concept_keys(
        concept.names(),
        lambda prompt: text.encode([prompt]).t5[0],
        lambda prompt, name: range(*token_spans(text.tokenizer_2, prompt, name, length)[0]),
    )
    own = {*concept.names(), *classifier.synonyms.get(phrase, ())}
    others = [noun for noun in classifier.nouns if noun not in own]

    def alone(name: str) -> list[str]:
        return [fill(pattern, {"x": name, "color": draw.choice(COLORS)}) for pattern in ENTITY_PATTERNS]

    def beside(name: str) -> list[str]:
        return [fill(pattern, {"x": name, "y": draw.choice(others)}) for pattern in PAIR_PATTERNS]

    misspelt = [concept.prompt(misspelling(draw, phrase)) for _ in range(MISSPELT)]
    prompts = {
        "direct": [*alone(phrase), *beside(phrase)],
        "synonym": [prompt for name in sorted(own - {phrase}) for prompt in (*alone(name), *beside(name))],
        "misspelt": misspelt,
        "unrelated": [draw.choice((alone, beside))(draw.choice(others))[number % 3] for number in range(UNRELATED)],
    }
    cases = [Case(prompt, FIRST_SEED, Content((phrase,))) for prompt in dict.fromkeys(misspelt)]
    render(parts, keys_of(cases), place.base)
    shown = place.seen(cases, place.base)
    prompts["misspelt and painted"] = [case.prompt for case, seen in zip(cases, shown, strict=True) if seen]
    found = {}
    for kind, texts in prompts.items():
        texts = list(dict.fromkeys(texts))
        near = relevance(text.encode(texts).t5, keys) if texts else torch.empty(0)
        counts = [int((near >= threshold).sum()) for threshold in THRESHOLDS]
        found[kind] = {"prompts": len(texts), "passed": counts}
    return found
