"""What every judge of pictures is: it finds something in a picture, and says whether that is what was asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from ...errors import ErasureError
from ..cases import Case, Content, Vocabulary
from ..classifier import NONE

if TYPE_CHECKING:
    import numpy as np

    from .clip import Clip

PER_IMAGE = "per image: pictures with at least one place of the classes, each counted once"
PER_DETECTION = "per detection: places of the classes, two in one picture counted twice"
TOP = "per image: pictures whose label with the highest score is the one that was asked for"
_ROUNDING = 1e-3  # how far outside 0..1 a decoder's rounding may take a value


@dataclass(frozen=True)
class Detection:
    """One place in a picture. box: x, y of the upper left corner, width, height, in pixels of the picture as given."""

    label: str
    score: float  # 0..1
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Finding:
    """What a judge finds in one picture, whatever was asked for; serves those that classify and those that find places.

    Args:
        scores: Every label of the judge → 0..1. Of a classifier its probabilities; of one that finds places the best
            score of each label's places, 0 where there is none.
        detections: The places; None of a classifier, which has none.
        error: Why the picture could not be judged (then there are no scores), "" where it was.
    """

    scores: Mapping[str, float]
    detections: tuple[Detection, ...] | None = None
    error: str = ""

    @classmethod
    def failed(cls, error: str) -> Finding:
        """Of a picture that could not be judged."""
        return cls({}, error=error)

    @cached_property
    def top(self) -> str:
        """The label with the highest score, the first of equals; "" where nothing is found or the judging failed."""
        best = max(self.scores, key=self.scores.__getitem__, default="")
        return best if best and self.scores[best] > 0 else ""


class Verdict(NamedTuple):
    """Whether a picture shows what its case asks for; seen: what it shows, in words; error: why it could not be judged,
    else ""."""

    shown: bool
    seen: str
    error: str = ""


class Judge(ABC):
    """Judges pictures of one evaluation; each kind says by itself what it can judge.

    Args:
        name: What it is, for a report.
        sha256: Of its weights.
        labels: All that it can find, each once.
        meanings: Word → the labels that mean it; words in any letters.
    """

    kind: ClassVar[str]
    threshold: ClassVar[float | None] = None
    counting: ClassVar[tuple[str, ...]] = (TOP,)  # how its figures count, in words
    groups: ClassVar[dict[str, tuple[str, ...]]] = {}  # labels that are counted together besides the concept
    vocabulary: Vocabulary | None = None  # of one that brings names of its own to choose among
    features: Callable[[Tensor], Tensor] | None = None  # [B, 3, H, W] → feature maps, for a perceptual distance
    clip: Clip | None = None  # the CLIP that it judges with, which can score captions too

    def __init__(
        self, name: str, sha256: str, labels: Sequence[str], meanings: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.name, self.sha256, self.labels = name, sha256, tuple(labels)
        self.meanings = {word.lower(): meant for word, meant in (meanings or {}).items()}

    @abstractmethod
    def detect(self, images: Tensor) -> list[Finding]:
        """One finding for each of RGB images fp32 [B, 3, H, W] in 0..1, in their order.

        A picture that cannot be judged has a finding with an error.

        Raises:
            ErasureError: Where `images` has another shape or type, which is not the fault of a picture.
        """

    def knows(self, word: str) -> bool:
        """Whether it can tell a picture of `word` from others."""
        return word.lower() in self.meanings

    def verdict(self, finding: Finding, expected: Content) -> Verdict:
        """What a finding says of the picture that was asked for."""
        if finding.error:
            return Verdict(False, "", finding.error)
        return Verdict(self.shows(finding, expected), self.seen(finding, expected))

    def shows(self, finding: Finding, expected: Content) -> bool:
        """Whether a picture that was judged shows what was asked for."""
        return finding.top in self.meanings[expected.word.lower()]

    def seen(self, finding: Finding, expected: Content) -> str:
        """What a picture that was judged shows, in words."""
        return finding.top or NONE

    def judge(self, images: Tensor, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts on pictures [B, 3, H, W], one for each case."""
        found = self.detect(images)
        return [self.verdict(finding, case.expected) for finding, case in zip(found, cases, strict=True)]

    def facts(self) -> dict[str, Any]:
        """What a reader must know of it, as JSON; no path."""
        return {
            "kind": self.kind,
            "name": self.name,
            "sha256": self.sha256,
            "threshold": self.threshold,
            "counting": list(self.counting),
        }


@dataclass(frozen=True)
class Count:
    """How often labels were found. Both ways of counting are in use in papers, and they differ.

    per_detection: places, two in one picture count twice; None of a classifier. per_image: pictures with at least one.
    images: those judged, without those that failed; failed: the positions of these in the list of findings → why.
    """

    per_detection: int | None
    per_image: int
    images: int
    failed: Mapping[int, str]


def count(findings: Sequence[Finding], labels: Iterable[str], threshold: float | None = None) -> Count:
    """Count pictures (and places) with one of `labels` at a score of at least `threshold`, 0..1.

    threshold None: where one of them is the picture's `top` label, as an accuracy counts; all places of `labels` then.
    Raises ErasureError where no finding has such a label, which would look like a perfect erasure.
    """
    sought = set(labels)
    judged = [finding for finding in findings if not finding.error]
    unknown = sought.difference(*(finding.scores for finding in judged)) if judged else set()
    if unknown:
        raise ErasureError(f"This detector has no label {', '.join(sorted(unknown))}: choose among its own labels.")
    places = None
    if all(finding.detections is not None for finding in judged):
        found = [place for finding in judged for place in finding.detections or () if place.label in sought]
        places = sum(threshold is None or place.score >= threshold for place in found)
    if threshold is None:
        pictures = sum(finding.top in sought for finding in judged)
    else:
        pictures = sum(any(finding.scores[label] >= threshold for label in sought) for finding in judged)
    failed = {number: finding.error for number, finding in enumerate(findings) if finding.error}
    return Count(places, pictures, len(judged), failed)


def each_picture(images: Tensor, detect: Callable[[Tensor], list[Finding]], chunk: int) -> list[Finding]:
    """What `detect` finds in each of [B, 3, H, W] in 0..1, asked for `chunk` pictures at a time; where a chunk fails
    its pictures are judged one by one, so that only those are lost that fail on their own.

    Raises:
        ErasureError: Where `images` is no stack of RGB pictures.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ErasureError(
            f"A detector takes RGB images as floating-point numbers [B, 3, H, W] in 0..1, not {images.dtype} "
            f"{list(images.shape)}."
        )
    findings = {number: Finding.failed(fault) for number, image in enumerate(images) if (fault := _fault(image))}

    def attempt(numbers: list[int]) -> None:
        try:
            found = detect(images[numbers].float().clamp(0, 1))
        except MemoryError:
            raise
        except Exception as problem:  # whatever a library raises: the other pictures shall still be judged
            if len(numbers) > 1:
                for number in numbers:
                    attempt([number])
            else:
                reason = str(problem) if isinstance(problem, ErasureError) else f"{type(problem).__name__}: {problem}"
                findings[numbers[0]] = Finding.failed(reason.strip())
        else:
            findings.update(zip(numbers, found, strict=True))

    sound = [number for number in range(len(images)) if number not in findings]
    for start in range(0, len(sound), chunk):
        attempt(sound[start : start + chunk])
    return [findings[number] for number in range(len(images))]


def _fault(image: Tensor) -> str:
    """Why [3, H, W] is no picture, "" where it is one."""
    if not image.numel():
        return f"The picture is empty: {image.shape[-1]}×{image.shape[-2]} pixels."
    if not image.isfinite().all():
        return "The picture holds values that are not numbers."
    low, high = image.min().item(), image.max().item()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        return f"The picture's values go from {low:.3g} to {high:.3g} instead of 0 to 1."
    return ""


def pixels(image: Tensor) -> np.ndarray:
    """[3, H, W] in 0..1 → uint8 [H, W, 3], as a PNG would hold it."""
    return image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


def classified(labels: Sequence[str], rows: Tensor) -> list[Finding]:
    """A classifier's findings from scores [B, labels] in 0..1."""
    return [
        Finding(dict(zip(labels, row, strict=True)))
        if all(map(math.isfinite, row))
        else Finding.failed("The model's scores are not numbers.")
        for row in rows.tolist()
    ]
