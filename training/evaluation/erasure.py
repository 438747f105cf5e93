"""How well a concept is erased from a model that comes with a classifier: accuracies before and after, and drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import Concept, forms_of, occurrences, span_mask, token_spans
from ..lora.format import LoraWeights
from ..models.sampling import generate
from .attacks import ATTACKS
from .classifier import DemoClassifier
from .probes import Probe, probes

if TYPE_CHECKING:
    from ..models.loading import FluxParts

Pictures = MutableMapping[tuple[str, int], Tensor]  # (prompt, seed) → RGB uint8 [3, H, W]
MeasureProgress = Callable[[str, int, int], None]  # ("before" or "after", Euler steps done, in all)
MAX_PSNR = 100.0  # of equal pictures, whose ratio has no bound


@dataclass(frozen=True)
class Share:
    """Shares of images in which what was asked for is recognised, 0..1, with the base and after the erasure."""

    before: float
    after: float
    images: int


@dataclass(frozen=True)
class Drift:
    """How far images of prompts without the concept move from the base's at equal seeds; means over `images`.

    perceptual: `perceptual_distance`, 0..2, None where no classifier gives features; psnr: dB, MAX_PSNR at most.
    """

    perceptual: float | None
    psnr: float
    images: int


@dataclass(frozen=True)
class ErasureScore:
    """acc_e: the concept. acc_g: its synonyms. acc_ir: what should stay, where no preservation prompt held its nouns;
    acc_ir_seen: where one did. attacks: the concept under each of ATTACKS. parts, drift: see `probes` and `Drift`."""

    acc_e: Share
    acc_g: Share
    acc_ir: Share
    acc_ir_seen: Share
    attacks: dict[str, Share] = field(default_factory=dict)
    parts: dict[str, Share] = field(default_factory=dict)
    drift: Drift | None = None

    def to_dict(self) -> dict[str, dict]:
        return dataclasses.asdict(self)


def perceptual_distance(first: Tensor, second: Tensor) -> Tensor:
    """LPIPS' form without its learnt weights (Zhang et al., CVPR 2018, Eq. 1, one layer): mean over positions of
    ‖f̂ − ĝ‖², f̂ and ĝ scaled to unit length over channels. Feature maps [B, C, h, w] → [B], 0..2 for features ≥ 0."""
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean((1, 2))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B, 3, H, W] in 0..1, MAX_PSNR at most. → [B]."""
    error = (first - second).square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp_min(10 ** (-MAX_PSNR / 10)))).clamp_max(MAX_PSNR)


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
    """Measure a LoRA: generate from fixed seeds, in one pass a step at the default guidance; the classifier judges.

    How many images of what: see `probes`. `base`: the base's images so far; it is filled, so that the next measurement
    on the same model repeats none. The adapter stays in `parts.transformer`, at strength 1.
    Raises ErasureError where the classifier does not name the concept.
    """
    from ..lora.adapter import load_adapter, set_adapter_scale

    wanted = probes(concept, classifier, images, images_per_other, images_per_attack)
    load_adapter(parts.transformer, weights)
    base = {} if base is None else base
    set_adapter_scale(parts.transformer, 0.0)
    paint(parts, wanted, base, batch_size, partial(progress, "before"))
    set_adapter_scale(parts.transformer, 1.0)
    after: Pictures = {}
    paint(parts, wanted, after, batch_size, partial(progress, "after"))
    return judge(classifier, concept, wanted, base, after)


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
    """Measure attention deletion, which trains nothing: no attention to the phrase's tokens, wherever it is written as
    it is (see `models.attention.attention_deletion`). Arguments and errors as `measure_erasure`."""
    wanted = probes(concept, classifier, images, images_per_other, images_per_attack)
    base = {} if base is None else base
    paint(parts, wanted, base, batch_size, partial(progress, "before"))
    forms = forms_of(concept.phrase)
    touched = [probe for probe in wanted if any(occurrences(probe.prompt, form) for form in forms)]
    after: Pictures = {}
    paint(parts, touched, after, batch_size, partial(progress, "after"), deleted=concept.phrase)
    for probe in wanted:  # without the phrase nothing is deleted
        after.setdefault((probe.prompt, probe.seed), base[probe.prompt, probe.seed])
    return judge(classifier, concept, wanted, base, after)


def paint(
    parts: FluxParts,
    wanted: Iterable[Probe],
    pictures: Pictures,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    deleted: str = "",
) -> None:
    """Generate those pictures of `wanted` that `pictures` lacks, by the transformer as it is, into `pictures`.

    deleted: a phrase whose tokens get no attention; progress(done, total) counts Euler steps.
    """
    missing = [key for key in dict.fromkeys((probe.prompt, probe.seed) for probe in wanted) if key not in pictures]
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    for number, batch in enumerate(batches):  # one by one, so that pictures on a disk survive an interruption
        prompts, seeds = [prompt for prompt, _ in batch], [seed for _, seed in batch]

        def tell(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(batches) * total)

        with parts.computing():
            made = generate(
                parts,
                prompts,
                seeds,
                batch_size=len(batch),
                callback=tell,
                deleted=span_masks(parts, prompts, deleted) if deleted else None,
            )
        for key, picture in zip(batch, made.mul(255).round().byte(), strict=True):
            pictures[key] = picture


def span_masks(parts: FluxParts, prompts: Sequence[str], phrase: str) -> Tensor:
    """[n, L]: 1 at the phrase's tokens, and its plural's, in each prompt."""
    length, tokenizer = parts.text.sequence_length, parts.text.tokenizer_2
    masks = [
        [span_mask(token_spans(tokenizer, prompt, form, length), length) for form in forms_of(phrase)]
        for prompt in prompts
    ]
    return torch.stack([torch.stack(each).any(0) for each in masks]).float()


def untouched(wanted: Iterable[Probe], concept: Concept) -> list[tuple[str, int]]:
    """(prompt, seed) of what should stay as it is and does not name the concept: the pictures that drift is about."""
    kept = [p for p in wanted if p.share.startswith("acc_ir") and not occurrences(p.prompt, concept.phrase)]
    return list(dict.fromkeys((probe.prompt, probe.seed) for probe in kept))


@torch.no_grad()
def drift_of(classifier: DemoClassifier | None, before: Tensor, after: Tensor) -> Drift:
    """The drift between two stacks of equally many pictures [B, 3, H, W] in 0..1, B > 0; not perceptual without a
    classifier."""
    far = None
    if classifier is not None:
        pairs = zip(before.split(64), after.split(64), strict=True)
        each = [perceptual_distance(classifier.features(a), classifier.features(b)) for a, b in pairs]
        far = round(float(torch.cat(each).mean()), 4)
    return Drift(far, round(float(psnr(before, after).mean()), 2), len(before))


@torch.no_grad()
def judge(
    classifier: DemoClassifier, concept: Concept, wanted: Sequence[Probe], before: Pictures, after: Pictures
) -> ErasureScore:
    """The score of two sets of pictures that hold all that is `wanted`."""
    keys = list(dict.fromkeys((probe.prompt, probe.seed) for probe in wanted))
    place = {key: number for number, key in enumerate(keys)}
    stacks = [torch.stack([pictures[key] for key in keys]).float() / 255 for pictures in (before, after)]
    verdicts = [classifier.classify(stack) for stack in stacks]

    def share(counted: list[Probe]) -> Share:
        count = max(1, len(counted))
        first, second = (
            sum(probe.content.shown(verdict, place[probe.prompt, probe.seed]) for probe in counted) / count
            for verdict in verdicts
        )
        return Share(round(first, 4), round(second, 4), len(counted))

    chosen = [place[key] for key in untouched(wanted, concept)]
    main = {name: share([p for p in wanted if p.share == name]) for name in ("acc_e", "acc_g", "acc_ir", "acc_ir_seen")}
    attacks = {name: share(found) for name in ATTACKS if (found := [p for p in wanted if p.share == name])}
    names = dict.fromkeys(probe.part for probe in wanted if probe.part)
    finer = {name: share([p for p in wanted if p.part == name]) for name in names}
    drift = drift_of(classifier, *(stack[chosen] for stack in stacks)) if chosen else None
    return ErasureScore(**main, attacks=attacks, parts=finer, drift=drift)
