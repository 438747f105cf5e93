"""An evaluation as a background job is asked for it: plain data that a job folder keeps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ErasureError
from ..lora.files import sha256_of
from ..lora.format import read_metadata
from ..lora.names import validate_name
from .fidelity import parse as parse_features
from .judges import MODEL, own_classifier
from .judges import parse as parse_detector
from .order import Order
from .probes import require_measurable
from .wanted import paths_of, read_files

KIND = "evaluation"  # tells it from a training in job.json
FOLDER = "evaluation"  # below the job's folder: what `evaluate` keeps


@dataclass(frozen=True)
class EvaluationRequest:
    """Everything an evaluation's job needs to know; `to_dict` and `from_dict` round-trip through JSON.

    name: what people call it. device: "auto", "cpu", "cuda", …. files: SHA-256 of the LoRAs and prompt files, so that a
    file with new content is a new evaluation.
    """

    order: Order
    name: str
    device: str = "auto"
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, order: Order, name: str, device: str = "auto") -> EvaluationRequest:
        """With the files' SHA-256 as they are now. Raises ErasureError's subclasses for one that cannot be read."""
        return cls(order, name, device, tuple(_readable(path, sha256_of) for path in paths_of(order)))

    @property
    def source(self) -> Any:
        """The base model, as every job's request has one."""
        return self.order.source

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        order = self.order.to_dict()
        source, concept = order.pop("source"), order.pop("concept")
        return {
            "kind": KIND,
            "source": source,
            "concept": concept,
            "order": order,
            "name": self.name,
            "output_folder": "",
            "device": self.device,
            "files": list(self.files),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EvaluationRequest:
        """From `to_dict`'s result. Raises ErasureError's subclasses."""
        try:
            order = {**data["order"], "source": data["source"], "concept": data["concept"]}
            return cls(Order.from_dict(order), validate_name(data["name"]), data["device"], tuple(data["files"]))
        except (KeyError, TypeError) as error:
            raise ConfigError("The evaluation's request is not complete: make it again.") from error

    def next_seed(self) -> EvaluationRequest:
        """The same with other noise in every picture."""
        return dataclasses.replace(self, order=dataclasses.replace(self.order, seed=self.order.seed + 1))

    def validate(self) -> None:
        """Checks what can be checked without reading a model's weights. Raises ErasureError's subclasses."""
        validate_name(self.name)
        self.order.validate()
        self.order.concept.validate()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?", self.device):
            raise ConfigError(f'Unknown device "{self.device}": use auto, cpu, cuda, cuda:1, mps or xpu.')
        self.order.source.validate()
        for subject in self.order.subjects:
            if subject.lora:
                read_metadata(subject.lora)
        kinds = [parse_detector(choice)[0] for choice in self.order.detectors]
        if self.order.distance:
            kinds += [parse_features(self.order.distance)[0]]
        if MODEL in kinds:
            folder = self.order.source.folder
            classifier = own_classifier(Path(folder) if folder else None)
            if MODEL in self.order.detectors:
                require_measurable(self.order.concept, classifier)
        read_files(self.order)


def _readable(path: Path, read: Callable[[Path], str]) -> str:
    try:
        return read(path)
    except OSError as error:
        raise ErasureError(f"{path.name} cannot be read ({error.strerror}): put it back or choose another.") from error
