"""What a training is asked for, as plain data: a job folder with this in it can be run again. See `resolve`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from .concepts import Concept
from .errors import ConfigError
from .lora.names import validate_name
from .models.source import QUANTISED, FluxSource
from .settings import ErasureConfig


@dataclass(frozen=True)
class ErasureRequest:
    """Everything a training needs to know: a job folder with this in it can be run again.

    name: file stem of the LoRA. output_folder: where `name`.safetensors is written. device: "auto", "cpu", "cuda", ….
    """

    source: FluxSource
    concept: Concept
    config: ErasureConfig
    name: str
    output_folder: str
    device: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "source": self.source.to_dict(),
            "concept": self.concept.to_dict(),
            "config": self.config.to_dict(),
            "name": self.name,
            "output_folder": self.output_folder,
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErasureRequest:
        """From `to_dict`'s result; each part is validated. Raises ErasureError's subclasses."""
        try:
            request = cls(
                FluxSource.from_dict(data["source"]),
                Concept.from_dict(data["concept"]),
                ErasureConfig.from_dict(data["config"]),
                data["name"],
                data["output_folder"],
                data.get("device", "auto"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError("The training request is not complete: make it again.") from error
        validate_name(request.name)
        return request

    def validate(self) -> None:
        """Checks every part, the model's files among them. Raises ErasureError's subclasses."""
        validate_name(self.name)
        self.concept.validate()
        self.config.validate()
        if not self.output_folder or not os.path.isabs(self.output_folder):
            raise ConfigError("The LoRA's output folder must be an absolute path.")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?", self.device):
            raise ConfigError(f'Unknown device "{self.device}": use auto, cpu, cuda, cuda:1, mps or xpu.')
        if self.config.compile and self.source.precision in QUANTISED:
            raise ConfigError(
                f"The setting compile does not work with {self.source.precision} weights: choose bf16 as Load Flux's "
                "precision, or switch compile off."
            )
        self.source.validate()
