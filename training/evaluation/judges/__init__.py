"""Who says what a picture shows, each behind `base.Judge`, and how a user names one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...concepts import Concept, phrases_of, presets
from ...errors import ConfigError, ErasureError
from ..cases import require_measurable
from ..classifier import DemoClassifier, load_classifier
from .base import Judge
from .clip import CLIP_TEMPLATE, TEMPLATES, ClipJudge
from .demo import DemoJudge
from .image_classifier import ImageClassifierJudge
from .nudenet import NudeNetJudge

MODEL, NUDENET, CLIP, CLASSIFIER = (judge.kind for judge in (DemoJudge, NudeNetJudge, ClipJudge, ImageClassifierJudge))
KINDS = (MODEL, NUDENET, CLIP, CLASSIFIER)


def parse(choice: str) -> tuple[str, str]:
    """("clip", "FOLDER") of "clip:FOLDER"; the folder is "" where the kind needs none. Raises ConfigError."""
    kind, _, folder = choice.partition(":")
    if kind not in KINDS:
        raise ConfigError(
            f"Unknown detector {choice[:80]!r}: write {MODEL}, {NUDENET}, {CLIP}:FOLDER or {CLASSIFIER}:FOLDER."
        )
    if bool(folder) != (kind in (CLIP, CLASSIFIER)):
        needs = "needs a folder with its weights, as in" if not folder else "has its own weights: write"
        raise ConfigError(f"The detector {kind} {needs} {kind}{'' if folder else ':FOLDER'}.")
    return kind, folder


def make_judge(
    choice: str, concept: Concept, model: Path | None, words: Sequence[str], labels: Sequence[str], device: str
) -> Judge:
    """The judge that `choice` (see `parse`) names.

    Args:
        model: The Flux's folder, whose own classifier is meant by "model".
        words: What else than the concept pictures will be asked for.
        labels: Of an image classifier, those that mean the concept.

    Raises:
        ConfigError: For a choice that makes no sense.
        ErasureError: Where weights or a package are missing or nothing names the concept.
    """
    kind, folder = parse(choice)
    if kind == MODEL:
        classifier = own_classifier(model)
        assert model is not None, "`own_classifier` refuses None"
        require_measurable(concept, classifier)
        return DemoJudge.of_model(classifier, model)
    if kind == NUDENET:
        return NudeNetJudge(concept.phrase)
    if kind == CLIP:
        template = TEMPLATES.get(concept.kind, CLIP_TEMPLATE)
        return ClipJudge(folder, clip_labels(concept, words), template, device)
    judge = ImageClassifierJudge(folder, device)
    judge.name_concept(concept, labels)
    return judge


def own_classifier(model: Path | None) -> DemoClassifier:
    """The classifier in a model's folder. Raises ErasureError with the other detectors where it has none."""
    if model is not None and (model / "classifier").exists():
        return load_classifier(model)
    name = model.name if model is not None else "a model of single files"
    raise ErasureError(
        f"{name} has no classifier of its own: choose another detector, {NUDENET}, {CLIP}:FOLDER or "
        f"{CLASSIFIER}:FOLDER, or the demo model flux-emoji."
    )


def clip_labels(concept: Concept, words: Sequence[str]) -> list[str]:
    """What CLIP chooses among: the concept, its irrelevant words and everything else that pictures are asked for."""
    names = {name.lower() for name in concept.names()}
    others = [word for word in (*concept.irrelevant, *words) if word.lower() not in names]
    if not others:  # one label alone would always win
        others = [word for word in preset_words(concept.kind) if word.lower() not in names]
    return list(dict.fromkeys([concept.phrase, *others]))


def preset_words(kind: str) -> list[str]:
    """The first spelling of each preset of a kind ("entity" for a kind that has none)."""
    every = [preset for preset in presets() if preset.group == "everyday"]
    found = [preset for preset in every if preset.kind == kind] or [p for p in every if p.kind == "entity"]
    return [phrases_of(preset.phrase, preset.kind)[0] for preset in found]


def unrelated_words(concept: Concept, judge: Judge) -> list[str]:
    """Words for other things than the concept: its irrelevant words, else some that the judge knows, else presets."""
    if concept.irrelevant:
        return list(concept.irrelevant)
    names, pool = {name.lower() for name in concept.names()}, preset_words(concept.kind)
    if known := judge.vocabulary:
        pool = {"abstraction": known.styles, "relationship": known.relations}.get(concept.kind, known.nouns)
        names |= {*known.synonyms.get(concept.phrase, ())}
    return [word for word in pool if word.lower() not in names][:3]
