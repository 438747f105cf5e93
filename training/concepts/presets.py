"""Concepts to choose from: thirty everyday ones, ten of each kind, and famous artists. The data are presets.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import ConceptError
from .concept import Concept, Kind
from .words import phrases_of


@dataclass(frozen=True)
class Preset:
    """What a user may choose: a phrase as `make_concept` takes it, its kind and template, and the list it is in."""

    group: str
    kind: Kind
    phrase: str
    template: str

    def to_dict(self) -> dict[str, str]:
        """As JSON can hold it."""
        return asdict(self)


@lru_cache(maxsize=1)
def presets() -> tuple[Preset, ...]:
    """All presets in the file's order. They are of our own choice, not the paper's list. Raises ConceptError."""
    text = (Path(__file__).parent / "presets.json").read_text(encoding="utf-8")
    try:
        found = tuple(Preset(**entry) for entry in json.loads(text))
    except (ValueError, TypeError) as error:
        raise ConceptError("The file presets.json is damaged: install the pack again.") from error
    for preset in found:
        phrase, *spellings = phrases_of(preset.phrase, preset.kind)
        Concept(phrase, preset.kind, preset.template, tuple(spellings)).validate()
    return found
