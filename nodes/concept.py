"""Erasure Concept: the word or phrase to erase, and the words around it, chosen by WordNet or by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from ..training.concepts import TEMPLATES, Concept, Vocabulary, make_concept, vocabulary_of
from ..training.concepts.concept import Kind
from ..training.flux.source import FluxSource
from .compat import io
from .types import CATEGORY, ConceptType, FluxSourceType

NO_WORDS = "-"


class ErasureConcept(io.ComfyNode):
    """Makes a Concept and shows every word that was chosen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_Concept",
            display_name="Erasure Concept",
            category=CATEGORY,
            description="What to erase. Words left empty are chosen from WordNet and shown here; yours replace them.",
            is_output_node=True,
            inputs=[
                io.String.Input("phrase", default="car", tooltip="The word or short phrase to erase."),
                io.Combo.Input(
                    "kind", options=list(get_args(Kind)), default="entity",
                    tooltip="entity: a thing or a person. abstraction: a style. relationship: how two things relate. "
                            "custom: anything, with a template of your own.",
                ),
                io.String.Input(
                    "template", default="", placeholder=TEMPLATES["entity"],
                    tooltip="A prompt with {} where the phrase goes. Empty: the usual one of this kind. Change it "
                            "where that reads wrong.",
                ),
                io.String.Input(
                    "synonyms", default="", multiline=True, placeholder="empty: automatic",
                    tooltip="Words that mean the same and are erased too, one per line or with commas. Empty: chosen "
                            "from WordNet. A single - : none.",
                ),
                io.String.Input(
                    "irrelevant", default="", multiline=True, placeholder="empty: automatic",
                    tooltip="Words that must stay as they are: unrelated ones first, then nearer ones, one per line or "
                            "with commas. Empty: chosen from WordNet.",
                ),
                io.Int.Input(
                    "word_seed", default=0, min=0, max=2**31 - 1,
                    tooltip="Another number chooses other irrelevant words.",
                ),
                FluxSourceType.Input(
                    "flux", optional=True,
                    tooltip="When connected, only words that this model's text encoder knows are chosen.",
                ),
            ],
            outputs=[ConceptType.Output("concept", display_name="concept")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        phrase: str,
        kind: Kind,
        template: str,
        synonyms: str,
        irrelevant: str,
        word_seed: int,
        flux: FluxSource | None = None,
    ) -> io.NodeOutput:
        concept = make_concept(
            phrase,
            kind,
            template,
            words_of(synonyms),
            words_of(irrelevant),
            word_seed,
            vocabulary=None if flux is None else vocabulary_of_source(flux),
        )
        return io.NodeOutput(concept, ui={"concept": [concept.to_dict()], "text": [summary(concept)]})


def words_of(text: str) -> list[str] | None:
    """Words from a text field, separated by lines or commas: None for an empty field (automatic), [] for "-"."""
    words = [" ".join(word.split()) for word in re.split(r"[,\n]", text)]
    words = [word for word in words if word]
    if not words:
        return None
    return [] if words == [NO_WORDS] else words


def vocabulary_of_source(source: FluxSource) -> Vocabulary:
    """The words a model's T5 tokenizer keeps apart."""
    from transformers import AutoTokenizer

    folder = source.tokenizer_2 or Path(source.folder) / "tokenizer_2"
    return vocabulary_of(AutoTokenizer.from_pretrained(folder, local_files_only=True))


def summary(concept: Concept) -> str:
    """What was chosen, for clients that show plain text."""
    return "\n".join(
        [
            f"Prompt: {concept.prompt()}",
            f"Synonyms: {', '.join(concept.synonyms) or 'none'}",
            f"Irrelevant words: {', '.join(concept.irrelevant) or 'none'}",
            f"Preservation prompts: {len(concept.preserve)}",
        ]
    )


NODES = [ErasureConcept]
