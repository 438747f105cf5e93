"""What to erase: a phrase, its kind and template, the words around it and the prompts that must stay as they are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import ConceptError
from . import wordnet
from .grammar import forms_of, takes_the
from .lexicon import relation_of
from .matching import occurrences
from .prompts import fill, preservation_prompts, slots_of
from .reading import read
from .words import (
    Synonyms,
    Vocabulary,
    candidates,
    common_words,
    irrelevant_words,
    mentions,
    once,
    related,
    relation_nouns,
    same,
    synonyms_for,
)

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
    synonyms: words that mean the same, other spellings first.
    irrelevant: words that do not, those with no relation first, then far, then mid.
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
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in data.items()}
        concept = cls(**values)
        concept.validate()
        return concept

    def prompt(self, word: str | None = None, subject: str = "cat", object: str | None = None) -> str:
        """The template with `word` (default: the phrase itself) in the concept's place.

        object: by default a dog for what people and animals do, else a house.
        """
        word = self.phrase if word is None else word
        if object is None:
            relation = relation_of(self.phrase) if self.kind == "relationship" else None
            object = "dog" if relation is not None and relation.subjects != "things" else "house"
        return fill(self.template, {"": word, "subject": subject, "object": object})

    def names(self) -> tuple[str, ...]:
        """The phrase and its synonyms."""
        return (self.phrase, *self.synonyms)

    def named_in(self, text: str) -> bool:
        """Whether `text` holds the phrase or a synonym, in singular or plural, or as another form of a verb."""
        return any(
            mentions(text, name) or any(occurrences(text, form) for form in forms_of(name)) for name in self.names()
        )

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
        fitted = dataclasses.replace(self, synonyms=keep, irrelevant=known)
        return dataclasses.replace(fitted, preserve=self.preserve or _preserve(fitted, vocabulary, seed))


def _preserve(concept: Concept, vocabulary: Vocabulary | None, seed: int, sense: int = 1) -> tuple[str, ...]:
    """Preservation prompts for a concept that has none: its irrelevant words and more of the built-in ones."""
    phrase, synonyms, irrelevant = concept.phrase, concept.synonyms, concept.irrelevant
    more: tuple[str, ...] = ()
    kind = "entity" if concept.kind == "custom" else concept.kind
    if wordnet.available():
        # at most 3 in 10 of the words the model may know, so that a measure on the others stays meaningful
        pool = candidates(kind, phrase, synonyms, vocabulary, sense)
        limit = min(PRESERVED_WORDS, max(len(irrelevant), int(0.3 * len(pool)) if kind == "entity" else len(pool)))
        more = irrelevant_words(phrase, seed, limit, kind=kind, synonyms=synonyms, vocabulary=vocabulary, sense=sense)
    words = list(dict.fromkeys([*irrelevant, *more]))[: max(len(irrelevant), PRESERVED_WORDS)]
    nouns = words if kind == "entity" else _nouns(concept, vocabulary, sense)
    prompts = preservation_prompts(words, concept.template, kind, nouns, PRESERVE, seed, vocabulary)
    return tuple(p for p in prompts if not concept.named_in(p))


def _nouns(concept: Concept, vocabulary: Vocabulary | None, sense: int) -> list[str]:
    """Concrete nouns that a prompt about a style or a relation may be about."""
    if concept.kind == "relationship" and (nouns := relation_nouns(concept.phrase, vocabulary)):
        return nouns
    pool = [w for w in common_words()["concrete"] if vocabulary is None or vocabulary(w)]
    return [w for w in pool if not related(w, concept.phrase, concept.synonyms, sense)][::3][:PRESERVED_WORDS]


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
    sense: int = 1,
) -> Concept:
    """A complete concept from a phrase; what is None is chosen (WordNet), what is given is kept as it is.

    `phrase` may hold several spellings, "Coca-Cola | Coke": the first is the concept's phrase, the others are the first
    of its synonyms. `vocabulary` says which words the model knows (see `words.vocabulary_of`); chosen words keep to it.
    `sense`: number of the phrase's meaning in `wordnet.senses`; by default the first that can be seen.
    Raises ConceptError; WordNetMissing where WordNet's data are missing and synonyms or irrelevant words are not given.
    """
    reading = read(phrase, kind)
    phrase, *spellings = reading.phrases or ("",)
    if template is None or not template.strip():
        template = TEMPLATES.get(kind, "{}")
        if kind == "entity" and reading.definite and not takes_the(phrase):
            template = "a photo of the {}"
    chosen = Concept(
        phrase,
        kind,
        template,
        once([*spellings, *(synonyms or ())]),
        tuple(irrelevant or ()),
        tuple(preserve or ()),
    )
    chosen.validate()
    if sense != 1:
        wordnet.sense_of(phrase, sense)  # raises where there is none, also when all words are given
    if synonyms is None:
        taken = synonyms_for(phrase, kind, vocabulary, sense).taken
        found = [w for w in taken if not any(same(w, i) for i in chosen.irrelevant)]
        chosen = dataclasses.replace(chosen, synonyms=once([*spellings, *found]))
    if irrelevant is None:
        words = irrelevant_words(phrase, seed, kind=kind, synonyms=chosen.synonyms, vocabulary=vocabulary, sense=sense)
        chosen = dataclasses.replace(chosen, irrelevant=words)
    _check_new(chosen)
    if preserve is None and chosen.irrelevant:
        chosen = dataclasses.replace(chosen, preserve=_preserve(chosen, vocabulary, seed, sense))
    chosen.validate()
    return chosen


@dataclass(frozen=True)
class Remarks:
    """What a user may want to change about the words of a concept. left_out: words that are synonyms to WordNet but may
    mean something else, each with the reason; hints: sentences about what may have been meant otherwise."""

    left_out: tuple[tuple[str, str], ...] = ()
    hints: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"left_out": [{"word": word, "reason": why} for word, why in self.left_out], "hints": list(self.hints)}


def remarks(concept: Concept, typed: str, vocabulary: Vocabulary | None = None, sense: int = 1) -> Remarks:
    """What to say beside a concept that `make_concept` has made of what was typed."""
    found = synonyms_for(concept.phrase, concept.kind, vocabulary, sense) if wordnet.available() else Synonyms()
    words = (*found.left_out, *((word, "") for word in found.taken))
    left_out = tuple((word, why) for word, why in words if not concept.named_in(word))
    return Remarks(left_out, read(typed, concept.kind).hints)


def _check_new(concept: Concept) -> None:
    """Raises ConceptError for what a job file of an earlier version may hold, but a new concept may not."""
    for name in concept.synonyms:
        if len(name.split()) > MAX_WORDS:
            raise ConceptError(f'The synonym "{name[:60]}…" has more than {MAX_WORDS} words: shorten it.')
    if not occurrences(concept.prompt(), concept.phrase):
        raise ConceptError(
            f'The prompt "{concept.prompt()}" does not contain the concept "{concept.phrase}" as words of its own: '
            "put a space around {} in the template."
        )
    for word in concept.irrelevant:
        if any(same(word, name) for name in concept.names()):
            raise ConceptError(f'"{word}" is the concept in singular or plural and cannot be an irrelevant word too.')
    for prompt in concept.preserve:
        if concept.named_in(prompt):
            raise ConceptError(f'The preservation prompt "{prompt}" contains the concept: take it out.')
