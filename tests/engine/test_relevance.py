"""Whether a prompt is about a concept: the formula, and what the demo model's text encoder makes of real prompts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from training.concepts import THRESHOLD, concept_keys, make_concept, relevance, vocabulary_of
from training.concepts.prompts import ENTITY_PATTERNS, PAIR_PATTERNS, fill
from training.concepts.relevance import concept_key
from training.concepts.spans import token_spans
from training.evaluation import load_classifier
from training.models.loading import load_text_encoders
from training.models.source import demo_source


def test_relevance_is_the_best_mean_cosine_of_a_run_of_tokens():
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(3, 7, 5, generator=generator)
    keys = [torch.randn(n, 5, generator=generator) for n in (1, 2, 9)]
    unit = [key / key.norm(dim=-1, keepdim=True) for key in keys]
    found = relevance(context, unit)
    for row, prompt in enumerate(context.double()):
        best = -1.0
        for key in keys[:2]:  # the third is longer than the prompt
            for start in range(7 - len(key) + 1):
                pairs = zip(prompt[start : start + len(key)], key.double(), strict=True)
                cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in pairs]
                best = max(best, float(sum(cosines) / len(cosines)))
        assert float(found[row]) == pytest.approx(best, abs=1e-6)
    exact = relevance(context, [concept_key(context[1], [2, 3])])
    assert float(exact[1]) == pytest.approx(1, abs=1e-6) and float(exact[0]) < 0.99


def test_the_gate_tells_prompts_about_a_concept_from_others(demo_folder: Path):
    """Direct and synonymous prompts of every noun against prompts about other things; at least 500 of them."""
    encoders = load_text_encoders(demo_source("fp32"), "cpu", torch.float32)
    classifier, tokenizer = load_classifier(demo_folder), encoders.tokenizer_2
    draw, length = random.Random(0), encoders.sequence_length
    right = wrong = missed = 0
    for noun in classifier.nouns[::3]:
        concept = make_concept(noun, irrelevant=["thing"], vocabulary=vocabulary_of(tokenizer))
        names = dict.fromkeys([*concept.names(), *classifier.synonyms.get(noun, ())])
        keys = concept_keys(
            names,
            lambda text: encoders.encode(text).t5[0],
            lambda text, name: range(*token_spans(tokenizer, text, name, length)[0]),
        )
        others = [other for other in classifier.nouns if other not in names]
        about = [fill(p, {"x": name, "color": draw.choice(("red", "blue"))}) for name in names for p in ENTITY_PATTERNS]
        about += [fill(p, {"x": noun, "y": draw.choice(others)}) for p in PAIR_PATTERNS]
        unrelated = [
            fill(draw.choice(ENTITY_PATTERNS), {"x": draw.choice(others), "color": "green"}) for _ in range(16)
        ]
        unrelated += [fill(p, dict(zip("xy", draw.sample(others, 2), strict=True))) for p in PAIR_PATTERNS]
        score = relevance(encoders.encode([*about, *unrelated]).t5, keys) >= THRESHOLD
        right += int(score[: len(about)].sum())
        missed += int((~score[: len(about)]).sum())
        wrong += int(score[len(about) :].sum())
    assert right + missed >= 200
    assert right / (right + missed) >= 0.95, (right, missed)
    assert right / (right + wrong) >= 0.95, (right, wrong)
