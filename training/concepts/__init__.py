"""What to erase: words (WordNet, a chat endpoint, by hand), kinds and templates, prompts, token spans, presets."""

from .concept import TEMPLATES, Concept, Kind, make_concept
from .endpoint import EndpointWords, endpoint_words
from .presets import Preset, presets
from .prompts import ErasePrompt, erase_prompts, preservation_prompts, shuffle, substitute, without
from .relevance import THRESHOLD, concept_key, concept_keys, relevance
from .spans import occurrences, require_span, span_mask, token_spans
from .wordnet import Sense, WordNetMissing, assemble_wordnet, download_wordnet, senses
from .words import Vocabulary, forms_of, irrelevant_words, misspelt, phrases_of, plural, synonyms_of, vocabulary_of

__all__ = [
    "TEMPLATES",
    "THRESHOLD",
    "Concept",
    "EndpointWords",
    "ErasePrompt",
    "Kind",
    "Preset",
    "Sense",
    "Vocabulary",
    "WordNetMissing",
    "assemble_wordnet",
    "concept_key",
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
    "preservation_prompts",
    "presets",
    "relevance",
    "require_span",
    "senses",
    "shuffle",
    "span_mask",
    "substitute",
    "synonyms_of",
    "token_spans",
    "vocabulary_of",
    "without",
]
