"""Any image classifier in transformers' layout as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...concepts import Concept
from ...errors import ConfigError, ErasureError, SourceError
from .base import Finding, Judge, classified, each_picture
from .pretrained import complete_model, loading, model_folder, processed, sha256_of_weights

_CHUNK = 32  # pictures that the network judges at once


class ImageClassifierJudge(Judge):
    """An image classifier whose labels are words, as they are or as one of several ("tabby, tabby cat").

    Scored as transformers' own image-classification pipeline does: softmax over labels, or a sigmoid of each where the
    model says that several may hold. A label that the model has twice (ImageNet has two kinds of "crane") carries its
    number the second time.

    Raises:
        SourceError: Where the folder holds no such model, or one that transformers could only complete at random.
    """

    kind = "classifier"

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        kind = "image classifier"
        folder = model_folder(folder, kind, "google/vit-base-patch16-224")
        with loading(folder, kind):
            self._model = complete_model(folder, AutoModelForImageClassification, device)
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = self._model.config
        if config.problem_type == "regression":
            raise SourceError(f"{folder.name} estimates a number and has no labels: choose an image classifier.")
        self._several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        labels: dict[str, None] = {}
        for number in range(config.num_labels):
            label = str(config.id2label[number])
            labels[f"{label} ({number})" if label in labels else label] = None
        meanings: dict[str, tuple[str, ...]] = {}
        for label in labels:
            for word in {label.lower(), *(part.strip().lower() for part in label.split(","))}:
                meanings[word] = (*meanings.get(word, ()), label)
        super().__init__(folder.name, sha256_of_weights(folder), list(labels), meanings)

    def name_concept(self, concept: Concept, labels: Sequence[str] = ()) -> None:
        """Makes the concept's phrase a word of this judge, in place of the words that its labels had.

        Args:
            labels: Those that mean the concept; none: those called like one of its names.

        Raises:
            ConfigError: For a label that the model does not have.
            ErasureError: Where none is given and none is called like the concept.
        """
        own = list(labels) or [label for name in concept.names() for label in self.meanings.get(name.lower(), ())]
        if unknown := [label for label in own if label not in self.labels]:
            raise ConfigError(f"{self.name} has no label {unknown[0]!r}: choose among its own labels.")
        if not own:
            raise ErasureError(f'{self.name} has no label "{concept.phrase}": name those that mean it, with --label.')
        others = {word: meant for word, meant in self.meanings.items() if not set(meant) & set(own)}
        self.meanings = {**others, concept.phrase.lower(): tuple(dict.fromkeys(own))}

    def detect(self, images: Tensor) -> list[Finding]:
        """See Judge; the picture is resized, cropped and normalised as the folder's preprocessor says."""

        @torch.no_grad()
        def classify(part: Tensor) -> list[Finding]:
            logits = self._model(pixel_values=processed(self._processor, part, self._model.device)).logits.float()
            return classified(self.labels, logits.sigmoid() if self._several else logits.softmax(-1))

        return each_picture(images, classify, _CHUNK)
