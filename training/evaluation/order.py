"""What is to be evaluated: the base model, attention deletion and LoRA files on one concept."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..concepts import TEMPLATES, Concept
from ..errors import ConfigError
from ..flux.source import FluxSource
from ..lora.files import mapping_of
from ..lora.format import KEY_CONCEPT, read_metadata
from .classifier import RELATIONS, DemoClassifier

BASE, DELETION = "base", "deletion"


@dataclass(frozen=True)
class Subject:
    """What is measured beside the base: a LoRA file at a strength from 0 on or, without a file, attention deletion."""

    lora: Path | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Order:
    """An evaluation to be made. images, images_per_other, images_per_attack: as `probes` takes them.

    strengths: where each LoRA's curve is measured, none: no curve; heatmap: look where the word points; blur: the
    concept is sensitive, a report hides its pictures until they are asked for.
    """

    source: FluxSource
    concept: Concept
    subjects: tuple[Subject, ...]
    images: int = 24
    images_per_other: int = 3
    images_per_attack: int = 8
    strengths: tuple[float, ...] = ()
    heatmap: bool = True
    blur: bool = False
    batch_size: int = 32

    def validate(self) -> None:
        """Raises ConfigError with the first thing that is wrong."""
        if not self.subjects:
            raise ConfigError("There is nothing to evaluate: name a LoRA, or attention deletion.")
        if sum(subject.lora is None for subject in self.subjects) > 1:
            raise ConfigError("Attention deletion has no settings: evaluate it once.")
        if any(not (math.isfinite(s) and s >= 0) for s in (*self.strengths, *(s.strength for s in self.subjects))):
            raise ConfigError("A strength is a number from 0 on.")
        counts = (self.images, self.images_per_other, self.images_per_attack)
        if min(counts) < 0 or self.images < 1 or self.batch_size < 1:
            raise ConfigError("Numbers of images are whole numbers from 0 on, and the concept needs 1 at least.")


def concept_of_loras(loras: Sequence[Path], phrase: str, classifier: DemoClassifier) -> Concept:
    """The concept to measure several LoRAs on: that of `phrase`, or what the files say they erase.

    Preservation prompts and synonyms of all files that erase it count. Raises ConfigError where it is not told or the
    files differ, LoraError for a file that is no LoRA.
    """
    told = [mapping_of(read_metadata(lora).get(KEY_CONCEPT)) for lora in loras]
    concepts = [Concept.from_dict(each) for each in told if each]
    phrases = list(dict.fromkeys(concept.phrase for concept in concepts))
    if not phrase and len(phrases) != 1:
        if not phrases:
            raise ConfigError("No LoRA says which concept it erases: name the concept that is to be measured.")
        raise ConfigError(f"The LoRAs erase {' and '.join(phrases)}: name the concept that is to be measured.")
    phrase = phrase or phrases[0]
    same = [concept for concept in concepts if concept.phrase == phrase]
    if not same:
        kinds = {"abstraction": classifier.styles, "relationship": RELATIONS}
        kind = next((kind for kind, names in kinds.items() if phrase in names), "entity")
        return Concept(phrase, kind, TEMPLATES[kind])
    joined = {
        name: tuple(dict.fromkeys(each for concept in same for each in getattr(concept, name)))
        for name in ("synonyms", "preserve")
    }
    return dataclasses.replace(same[0], **joined)


def ids_of(order: Order) -> list[str]:
    """The names of the base and of every subject, in order; also of their folders."""
    loras = itertools.count(1)
    return [BASE, *(f"lora-{next(loras)}" if subject.lora else DELETION for subject in order.subjects)]


def command_of(order: Order) -> str:
    """The command that makes the evaluation again, beside the model and the LoRA files; no path but their names."""
    words = ["python", "-m", "training.cli", "evaluate", "--source", Path(order.source.folder).name]
    for subject in order.subjects:
        words += ["--deletion"] if subject.lora is None else ["--lora", subject.lora.name]
    for subject in order.subjects:
        words += [] if subject.lora is None else ["--strength", f"{subject.strength:g}"]
    words += ["--concept", order.concept.phrase, "--precision", order.source.precision]
    counts = {name: getattr(order, name) for name in ("images", "images_per_other", "images_per_attack", "batch_size")}
    words += [word for name, count in counts.items() for word in (f"--{name.replace('_', '-')}", str(count))]
    words += ["--strengths", ",".join(f"{s:g}" for s in order.strengths)] if order.strengths else []
    words += [] if order.heatmap else ["--no-heatmap"]
    words += ["--blur"] if order.blur else []
    return shlex.join([*words, "--out", "DIR", "--report"])
