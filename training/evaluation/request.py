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
from .cases import require_measurable
from .fidelity import parse as parse_features
from .judges import MODEL, own_classifier
from .judges import parse as parse_detector
from .spec import EvaluationSpec, paths_of, read_files

KIND = "evaluation"  # tells it from a training in job.json
FOLDER = "evaluation"  # below the job's folder: what `evaluate` keeps


@dataclass(frozen=True)
class EvaluationRequest:
    """Everything an evaluation's job needs to know; `to_dict` and `from_dict` round-trip through JSON.

    name: what people call it. device: "auto", "cpu", "cuda", …. files: SHA-256 of the LoRAs and prompt files, so that a
    file with new content is a new evaluation.
    """

    spec: EvaluationSpec
    name: str
    device: str = "auto"
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: EvaluationSpec, name: str, device: str = "auto") -> EvaluationRequest:
        """With the files' SHA-256 as they are now. Raises ErasureError's subclasses for one that cannot be read."""
        return cls(spec, name, device, tuple(_readable(path, sha256_of) for path in paths_of(spec)))

    @property
    def source(self) -> Any:
        """The base model, as every job's request has one."""
        return self.spec.source

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        spec = self.spec.to_dict()
        source, concept = spec.pop("source"), spec.pop("concept")
        return {
            "kind": KIND,
            "source": source,
            "concept": concept,
            "order": spec,  # as job folders have called it from the first version on
            "name": self.name,
            "output_folder": "",
            "device": self.device,
            "files": list(self.files),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EvaluationRequest:
        """From `to_dict`'s result. Raises ErasureError's subclasses."""
        try:
            spec = EvaluationSpec.from_dict({**data["order"], "source": data["source"], "concept": data["concept"]})
            return cls(spec, validate_name(data["name"]), data["device"], tuple(data["files"]))
        except (KeyError, TypeError) as error:
            raise ConfigError("The evaluation's request is not complete: make it again.") from error

    def next_seed(self) -> EvaluationRequest:
        """The same with other noise in every picture."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, seed=self.spec.seed + 1))

    def validate(self) -> None:
        """Checks what can be checked without reading a model's weights. Raises ErasureError's subclasses."""
        validate_name(self.name)
        self.spec.validate()
        self.spec.concept.validate()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?", self.device):
            raise ConfigError(f'Unknown device "{self.device}": use auto, cpu, cuda, cuda:1, mps or xpu.')
        self.spec.source.validate()
        for subject in self.spec.subjects:
            if subject.lora:
                read_metadata(subject.lora)
        kinds = [parse_detector(choice)[0] for choice in self.spec.detectors]
        if self.spec.distance:
            kinds += [parse_features(self.spec.distance)[0]]
        if MODEL in kinds:
            folder = self.spec.source.folder
            classifier = own_classifier(Path(folder) if folder else None)
            if MODEL in self.spec.detectors:
                require_measurable(self.spec.concept, classifier)
        read_files(self.spec)


def _readable(path: Path, read: Callable[[Path], str]) -> str:
    try:
        return read(path)
    except OSError as error:
        raise ErasureError(f"{path.name} cannot be read ({error.strerror}): put it back or choose another.") from error
