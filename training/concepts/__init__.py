"""What to erase: words (WordNet, a chat endpoint, by hand), kinds and templates, prompts, token spans, presets."""

from .concept import TEMPLATES, Concept, Kind, make_concept, remarks
from .endpoint import EndpointWords, endpoint_words
from .grammar import forms_of, plural
from .matching import occurrences
from .presets import Preset, presets
from .prompts import ErasePrompt, erase_prompts, shuffle, substitute, without
from .reading import phrases_of
from .relevance import THRESHOLD, concept_keys, relevance
from .spans import require_span, span_mask, token_spans
from .wordnet import WordNetMissing, download_wordnet, senses
from .words import Vocabulary, irrelevant_words, misspelt, relation_nouns, vocabulary_of

__all__ = [
    "TEMPLATES",
    "THRESHOLD",
    "Concept",
    "EndpointWords",
    "ErasePrompt",
    "Kind",
    "Preset",
    "Vocabulary",
    "WordNetMissing",
    "concept_keys",
    "download_wordnet",
    "endpoint_words",
    "erase_prompts",
    "forms_of",
    "irrelevant_words",
    "make_concept",
    "misspelt",
    "occurrences",
    "phrases_of",
    "plural",
    "presets",
    "relation_nouns",
    "relevance",
    "remarks",
    "require_span",
    "senses",
    "shuffle",
    "span_mask",
    "substitute",
    "token_spans",
    "vocabulary_of",
    "without",
]
