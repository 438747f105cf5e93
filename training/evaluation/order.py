"""What is to be evaluated: the base model, attention deletion and LoRA files on one concept."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..concepts import TEMPLATES, Concept
from ..errors import ConfigError
from ..lora.files import mapping_of
from ..lora.format import KEY_CONCEPT, read_metadata
from ..models.source import FluxSource
from .classifier import RELATIONS, DemoClassifier
from .whitebox.settings import WhiteBox

BASE, DELETION = "base", "deletion"
SYNONYMS, ATTACKED, PRESERVED, PRESETS = "synonyms", "attacks", "preserved", "presets"
SUITES = (SYNONYMS, ATTACKED, PRESERVED, PRESETS)  # to choose from; the concept by its name is always measured
USUAL = SUITES[:3]
MAX_SEED = 900  # the pictures' seeds must stay below those that trainings draw
MAX_PROMPTS = 100_000


@dataclass(frozen=True)
class Subject:
    """What is measured beside the base: a LoRA file at a strength from 0 on or, without a file, attention deletion."""

    lora: Path | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Order:
    """An evaluation to be made; `to_dict` and `from_dict` round-trip through JSON.

    images, images_per_other, images_per_attack: as `probes` takes them. strengths: where each LoRA's curve is measured,
    none: no curve; heatmap: look where the word points; blur: the concept is sensitive, a report hides its pictures
    until they are asked for. detectors: who judges (see `judges.parse`), the first one's figures are the main ones;
    labels: of a classifier, those that mean the concept where its words do not. suites: which of SUITES; prompts: CSV
    files, of each at most prompts_limit prompts. distance: whose features compare pictures of captions (see
    `fidelity.parse`), "" for none; reference: a folder of pictures to compare them with, None for the base's own. seed:
    another one is other noise in every picture, and other rows of a file that has more than the limit. white_box:
    attacks on every subject, None for none.
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
    detectors: tuple[str, ...] = ("model",)
    labels: tuple[str, ...] = ()
    suites: tuple[str, ...] = USUAL
    prompts: tuple[Path, ...] = ()
    prompts_limit: int = 100
    distance: str = ""
    reference: Path | None = None
    seed: int = 0
    white_box: WhiteBox | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()},
            "source": self.source.to_dict(),
            "concept": self.concept.to_dict(),
            "subjects": [[str(s.lora) if s.lora else None, s.strength] for s in self.subjects],
            "prompts": [str(path) for path in self.prompts],
            "reference": str(self.reference) if self.reference else None,
            "white_box": self.white_box.to_dict() if self.white_box else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Order:
        """From `to_dict`'s result. Raises ErasureError's subclasses where it is something else."""
        try:
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
            return cls(
                **{
                    **plain,
                    "source": FluxSource.from_dict(data["source"]),
                    "concept": Concept.from_dict(data["concept"]),
                    "subjects": tuple(Subject(Path(lora) if lora else None, s) for lora, s in data["subjects"]),
                    "prompts": tuple(Path(path) for path in data["prompts"]),
                    "reference": Path(data["reference"]) if data["reference"] else None,
                    "white_box": WhiteBox.from_dict(data["white_box"]) if data.get("white_box") else None,
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError("The evaluation's request is not complete: make it again.") from error

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
        if not self.detectors or len(set(self.detectors)) < len(self.detectors):
            raise ConfigError("An evaluation needs a detector, and each of them once.")
        if len(set(self.suites)) < len(self.suites):
            raise ConfigError("Each suite is measured once: name it once.")
        if unknown := [suite for suite in self.suites if suite not in SUITES]:
            raise ConfigError(f"Unknown suite {unknown[0]!r}: choose among {', '.join(SUITES)}.")
        if not 1 <= self.prompts_limit <= MAX_PROMPTS:
            raise ConfigError(f"From 1 to {MAX_PROMPTS} prompts can be taken of a file, not {self.prompts_limit}.")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"The evaluation's seed is a whole number from 0 to {MAX_SEED}, not {self.seed}.")
        if self.reference and not self.distance:
            raise ConfigError("Reference pictures need features that compare them: choose a distance too.")
        if self.white_box:
            self.white_box.validate()


def concept_of_loras(loras: Sequence[Path], phrase: str, classifier: DemoClassifier | None = None) -> Concept:
    """The concept to measure several LoRAs on: that of `phrase`, or what the files say they erase.

    classifier: tells a phrase's kind where no file does; without one it is a thing.
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
        kinds = {"abstraction": classifier.styles, "relationship": RELATIONS} if classifier else {}
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
    words = ["python", "-m", "training.cli", "evaluate", "--source", model_of(order.source)]
    for subject in order.subjects:
        words += ["--deletion"] if subject.lora is None else ["--lora", subject.lora.name]
    for subject in order.subjects:
        words += [] if subject.lora is None else ["--strength", f"{subject.strength:g}"]
    words += ["--concept", order.concept.phrase, "--precision", order.source.precision]
    counts = {name: getattr(order, name) for name in ("images", "images_per_other", "images_per_attack", "batch_size")}
    words += [word for name, count in counts.items() for word in (f"--{name.replace('_', '-')}", str(count))]
    words += [word for choice in order.detectors for word in ("--detector", _named(choice))]
    words += [word for label in order.labels for word in ("--label", label)]
    if order.suites != USUAL:
        words += [word for suite in order.suites or ("none",) for word in ("--suite", suite)]
    words += [word for path in order.prompts for word in ("--prompts", path.name)]
    words += ["--prompts-limit", str(order.prompts_limit)] if order.prompts else []
    words += ["--distance", _named(order.distance)] if order.distance else []
    words += ["--reference", order.reference.name] if order.reference else []
    words += ["--seed", str(order.seed)] if order.seed else []
    words += ["--strengths", ",".join(f"{s:g}" for s in order.strengths)] if order.strengths else []
    words += [] if order.heatmap else ["--no-heatmap"]
    words += ["--blur"] if order.blur else []
    words += order.white_box.arguments() if order.white_box else []
    return shlex.join([*words, "--out", "DIR", "--report"])


def model_of(source: FluxSource) -> str:
    """What the base model is called: the name of its folder, or of its transformer's file."""
    return Path(source.folder or source.transformer).name


def _named(choice: str) -> str:
    """A detector or features as they were chosen, their folder by its name alone."""
    kind, colon, folder = choice.partition(":")
    return f"{kind}{colon}{Path(folder).name}"
