"""What to erase: a phrase, its kind and template, the words around it and the prompts that must stay as they are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import ConceptError
from . import wordnet
from .prompts import fill, preservation_prompts, slots_of
from .spans import occurrences
from .words import Vocabulary, candidates, common_words, irrelevant_words, related, synonyms_of

Kind = Literal["entity", "abstraction", "relationship", "custom"]

TEMPLATES: dict[str, str] = {
    "entity": "a photo of a {}",
    "abstraction": "a {subject} in the style of {}",
    "relationship": "a {subject} {} a {object}",
    "custom": "{}",
}

MAX_WORDS = 12  # a longer phrase is a prompt, not a concept
IRRELEVANT = 3  # one word of each distance, as the paper has
PRESERVED_WORDS = 24  # words that preservation prompts are made of, the irrelevant ones among them
PRESERVE = 64  # preservation prompts


@dataclass(frozen=True)
class Concept:
    """A concept to be erased. Plain data; `to_dict` and `from_dict` round-trip through JSON.

    template: a prompt with {} where the phrase goes; {subject} and {object} stand for unrelated nouns.
    synonyms: words that mean the same. irrelevant: words that do not, those with no relation first, then far, then mid.
    preserve: prompts without the concept whose images must not change; empty: made when training starts.
    """

    phrase: str
    kind: Kind = "entity"
    template: str = TEMPLATES["entity"]
    synonyms: tuple[str, ...] = ()
    irrelevant: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Concept:
        """From `to_dict`'s result, validated. Raises ConceptError."""
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or not isinstance(data.get("phrase"), str) or set(data) - names:
            raise ConceptError(f"A concept needs a phrase and may have {', '.join(sorted(names - {'phrase'}))}.")
        lists = ("synonyms", "irrelevant", "preserve")
        if any(not isinstance(data.get(k, []), (list, tuple)) for k in lists):
            raise ConceptError("A concept's synonyms, irrelevant words and preservation prompts are lists of texts.")
        concept = cls(**{k: tuple(v) if k in lists else v for k, v in data.items()})
        concept.validate()
        return concept

    def prompt(self, word: str | None = None, subject: str = "cat", object: str = "house") -> str:
        """The template with `word` (default: the phrase itself) in the concept's place."""
        word = self.phrase if word is None else word
        return fill(self.template, {"": word, "subject": subject, "object": object})

    def names(self) -> tuple[str, ...]:
        """The phrase and its synonyms."""
        return (self.phrase, *self.synonyms)

    def validate(self) -> None:
        """Raises ConceptError with the first thing that is wrong."""
        every = (*self.names(), *self.irrelevant, *self.preserve)
        if any(not isinstance(text, str) for text in (*every, self.template)):
            raise ConceptError("A concept's words and prompts must be texts.")
        if not self.phrase.strip():
            raise ConceptError("The concept is empty: write the word or phrase to erase.")
        if len(self.phrase.split()) > MAX_WORDS:
            raise ConceptError(f"The concept has more than {MAX_WORDS} words: name it in a short phrase.")
        if not any(c.isalnum() for c in self.phrase):
            raise ConceptError(f'The concept "{self.phrase}" has no letter in it: write the word or phrase to erase.')
        if re.search(r"[{}]", "".join(every)):
            raise ConceptError("Words and preservation prompts may not contain { or }.")
        if self.kind not in get_args(Kind):
            raise ConceptError(f'Unknown kind "{self.kind}": choose one of {", ".join(get_args(Kind))}.')
        if self.template.count("{}") != 1 or set(slots_of(self.template)) - {"", "subject", "object"}:
            raise ConceptError(
                f'The template "{self.template}" must have {{}} once, where the concept goes (and may have '
                "{subject} and {object})."
            )
        if re.search(r"[{}]", re.sub(r"\{\w*\}", "", self.template)):
            raise ConceptError(f'The template "{self.template}" has a brace that is not closed: only {{}} is replaced.')
        for word in (*self.synonyms, *self.irrelevant):
            if not word.strip():
                raise ConceptError("There is an empty word among the synonyms or irrelevant words: take it out.")
        for word in self.irrelevant:
            if word.lower() in {name.lower() for name in self.names()}:
                raise ConceptError(f'"{word}" is the concept or a synonym and cannot be an irrelevant word too.')
        for prompt in self.preserve:
            if any(occurrences(prompt, name) for name in self.names()):
                raise ConceptError(f'The preservation prompt "{prompt}" contains the concept: take it out.')

    def fitted(self, vocabulary: Vocabulary | None, seed: int = 0) -> Concept:
        """This concept with what a model's text encoder does not know left out and what is missing filled in.

        Synonyms and irrelevant words that `vocabulary` does not know are dropped; irrelevant words and preservation
        prompts that were not given are chosen. Raises ConceptError (WordNetMissing where WordNet would be needed).
        """
        if vocabulary is not None:
            keep = tuple(w for w in self.synonyms if vocabulary(w))
            known = tuple(w for w in self.irrelevant if vocabulary(w))
        else:
            keep, known = self.synonyms, self.irrelevant
        if not known:
            known = irrelevant_words(
                self.phrase, seed, IRRELEVANT, kind=self.kind, synonyms=keep, vocabulary=vocabulary
            )
        if not known:
            raise ConceptError(
                "No irrelevant words could be chosen that this model's text encoder knows: give some by hand."
            )
        preserve = self.preserve or _preserve(self, keep, known, vocabulary, seed)
        return dataclasses.replace(self, synonyms=keep, irrelevant=known, preserve=preserve)


def _preserve(
    concept: Concept, synonyms: Sequence[str], irrelevant: Sequence[str], vocabulary: Vocabulary | None, seed: int
) -> tuple[str, ...]:
    """Preservation prompts for a concept that has none: its irrelevant words and more of the built-in ones."""
    names = (concept.phrase, *synonyms)
    more: tuple[str, ...] = ()
    kind = "entity" if concept.kind == "custom" else concept.kind
    if wordnet.available():
        # at most 3 in 10 of the words the model may know, so that a measure on the others stays meaningful
        pool = candidates(kind, concept.phrase, synonyms, vocabulary)
        limit = min(PRESERVED_WORDS, max(len(irrelevant), int(0.3 * len(pool)) if kind == "entity" else len(pool)))
        more = irrelevant_words(concept.phrase, seed, limit, kind=kind, synonyms=synonyms, vocabulary=vocabulary)
    words = list(dict.fromkeys([*irrelevant, *more]))[: max(len(irrelevant), PRESERVED_WORDS)]
    nouns = words if kind == "entity" else _nouns(names, vocabulary)
    prompts = preservation_prompts(words, concept.template, kind, nouns, PRESERVE, seed, vocabulary)
    return tuple(p for p in prompts if not any(occurrences(p, name) for name in names))


def _nouns(names: Sequence[str], vocabulary: Vocabulary | None) -> list[str]:
    """Concrete nouns that a prompt about a style or a relation may be about."""
    pool = [w for w in common_words()["concrete"] if vocabulary is None or vocabulary(w)]
    return [w for w in pool if not related(w, names[0], names[1:])][::3][:PRESERVED_WORDS]


def make_concept(
    phrase: str,
    kind: Kind = "entity",
    template: str | None = None,
    synonyms: Sequence[str] | None = None,
    irrelevant: Sequence[str] | None = None,
    seed: int = 0,
    *,
    preserve: Sequence[str] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Concept:
    """A complete concept from a phrase; what is None is chosen (WordNet), what is given is kept as it is.

    `vocabulary` says which words the model knows (see `words.vocabulary_of`); chosen words keep to it.
    Raises ConceptError; WordNetMissing where WordNet's data are missing and synonyms or irrelevant words are not given.
    """
    phrase = " ".join(phrase.split())
    if kind in ("entity", "custom"):
        phrase = re.sub(r"^(a|an)\s+(?=\w)", "", phrase, flags=re.IGNORECASE)
    chosen = Concept(
        phrase,
        kind,
        TEMPLATES.get(kind, "{}") if template is None or not template.strip() else template,
        tuple(synonyms or ()),
        tuple(irrelevant or ()),
        tuple(preserve or ()),
    )
    chosen.validate()
    if synonyms is None:
        chosen = dataclasses.replace(chosen, synonyms=synonyms_of(phrase, vocabulary))
        chosen = dataclasses.replace(
            chosen,
            synonyms=tuple(w for w in chosen.synonyms if w.lower() not in {i.lower() for i in chosen.irrelevant}),
        )
    if irrelevant is None:
        words = irrelevant_words(phrase, seed, kind=kind, synonyms=chosen.synonyms, vocabulary=vocabulary)
        chosen = dataclasses.replace(chosen, irrelevant=words)
    if preserve is None and chosen.irrelevant:
        prompts = _preserve(chosen, chosen.synonyms, chosen.irrelevant, vocabulary, seed)
        chosen = dataclasses.replace(chosen, preserve=prompts)
    chosen.validate()
    return chosen
