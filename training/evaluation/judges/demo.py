"""The demo model's own classifier as a judge: nouns, styles and relations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import ErasureError
from ...lora.files import sha256_of
from ..cases import CONVERSE, Content
from ..classifier import NONE, DemoClassifier
from .base import Finding, Judge, each_picture


@dataclass(frozen=True)
class Scene(Finding):
    """A picture's style, and how the first of two nouns lies to the second; relation: "" for a single object."""

    style: str = ""
    relation: tuple[str, str, str] = ("", "", "")


class DemoJudge(Judge):
    """Judges pictures of 128×128 pixels; the labels are the nouns of the whole picture and "none"."""

    kind = "model"
    SIZE = 128  # the classifier takes others without complaint, and is wrong about them

    def __init__(self, classifier: DemoClassifier, name: str = "demo classifier", sha256: str = "") -> None:
        words = (*classifier.nouns, *classifier.styles, *classifier.relations)
        super().__init__(name, sha256, (*classifier.nouns, NONE), {word: (word,) for word in words})
        self.vocabulary, self._classifier = classifier, classifier
        self.features = classifier.features

    @classmethod
    def of_model(cls, classifier: DemoClassifier, folder: Path) -> DemoJudge:
        """With the name and the hash of the weights in a model's folder."""
        return cls(classifier, f"{folder.name} classifier", sha256_of(folder / "classifier" / "model.safetensors"))

    def detect(self, images: Tensor) -> list[Finding]:
        """See Judge; a picture of another size is one that cannot be judged."""

        def classify(part: Tensor) -> list[Finding]:
            if part.shape[-2:] != (self.SIZE, self.SIZE):
                raise ErasureError(f"The demo classifier judges pictures of {self.SIZE}×{self.SIZE} pixels only.")
            found = self._classifier.classify(part)
            rows = zip(found.probabilities.tolist(), found.styles, found.relations, strict=True)
            return [Scene(dict(zip(self.labels, row, strict=True)), style=s, relation=r) for row, s, r in rows]

        return each_picture(images, classify, 64)

    def shows(self, finding: Finding, expected: Content) -> bool:
        """See Judge: every part of the content that is given."""
        assert isinstance(finding, Scene), "`detect` makes no other"
        first, relation, second = finding.relation
        if expected.style and finding.style != expected.style:
            return False
        if expected.among:
            return set(expected.nouns) <= {first, second}
        if expected.relation in CONVERSE:
            upper, lower = expected.nouns if expected.relation == "above" else expected.nouns[::-1]
            return finding.relation == (upper, "above", lower)
        if expected.relation:
            return relation == expected.relation and {first, second} == set(expected.nouns)
        if len(expected.nouns) == 2:
            return {first, second} == set(expected.nouns)
        return not expected.nouns or finding.top == expected.nouns[0]

    def seen(self, finding: Finding, expected: Content) -> str:
        """See Judge: in the words of what was asked for."""
        assert isinstance(finding, Scene), "`detect` makes no other"
        first, relation, second = finding.relation
        if expected.among or len(expected.nouns) == 2:
            return f"{first} {relation} {second}" if relation else finding.top
        return f"{finding.top} in the style {finding.style}" if expected.style else finding.top
