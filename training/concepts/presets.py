"""Concepts to choose from: everyday ones, artists, brands, characters and what safety teams erase (presets.json)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from ..errors import ConceptError
from .concept import Concept, Kind
from .lexicon import preset_entries
from .reading import phrases_of


@dataclass(frozen=True)
class Preset:
    """What a user may choose: a phrase as `make_concept` takes it, its kind and template, the list it is in, and its
    synonyms, checked by hand."""

    group: str
    kind: Kind
    phrase: str
    template: str
    synonyms: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "synonyms": list(self.synonyms)}


@lru_cache(maxsize=1)
def presets() -> tuple[Preset, ...]:
    """All presets in the file's order. They are of our own choice, not the paper's list. Raises ConceptError."""
    try:
        found = tuple(Preset(**{**entry, "synonyms": tuple(entry.get("synonyms", ()))}) for entry in preset_entries())
    except TypeError as error:
        raise ConceptError("The file presets.json is damaged: install the pack again.") from error
    for preset in found:
        phrase, *spellings = phrases_of(preset.phrase, preset.kind)
        Concept(phrase, preset.kind, preset.template, (*spellings, *preset.synonyms)).validate()
    return found
