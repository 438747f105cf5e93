"""Erasure Concept and Preset Concept: what to erase, and the words around it. Words Endpoint: who else may choose them.

Words come from WordNet, from a language model behind a chat endpoint, or from the user's own hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from ..training.concepts import (
    TEMPLATES,
    Concept,
    EndpointWords,
    Preset,
    Vocabulary,
    endpoint_words,
    make_concept,
    phrases_of,
    presets,
    remarks,
)
from ..training.concepts.concept import Kind
from ..training.concepts.endpoint import API_HOST, API_KEY, MAX_EACH
from ..training.concepts.words import same
from ..training.errors import ConceptError
from ..training.models.source import FluxSource
from . import service
from .compat import io
from .text import check_phrase, vocabulary_of_source
from .types import CATEGORY, ConceptType, EndpointType, FluxSourceType

NO_WORDS = "-"


@dataclass(frozen=True)
class Endpoint:
    """A chat API that chooses words, as `training.concepts.endpoint_words` takes it. It holds no key."""

    base_url: str
    model: str
    each: int = 1
    timeout: float = 60

    def ask(self, phrase: str, kind: Kind) -> EndpointWords:
        """The endpoint's words, or those it gave to the same question before. Raises ConceptError."""
        # not trusted: the address may stand in a workflow that somebody else has made
        return endpoint_words(phrase, kind, **asdict(self), cache=service.words_folder(), trusted=False)


def seed_input() -> io.Input:
    return io.Int.Input(
        "word_seed", default=0, min=0, max=2**31 - 1, tooltip="Another number chooses other irrelevant words."
    )


def flux_input() -> io.Input:
    return FluxSourceType.Input(
        "flux", optional=True,
        tooltip="When connected, only words that this model's text encoder knows are chosen, and a phrase that it "
                "cannot read is refused.",
    )  # fmt: skip


class ErasureConcept(io.ComfyNode):
    """Makes a Concept; its panel shows every word that is chosen, before the run too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_Concept",
            display_name="Erasure Concept",
            category=CATEGORY,
            description="What to erase. Words left empty are chosen and shown here as you type; yours replace them.",
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
                    "synonyms", default="", multiline=True, placeholder="Empty: automatic. A single - : none.",
                    tooltip="Words that mean the same and are erased too, one per line or with commas. Empty: chosen "
                            "automatically. A single - : none.",
                ),
                io.String.Input(
                    "irrelevant", default="", multiline=True, placeholder="Empty: automatic.",
                    tooltip="Words that must stay as they are: unrelated ones first, then nearer ones, one per line or "
                            "with commas. Empty: chosen automatically.",
                ),
                seed_input(),
                flux_input(),
                EndpointType.Input(
                    "endpoint", optional=True,
                    tooltip="From Words Endpoint. When connected, a language model chooses the words left empty, "
                            "instead of WordNet.",
                ),
                io.Int.Input(
                    "sense", optional=True, default=1, min=1, max=1000,
                    tooltip="Which of the phrase's meanings in WordNet is meant; the panel lists them. Change it where "
                            "the synonyms are those of another thing.",
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
        endpoint: Endpoint | None = None,
        sense: int = 1,
    ) -> io.NodeOutput:
        given = words_of(synonyms), words_of(irrelevant)
        return output(phrase, kind, template, given, word_seed, flux, endpoint, sense)


class PresetConcept(io.ComfyNode):
    """Makes a Concept of a list's entry, and shows its words as Erasure Concept does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        labels = list(labelled_presets())
        return io.Schema(
            node_id="EraseAnything_Preset",
            display_name="Preset Concept",
            category=CATEGORY,
            description="A concept from a list: everyday things, styles and relations, artists, brands, characters, "
            "and what safety teams erase.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "preset", options=labels, default=labels[0],
                    tooltip="The concept to erase. Take Erasure Concept for one that is not here, or to choose its "
                            "words yourself.",
                ),
                seed_input(),
                flux_input(),
            ],
            outputs=[ConceptType.Output("concept", display_name="concept")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, preset: str = "") -> bool:
        """Nothing is refused before the node runs: see ChoosesLora."""
        return True

    @classmethod
    def execute(cls, preset: str, word_seed: int, flux: FluxSource | None = None) -> io.NodeOutput:
        chosen = labelled_presets().get(preset)
        if chosen is None:
            raise ConceptError(f"There is no preset {preset[:60]!r}: refresh the list, choose another.")
        return output(chosen.phrase, chosen.kind, chosen.template, (None, None), word_seed, flux)


class WordsEndpoint(io.ComfyNode):
    """Names a chat API; nothing is asked yet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_WordsEndpoint",
            display_name="Words Endpoint",
            category=CATEGORY,
            description="A language model that chooses a concept's words, behind any OpenAI-compatible chat API. Its "
            f"key is read from the environment variable {API_KEY} alone.",
            inputs=[
                io.String.Input(
                    "base_url", default="http://localhost:11434/v1",
                    tooltip=f"What comes before /chat/completions. A key is sent only to the host that {API_HOST} "
                            "names.",
                ),
                io.String.Input("model", default="", tooltip="The model's name there, for example llama3.2."),
                io.Int.Input(
                    "each", default=1, min=1, max=MAX_EACH,
                    tooltip="Irrelevant words of each distance: no relation, far, mid. More where other things "
                            "change too.",
                ),
                io.Float.Input(
                    "timeout", default=60.0, min=1.0, max=600.0, step=1.0,
                    tooltip="Seconds that an answer may take. More for a slow model.",
                ),
            ],
            outputs=[EndpointType.Output("endpoint", display_name="endpoint")],
        )  # fmt: skip

    @classmethod
    def execute(cls, base_url: str, model: str, each: int, timeout: float) -> io.NodeOutput:
        return io.NodeOutput(Endpoint(base_url, model, each, timeout))


def output(
    phrase: str,
    kind: Kind,
    template: str,
    given: tuple[list[str] | None, list[str] | None],
    word_seed: int,
    flux: FluxSource | None,
    endpoint: Endpoint | None = None,
    sense: int = 1,
) -> io.NodeOutput:
    """A concept as a node puts it out and its panel shows it. given: synonyms and irrelevant words, None to be chosen.

    Raises ConceptError, SourceError.
    """
    vocabulary = None if flux is None else vocabulary_of_source(flux)
    synonyms, irrelevant = given
    if endpoint is not None and None in given and phrases_of(phrase, kind):
        answer = endpoint.ask(" | ".join([phrase, *(synonyms or ())]), kind)
        known = [w for w in answer.irrelevant if vocabulary is None or vocabulary(w)]
        if synonyms is None:
            usable = [w for w in answer.synonyms if vocabulary is None or vocabulary(w)]
            synonyms = [w for w in usable if not any(same(w, other) for other in irrelevant or ())]
        if irrelevant is None:
            irrelevant = known or None  # where the model knows none of them, WordNet must do
    concept = make_concept(phrase, kind, template, synonyms, irrelevant, word_seed, vocabulary=vocabulary, sense=sense)
    if flux is not None:
        check_phrase(concept, flux)
    found = remarks_on(concept, phrase, vocabulary, sense)
    text = summary(concept, found["hints"])
    return io.NodeOutput(concept, ui={"concept": [concept.to_dict()], "remarks": [found], "text": [text]})


def remarks_on(concept: Concept, typed: str, vocabulary: Vocabulary | None = None, sense: int = 1) -> dict[str, Any]:
    """What the panel shows beside a concept's own fields: `prompt` (an example), `left_out`, `hints` (see `Remarks`).

    typed: the phrase as it was written.
    """
    return {"prompt": concept.prompt(), **remarks(concept, typed, vocabulary, sense).to_dict()}


def words_of(text: str) -> list[str] | None:
    """Words from a text field, separated by lines or commas: None for an empty field (automatic), [] for "-"."""
    words = [" ".join(word.split()) for word in re.split(r"[,\n]", text)]
    words = [word for word in words if word]
    if not words:
        return None
    return [] if words == [NO_WORDS] else words


def summary(concept: Concept, hints: Sequence[str] = ()) -> str:
    """What was chosen, for clients that show plain text."""
    return "\n".join(
        [
            *hints,
            f"Prompt: {concept.prompt()}",
            f"Synonyms: {', '.join(concept.synonyms) or 'none'}",
            f"Irrelevant words: {', '.join(concept.irrelevant) or 'none'}",
            f"Preservation prompts: {len(concept.preserve)}",
        ]
    )


def labelled_presets() -> dict[str, Preset]:
    """The presets by their label: the list's name and the phrase's first spelling."""
    return {f"{preset.group} / {phrases_of(preset.phrase, preset.kind)[0]}": preset for preset in presets()}


NODES = [ErasureConcept, PresetConcept, WordsEndpoint]
