"""How well a LoRA erased a noun from a model that comes with a classifier: Acc_e, Acc_g and Acc_ir before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ..concepts import Concept, occurrences
from ..flux.loading import FluxParts
from ..flux.sampling import generate
from ..lora.adapter import load_adapter, set_adapter_scale
from ..lora.format import LoraWeights
from .classifier import DemoClassifier

FIRST_SEED = 50_000  # of the measured images; the bank trains on seeds from 1,000,000 on

Seen = dict[tuple[str, int], str]  # (prompt, seed) → the noun that the classifier saw


@dataclass(frozen=True)
class Share:
    """Shares of images in which the wanted noun is recognised, 0..1, with the base and with the LoRA at strength 1."""

    before: float
    after: float
    images: int


@dataclass(frozen=True)
class ErasureScore:
    """acc_e: the erased noun. acc_g: its synonyms. acc_ir: nouns that no preservation prompt held; acc_ir_seen: those
    that one did."""

    acc_e: Share
    acc_g: Share
    acc_ir: Share
    acc_ir_seen: Share

    def to_dict(self) -> dict[str, dict[str, float | int]]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Image:
    """One picture to measure: which share it counts in, the noun it should show, its prompt and seed."""

    share: str
    noun: str
    prompt: str
    seed: int


def _images(concept: Concept, classifier: DemoClassifier, images: int, images_per_other: int) -> list[_Image]:
    kept = "\n".join(concept.preserve)
    synonyms = list(dict.fromkeys([*concept.synonyms, *classifier.synonyms.get(concept.phrase, ())]))
    own = {concept.phrase, *synonyms}
    wanted = [("acc_e", concept.phrase, concept.phrase, images)]
    wanted += [("acc_g", concept.phrase, synonym, -(-images // len(synonyms))) for synonym in synonyms]
    for noun in classifier.nouns:
        if noun not in own:
            names = (noun, *classifier.synonyms.get(noun, ()))  # seen under any of its names
            seen = any(occurrences(kept, name) for name in names)
            wanted.append(("acc_ir_seen" if seen else "acc_ir", noun, noun, images_per_other))
    return [
        _Image(share, noun, concept.prompt(word), FIRST_SEED + number)
        for share, noun, word, count in wanted
        for number in range(count)
    ]


def measure_erasure(
    parts: FluxParts,
    classifier: DemoClassifier,
    concept: Concept,
    weights: LoraWeights,
    *,
    images: int = 24,
    images_per_other: int = 3,
    batch_size: int = 32,
    base: Seen | None = None,
    progress: Callable[[str, int, int], None] = lambda moment, done, total: None,
) -> ErasureScore:
    """Generate from fixed seeds, in one pass a step at the default guidance, and let the classifier judge.

    `images`: how many for the noun and as many, or a little more, for its synonyms (the concept's and the model's own);
    `images_per_other`: for every other noun. `base`: what was seen in the base's images so far; it is filled, so that
    the next concept's measurement on the same model repeats none. The adapter stays in `parts.transformer`, at
    strength 1.
    """
    rows = _images(concept, classifier, images, images_per_other)
    seen: dict[str, Seen] = {"before": {} if base is None else base, "after": {}}
    load_adapter(parts.transformer, weights)
    for moment, scale in (("before", 0.0), ("after", 1.0)):
        set_adapter_scale(parts.transformer, scale)
        missing = list(dict.fromkeys((i.prompt, i.seed) for i in rows if (i.prompt, i.seed) not in seen[moment]))
        if missing:
            with parts.computing():
                pictures = generate(
                    parts,
                    [prompt for prompt, _ in missing],
                    [seed for _, seed in missing],
                    batch_size=batch_size,
                    callback=lambda done, total, moment=moment: progress(moment, done, total),
                )
            seen[moment].update(zip(missing, classifier.classify(pictures).nouns, strict=True))

    def share(name: str) -> Share:
        counted = [i for i in rows if i.share == name]
        before, after = (
            sum(seen[moment][i.prompt, i.seed] == i.noun for i in counted) / max(1, len(counted))
            for moment in ("before", "after")
        )
        return Share(round(before, 4), round(after, 4), len(counted))

    return ErasureScore(*(share(field.name) for field in dataclasses.fields(ErasureScore)))
