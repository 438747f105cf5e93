"""What a model's text encoder makes of a concept, asked of its tokenizer alone: no weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..training.concepts import Concept, Vocabulary, require_span, vocabulary_of
from ..training.errors import SourceError
from ..training.models.source import FluxSource
from ..training.models.variants import variant_of


def t5_tokenizer(source: FluxSource) -> Any:
    """The tokenizer of a model's T5, each time a new one: it may not be used by two threads. Raises SourceError."""
    from transformers import AutoTokenizer

    folder = Path(source.tokenizer_2 or Path(source.folder) / "tokenizer_2")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"The tokenizer in {folder.name} cannot be read: put the model's files back.") from error


def vocabulary_of_source(source: FluxSource) -> Vocabulary:
    """The words a model's T5 tokenizer keeps apart. Raises SourceError."""
    return vocabulary_of(t5_tokenizer(source))


def check_phrase(concept: Concept, source: FluxSource) -> None:
    """Raises ConceptError where the model cannot read the phrase in the concept's prompt: unknown, or too far back."""
    require_span(t5_tokenizer(source), concept.prompt(), concept.phrase, variant_of(source).sequence_length)
