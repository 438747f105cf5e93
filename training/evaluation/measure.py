"""How well a concept is erased from a model with its own classifier: accuracies before and after, and drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..concepts import Concept, forms_of, occurrences
from ..lora.format import LoraWeights
from .cases import ACC_E, ACC_G, ACC_IR, ACC_IR_SEEN, Case, by_suite, concept_cases, keys_of, untouched
from .classifier import DemoClassifier
from .drift import Drift, drift_of
from .judges.demo import DemoJudge
from .render import Pictures, render, stacked

if TYPE_CHECKING:
    from ..models.loading import FluxParts

MeasureProgress = Callable[[str, int, int], None]  # ("before" or "after", Euler steps done, in all)


@dataclass(frozen=True)
class Share:
    """Shares of images in which what was asked for is recognised, 0..1, with the base and after the erasure."""

    before: float
    after: float
    images: int


@dataclass(frozen=True)
class ErasureScore:
    """acc_e: the concept. acc_g: its synonyms. acc_ir: what should stay, where no preservation prompt held its nouns;
    acc_ir_seen: where one did. attacks: the concept under each of ATTACKS; parts: see `concept_cases`."""

    acc_e: Share
    acc_g: Share
    acc_ir: Share
    acc_ir_seen: Share
    attacks: dict[str, Share] = field(default_factory=dict)
    parts: dict[str, Share] = field(default_factory=dict)
    drift: Drift | None = None

    def to_dict(self) -> dict[str, dict]:
        return dataclasses.asdict(self)


def measure_erasure(
    parts: FluxParts,
    classifier: DemoClassifier,
    concept: Concept,
    weights: LoraWeights,
    *,
    images: int = 24,
    images_per_other: int = 3,
    images_per_attack: int = 0,
    batch_size: int = 32,
    base: Pictures | None = None,
    progress: MeasureProgress = lambda moment, done, total: None,
) -> ErasureScore:
    """Measures a LoRA on pictures of fixed seeds at the default guidance; the classifier judges.

    The adapter stays in `parts.transformer`, at strength 1.

    Args:
        images, images_per_other, images_per_attack: See `concept_cases`.
        base: The base's pictures so far; it is filled, so that the next measurement on the same model repeats none.

    Raises:
        ErasureError: Where the classifier does not name the concept.
    """
    from ..lora.adapter import load_adapter, set_adapter_scale

    cases = concept_cases(concept, classifier, images, images_per_other, images_per_attack)
    load_adapter(parts.transformer, weights)
    base = {} if base is None else base
    after: Pictures = {}
    set_adapter_scale(parts.transformer, 0.0)
    render(parts, keys_of(cases), base, batch_size, partial(progress, "before"))
    set_adapter_scale(parts.transformer, 1.0)
    render(parts, keys_of(cases), after, batch_size, partial(progress, "after"))
    return score(classifier, concept, cases, base, after)


def measure_deletion(
    parts: FluxParts,
    classifier: DemoClassifier,
    concept: Concept,
    *,
    images: int = 24,
    images_per_other: int = 3,
    images_per_attack: int = 0,
    batch_size: int = 32,
    base: Pictures | None = None,
    progress: MeasureProgress = lambda moment, done, total: None,
) -> ErasureScore:
    """Measures attention deletion, which trains nothing: no attention to the phrase's tokens, wherever it is written as
    it is (see `models.attention.attention_deletion`). Arguments and errors as `measure_erasure`."""
    cases = concept_cases(concept, classifier, images, images_per_other, images_per_attack)
    base = {} if base is None else base
    after: Pictures = {}
    render(parts, keys_of(cases), base, batch_size, partial(progress, "before"))
    forms = forms_of(concept.phrase)
    named = [key for key in keys_of(cases) if any(occurrences(key[0], form) for form in forms)]
    render(parts, named, after, batch_size, partial(progress, "after"), deleted=concept.phrase)
    for key in keys_of(cases):  # without the phrase nothing is deleted
        after.setdefault(key, base[key])
    return score(classifier, concept, cases, base, after)


def score(
    classifier: DemoClassifier, concept: Concept, cases: Sequence[Case], before: Pictures, after: Pictures
) -> ErasureScore:
    """The score of two sets of pictures that hold all that the cases ask for."""
    judge, keys = DemoJudge(classifier), keys_of(cases)
    stacks = [stacked(pictures, keys) for pictures in (before, after)]
    findings = [dict(zip(keys, judge.detect(stack), strict=True)) for stack in stacks]

    def share(counted: Sequence[Case]) -> Share:
        hits = (sum(judge.verdict(found[case.key], case.expected).shown for case in counted) for found in findings)
        first, second = (round(number / max(1, len(counted)), 4) for number in hits)
        return Share(first, second, len(counted))

    shares = {suite: share(counted) for suite, counted in by_suite(cases).items()}
    place = {key: number for number, key in enumerate(keys)}
    chosen = [place[key] for key in untouched(cases, concept)]
    return ErasureScore(
        **{suite.id: shares.get(suite, Share(0.0, 0.0, 0)) for suite in (ACC_E, ACC_G, ACC_IR, ACC_IR_SEEN)},
        attacks={suite.name: found for suite, found in shares.items() if suite.group == "attack"},
        parts={suite.name: found for suite, found in shares.items() if suite.group == "part"},
        drift=drift_of(classifier.features, *(stack[chosen] for stack in stacks)) if chosen else None,
    )
