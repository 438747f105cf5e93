"""What is to be evaluated: the base model, attention deletion and LoRA files on one concept, by which cases."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..concepts import TEMPLATES, Concept, Kind
from ..errors import ConfigError
from ..lora.files import mapping_of, sha256_of
from ..lora.format import KEY_CONCEPT, read_metadata
from ..models.source import FluxSource
from .cases import (
    ACC_E,
    ACC_G,
    ACC_IR,
    ACC_IR_SEEN,
    Case,
    Suite,
    concept_cases,
    concept_content,
    in_suite,
    preset_cases,
)
from .classifier import DemoClassifier
from .judges.base import Judge
from .prompt_files import PromptFile, read_prompts
from .whitebox.settings import WhiteBox

BASE, DELETION = "base", "deletion"
SYNONYMS, ATTACKED, PRESERVED, PRESETS = "synonyms", "attacks", "preserved", "presets"
SEED_STRIDE = 1000  # between the pictures' seeds of an evaluation's seed and those of the next
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
class EvaluationSpec:
    """An evaluation to be made; `to_dict` and `from_dict` round-trip through JSON.

    Args:
        images, images_per_other, images_per_attack: As `concept_cases` takes them.
        strengths: Where each LoRA's curve is measured; none: no curve.
        heatmap: Whether to show where the concept's word points.
        blur: The concept is sensitive: a report hides its pictures until they are asked for.
        detectors: Who judges (see `judges.parse`); the first one's figures are the main ones.
        labels: Of an image classifier, those that mean the concept where its words do not.
        suites: Which of SUITES.
        prompts: CSV files, of each at most prompts_limit prompts.
        distance: Whose features compare pictures of captions (see `fidelity.parse`), "" for none.
        reference: A folder of pictures to compare them with, None for the base's own.
        seed: Another one is other noise in every picture, and other rows of a file that has more than the limit.
        white_box: Attacks on every subject, None for none.
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
    def from_dict(cls, data: dict[str, Any]) -> EvaluationSpec:
        """From `to_dict`'s result. Raises ErasureError's subclasses where it is something else."""
        try:
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
            fields: dict[str, Any] = {
                **plain,
                "source": FluxSource.from_dict(data["source"]),
                "concept": Concept.from_dict(data["concept"]),
                "subjects": tuple(Subject(Path(lora) if lora else None, s) for lora, s in data["subjects"]),
                "prompts": tuple(Path(path) for path in data["prompts"]),
                "reference": Path(data["reference"]) if data["reference"] else None,
                "white_box": WhiteBox.from_dict(data["white_box"]) if data.get("white_box") else None,
            }
            return cls(**fields)
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

    Preservation prompts and synonyms of all files that erase it count.

    Args:
        classifier: Tells a phrase's kind where no file does; without one it is a thing.

    Raises:
        ConfigError: Where no file names a concept or the files differ.
        LoraError: For a file that is no LoRA.
    """
    stored = [mapping_of(read_metadata(lora).get(KEY_CONCEPT)) for lora in loras]
    concepts = [Concept.from_dict(each) for each in stored if each]
    phrases = list(dict.fromkeys(concept.phrase for concept in concepts))
    if not phrase and len(phrases) != 1:
        if not phrases:
            raise ConfigError("No LoRA says which concept it erases: name the concept that is to be measured.")
        raise ConfigError(f"The LoRAs erase {' and '.join(phrases)}: name the concept that is to be measured.")
    phrase = phrase or phrases[0]
    same = [concept for concept in concepts if concept.phrase == phrase]
    if not same:
        kinds: dict[Kind, Sequence[str]] = {}
        if classifier:
            kinds = {"abstraction": classifier.styles, "relationship": classifier.relations}
        kind: Kind = next((kind for kind, names in kinds.items() if phrase in names), "entity")
        return Concept(phrase, kind, TEMPLATES[kind])
    joined: dict[str, Any] = {
        name: tuple(dict.fromkeys(each for concept in same for each in getattr(concept, name)))
        for name in ("synonyms", "preserve")
    }
    return dataclasses.replace(same[0], **joined)


def read_files(spec: EvaluationSpec) -> list[PromptFile]:
    """The prompt files of an evaluation, each read once. Raises ErasureError for one that cannot be used."""
    found = [
        read_prompts(path, spec.prompts_limit, seed=spec.seed, number=number)
        for number, path in enumerate(spec.prompts, 1)
    ]
    return [dataclasses.replace(file, sha256=sha256_of(path)) for file, path in zip(found, spec.prompts, strict=True)]


def other_words(spec: EvaluationSpec) -> list[str]:
    """What else than the concept pictures are asked for, so that a judge among labels can name it."""
    preserved = spec.concept.irrelevant if PRESERVED in spec.suites else ()
    others = [case.expected.word for case in preset_cases(spec.concept, 1)] if PRESETS in spec.suites else []
    return list(dict.fromkeys([*preserved, *others]))


def cases_of(spec: EvaluationSpec, judge: Judge, files: Sequence[PromptFile]) -> list[Case]:
    """The cases of an evaluation; those that its first judge cannot name are left out, but for prompts of files."""
    made = concept_cases(spec.concept, judge.vocabulary, spec.images, spec.images_per_other, spec.images_per_attack)
    made = [case for case in made if any(_is_chosen(suite, spec) for suite in case.suites)]
    if PRESETS in spec.suites:
        made += preset_cases(spec.concept, spec.images_per_other)
    shifted = [
        dataclasses.replace(case, seed=case.seed + SEED_STRIDE * spec.seed)
        for case in made
        if judge.knows(case.expected.word)
    ]
    expected = concept_content(spec.concept)
    return shifted + [case for file in files for case in file.cases(expected)]


def direct_cases(spec: EvaluationSpec, judge: Judge, count: int) -> list[Case]:
    """`count` cases of the concept by its name, as the evaluation asks for it, each with another seed."""
    return in_suite(cases_of(dataclasses.replace(spec, images=count, suites=()), judge, []), ACC_E)


def _is_chosen(suite: Suite, spec: EvaluationSpec) -> bool:
    """Whether the choice of suites has a place for this one; the concept by its name always has one."""
    choice = {ACC_G: SYNONYMS, ACC_IR: PRESERVED, ACC_IR_SEEN: PRESERVED}
    choice_of_group = {"attack": ATTACKED, "part": PRESERVED}
    return suite == ACC_E or choice_of_group.get(suite.group, choice.get(suite)) in spec.suites


def paths_of(spec: EvaluationSpec) -> list[Path]:
    """The files that an evaluation names beside the model: LoRAs and prompt files."""
    return [*(s.lora for s in spec.subjects if s.lora), *spec.prompts]


def ids_of(spec: EvaluationSpec) -> list[str]:
    """The names of the base and of every subject, in order; also of their folders."""
    loras = itertools.count(1)
    return [BASE, *(f"lora-{next(loras)}" if subject.lora else DELETION for subject in spec.subjects)]


def command_of(spec: EvaluationSpec) -> str:
    """The command that makes the evaluation again, beside the model and the LoRA files; no path but their names."""
    words = ["python", "-m", "training.cli", "evaluate", "--source", model_of(spec.source)]
    for subject in spec.subjects:
        words += ["--deletion"] if subject.lora is None else ["--lora", subject.lora.name]
    for subject in spec.subjects:
        words += [] if subject.lora is None else ["--strength", f"{subject.strength:g}"]
    words += ["--concept", spec.concept.phrase, "--precision", spec.source.precision]
    counts = {name: getattr(spec, name) for name in ("images", "images_per_other", "images_per_attack", "batch_size")}
    words += [word for name, count in counts.items() for word in (f"--{name.replace('_', '-')}", str(count))]
    words += [word for choice in spec.detectors for word in ("--detector", _named(choice))]
    words += [word for label in spec.labels for word in ("--label", label)]
    if spec.suites != USUAL:
        words += [word for suite in spec.suites or ("none",) for word in ("--suite", suite)]
    words += [word for path in spec.prompts for word in ("--prompts", path.name)]
    words += ["--prompts-limit", str(spec.prompts_limit)] if spec.prompts else []
    words += ["--distance", _named(spec.distance)] if spec.distance else []
    words += ["--reference", spec.reference.name] if spec.reference else []
    words += ["--seed", str(spec.seed)] if spec.seed else []
    words += ["--strengths", ",".join(f"{s:g}" for s in spec.strengths)] if spec.strengths else []
    words += [] if spec.heatmap else ["--no-heatmap"]
    words += ["--blur"] if spec.blur else []
    words += spec.white_box.arguments() if spec.white_box else []
    return shlex.join([*words, "--out", "DIR", "--report"])


def model_of(source: FluxSource) -> str:
    """What the base model is called: the name of its folder, or of its transformer's file."""
    return Path(source.folder or source.transformer).name


def _named(choice: str) -> str:
    """A detector or features as they were chosen, their folder by its name alone."""
    kind, colon, folder = choice.partition(":")
    return f"{kind}{colon}{Path(folder).name}"
