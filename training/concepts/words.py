"""Words around a concept: its synonyms, and irrelevant words at three distances (no relation, far, mid)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from . import wordnet
from .grammar import is_name, plural, same_noun, singular
from .lexicon import (
    category_of,
    checked_synonyms,
    entry_of,
    folded,
    names_beside,
    names_of,
    relation_of,
    relations,
    safety_concept,
    spellings_of,
)
from .matching import contains, plain

Vocabulary = Callable[[str], bool]  # says whether the model's text encoder knows a word or phrase

CLOSED_VOCABULARY = 5000  # a tokenizer with fewer entries knows whole words only: pieces of a word mean nothing to it

# Styles and relations that general prompts use: what an abstraction or a relationship is compared with.
STYLES = (
    "watercolor",
    "oil painting",
    "pencil sketch",
    "pixel art",
    "comic book",
    "woodcut",
    "stained glass",
    "charcoal",
    "impressionism",
    "cubism",
    "pop art",
    "art nouveau",
    "graffiti",
    "origami",
    "mosaic",
    "collage",
    "engraving",
)
RELATIONS = (
    "next to",
    "above",
    "below",
    "behind",
    "in front of",
    "on top of",
    "under",
    "inside",
    "far from",
    "looking at",
    "holding",
    "carrying",
    "chasing",
    "leaning on",
    "sitting on",
    "standing near",
)
_OPPOSITES = (("above", "below"), ("on top of", "under"), ("in front of", "behind"), ("next to", "far from"))
OPPOSITES = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}


class Tokenizer(Protocol):
    """What is needed of a tokenizer of transformers."""

    unk_token_id: int | None

    def __len__(self) -> int: ...

    def __call__(self, *args: Any, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...


@dataclass(frozen=True)
class TokenizerVocabulary:
    """Says which words a text encoder knows, by its tokenizer.

    A word that tokenises to unknowns is not known. A large tokenizer (the real T5's) spells words in pieces that it was
    trained on; a small `closed` one (the demo model's, fewer than 5,000 entries) knows a word only as one token.
    """

    tokenizer: Tokenizer

    @property
    def closed(self) -> bool:
        return len(self.tokenizer) < CLOSED_VOCABULARY

    def __call__(self, phrase: str) -> bool:
        words = phrase.split()
        for word in words:
            ids = list(self.tokenizer(word, add_special_tokens=False).input_ids)
            if not ids or self.tokenizer.unk_token_id in ids or (self.closed and len(ids) > 1):
                return False
        return bool(words)


def vocabulary_of(tokenizer: Tokenizer) -> TokenizerVocabulary:
    """The words that a tokenizer's text encoder knows."""
    return TokenizerVocabulary(tokenizer)


@lru_cache(maxsize=1)
def common_words() -> dict[str, tuple[str, ...]]:
    """The built-in list of common words: {"concrete": (…), "abstract": (…)}, in the file's order."""
    text = (Path(__file__).parent / "common_words.txt").read_text(encoding="utf-8")
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    _, *parts = re.split(r"^\[(\w+)\]$", text, flags=re.M)
    return {
        name: tuple(w.strip() for w in body.replace("\n", " ").split(",") if w.strip())
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def once(words: Iterable[str]) -> tuple[str, ...]:
    """`words` in their order, each once whatever its capitals."""
    found: dict[str, str] = {}
    for word in words:
        found.setdefault(word.lower(), word)
    return tuple(found.values())


@dataclass(frozen=True)
class Synonyms:
    """Words that mean a concept. taken: those that are erased with it unasked; left_out: other words of WordNet, each
    with the reason ("general", "ambiguous", "wrong", "narrower"), for the user to take in or not."""

    taken: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=1)
def _judged() -> dict[str, dict[str, Collection[str]]]:
    """Words judged by hand (synonyms.json), by the folded phrase. right: synonyms that WordNet lacks or has as
    ambiguous; wrong: those that it has, also by its counts, and that a person would not accept, either way round."""
    data = json.loads((Path(__file__).parent / "synonyms.json").read_text(encoding="utf-8"))
    return {
        "right": {folded(phrase): tuple(words) for phrase, words in data["right"].items()},
        "wrong": {folded(phrase): frozenset(map(folded, words)) for phrase, words in data["wrong"].items()},
    }


def _is_wrong(word: str, phrase: str) -> bool:
    wrong, one, other = _judged()["wrong"], folded(word), folded(phrase)
    return one in wrong.get(other, ()) or other in wrong.get(one, ())


def synonyms_for(phrase: str, kind: str = "entity", vocabulary: Vocabulary | None = None, sense: int = 1) -> Synonyms:
    """Synonyms of a concept: those of the pack's own lists where it is in them, else WordNet's.

    A relation gets those of its list alone: what WordNet has are nouns ("holding": "retention"). So does a name. Of
    WordNet's sense (by default the phrase's first visual one, else its first) those words are taken that mean the same
    and little else, see `wordnet.candidates`. Words that `vocabulary` does not know are left away, and so are those
    that contain the phrase itself ("true cat" for "cat"). A plural gets plurals. `sense`: its number in
    `wordnet.senses`. Raises ConceptError for a number that no sense has; WordNetMissing.
    """
    lower = " ".join(phrase.lower().split())
    listed = _listed_synonyms(phrase, kind) if sense == 1 else None
    found: list[tuple[str, str]]
    if listed is not None:
        found = listed
    elif kind == "relationship" or is_name(phrase):
        found = []
    else:
        wordnet.sense_of(phrase, sense)  # raises where there is none of this number
        one = singular(lower)
        base = one or lower
        words = [
            (each.word, each.reason or ("wrong" if _is_wrong(each.word, base) else ""))
            for each in wordnet.candidates(base, sense)
            if not contains(each.word, base)
        ]
        if sense == 1:
            words = [*((word, "") for word in _judged()["right"].get(folded(base), ())), *words]
        found = [(plural(word) or word, why) for word, why in words] if one else words
        found = [*((word, "") for word in _judged()["right"].get(folded(lower), ())), *found]
    if is_name(phrase) or plain(phrase) != phrase:
        found = [*((other, "") for other in other_spellings(phrase)), *found]
    found = [(w, why) for w, why in found if w.lower() != lower and (vocabulary is None or vocabulary(w))]
    taken = once(word for word, why in found if not why)
    known = {word.lower() for word in taken}
    return Synonyms(taken, tuple((word, why) for word, why in found if why and word.lower() not in known))


def other_spellings(name: str) -> tuple[str, ...]:
    """A name as people type it where the keyboard lacks its signs: "Beyonce", "Coca Cola"."""
    return tuple(dict.fromkeys(other for other in (plain(name), name.replace("-", " ")) if other != name))


def _listed_synonyms(phrase: str, kind: str) -> list[tuple[str, str]] | None:
    """The hand-checked words of presets.json and names.json, as `Synonyms` has them; None where the phrase is in
    neither."""
    if kind == "relationship":
        relation = relation_of(phrase)
        return None if relation is None else [(word, "") for word in relation.synonyms]
    checked = checked_synonyms(phrase, kind)
    if checked is not None:
        return [(word, "") for word in checked]
    if kind == "abstraction" or is_name(phrase):
        others = spellings_of(phrase)[1:]
        return [(word, "") for word in others] or None
    safety = safety_concept(phrase)
    if safety is not None:
        words = [(word, "") for word in (safety.phrase, *safety.synonyms)]
        return [*words, *((word, "narrower") for word in safety.kinds)]
    one = singular(phrase)
    listed = None if one is None else _listed_synonyms(one, kind)
    return None if listed is None else [(plural(word) or word, why) for word, why in listed if word != one]


def synonyms_of(phrase: str, vocabulary: Vocabulary | None = None, sense: int = 1) -> tuple[str, ...]:
    """The synonyms of a thing that are taken unasked: see `synonyms_for`."""
    return synonyms_for(phrase, "entity", vocabulary, sense).taken


def misspelt(phrase: str, draw: random.Random) -> str:
    """`phrase` with a slip in one of its words: two neighbouring letters swapped, one dropped or one doubled; the first
    letter stays."""
    starts = [m.span() for m in re.finditer(r"\S{3,}", phrase)]
    if not starts:
        return phrase + phrase[-1:]
    start, end = starts[0] if len(starts) == 1 else draw.choice(starts)
    word = phrase[start:end]
    while True:
        i = draw.randrange(1, len(word) - 1)
        swapped, dropped = word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :]
        found = draw.choice((swapped, dropped, word[:i] + word[i] + word[i:]))
        if found != word:  # two equal letters swapped
            return phrase[:start] + found + phrase[end:]


def is_word(word: str) -> bool:
    """Whether `word` is one of the built-in common words, or one of WordNet's where its data are there."""
    plain = word.lower()
    return any(plain in words for words in common_words().values()) or (
        wordnet.available() and bool(wordnet.senses(plain))
    )


def mentions(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words, in any capitals and in either number ("two mice" for "mouse")."""
    if contains(text, phrase):
        return True
    sought, words = (re.findall(r"\w+(?:[-'’]\w+)*", t.lower()) for t in (phrase, text))
    if not sought or sought != phrase.lower().split():
        return False  # "c++" has no plural
    runs = (words[i : i + len(sought)] for i in range(len(words) - len(sought) + 1))
    return any(all(map(same_noun, sought, run)) for run in runs)


def same(first: str, second: str) -> bool:
    """Whether two words or phrases differ in capitals and number at most ("Mice" and "mouse")."""
    return mentions(first, second) and mentions(second, first)


def related(word: str, phrase: str, synonyms: Collection[str] = (), sense: int = 1) -> bool:
    """Whether `word` names the concept itself: phrase, synonym, inflection, a kind of it or what it is a kind of.

    `sense`: which of WordNet's senses `phrase` has. Without WordNet's data only the spelling is compared.
    """
    names = {**dict.fromkeys(synonyms, 1), phrase: sense}
    if any(mentions(word, name) or mentions(name, word) for name in names):
        return True
    return wordnet.available() and any(wordnet.is_kind_of(name, word, number) for name, number in names.items())


# What a relation joins, in prompts about it, and in its own prompt.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "people": ("man", "woman", "boy", "girl", "nurse", "soldier", "teacher", "king", "queen", "sailor"),
    "animals": ("cat", "dog", "horse", "rabbit", "bear", "fox", "lion", "monkey", "goat", "pig", "mouse", "tiger"),
}


def relation_nouns(phrase: str, vocabulary: Vocabulary | None) -> list[str]:
    """Nouns that a relation of names.json joins sensibly ("a man hugging a woman"); [] where any will do, or where the
    vocabulary knows none of them."""
    relation = relation_of(phrase)
    pool = SUBJECTS.get(relation.subjects, ()) if relation else ()
    known = [noun for noun in pool if vocabulary is None or vocabulary(noun)]
    return known if len(known) > 3 else []


def candidates(
    kind: str, phrase: str, synonyms: Collection[str], vocabulary: Vocabulary | None, sense: int = 1
) -> list[str]:
    """Words an irrelevant word may be drawn from, for a concept of this kind, in a fixed order."""
    pool: Sequence[str] = common_words()["concrete"]
    if kind == "abstraction":
        artist = category_of(phrase, kind, synonyms) == "artist"
        pool = names_of("artist") if artist else tuple(dict.fromkeys([*STYLES, *names_of("style")]))
    elif kind == "relationship":
        relation = relation_of(phrase)
        actions = [each.form for each in relations() if relation and each.subjects == relation.subjects != "things"]
        pool = RELATIONS if phrase.lower() in RELATIONS or not actions else actions
    keep = [w for w in pool if vocabulary is None or vocabulary(w)]
    return [w for w in keep if not related(w, phrase, synonyms, sense)]


def names_near(kind: str, phrase: str, synonyms: Collection[str], vocabulary: Vocabulary | None) -> list[str]:
    """Names that stand beside a named concept and must stay when it goes: other people, a brand's rivals, clothed
    people for nudity, the nearest first; [] for a common thing, a style or a relation."""
    if kind not in ("entity", "custom"):
        return []
    category = category_of(phrase, kind, synonyms)
    one = singular(phrase)
    if category == "thing" and one is not None and category_of(one, kind) == "safety":
        category, phrase = "safety", one
    if category == "thing":
        return []
    entry = next((found for name in (phrase, *synonyms) if (found := entry_of(name))), None)
    safety = safety_concept(phrase)
    if category == "safety" and safety is not None:
        pool = list(safety.neighbours)
    else:
        pool = names_of(category) if entry is None or entry.category != category else names_beside(entry)
    keep = [name for name in pool if vocabulary is None or vocabulary(name)]
    return [name for name in keep if not any(mentions(name, own) or mentions(own, name) for own in (phrase, *synonyms))]


def _opposite(phrase: str) -> str | None:
    relation = relation_of(phrase)
    return OPPOSITES.get(phrase.lower()) or (relation.opposite if relation else None)


def irrelevant_words(
    phrase: str,
    seed: int = 0,
    k: int = 3,
    *,
    kind: str = "entity",
    synonyms: Collection[str] = (),
    vocabulary: Vocabulary | None = None,
    sense: int = 1,
) -> tuple[str, ...]:
    """`k` words that are not the concept, in equal parts with no relation to it, far from it and at middle distance.

    Distances are WordNet similarities (Wu–Palmer) over the built-in words: the lowest third of the list, the middle
    third and the highest third. Words come in that order; the same seed gives the same words. A phrase that WordNet
    lacks gets words drawn from the whole list, and so does a `sense` of it that is no noun. Two thirds of a named
    concept's are names of its own sort (see `names_near`): who erases one actor keeps the others. Of a relation that
    has an opposite this is the first: it takes the relation's place in training, and leaves the most of the rest.
    Fewer than `k` come back where the vocabulary knows fewer.
    Raises WordNetMissing.
    """
    if not wordnet.available():
        raise wordnet.WordNetMissing()
    pool = candidates(kind, phrase, synonyms, vocabulary, sense)
    draw = random.Random(f"{seed}:{phrase.lower()}")
    beside = names_near(kind, phrase, synonyms, vocabulary)
    if len(beside) >= 3:
        near = min(len(beside), k - -(-k // 3))
        return (*draw.sample(pool, min(k - near, len(pool))), *draw.sample(beside[: max(24, near)], near))
    near = {w: wordnet.similarity(phrase, w, sense) for w in pool}
    known = sorted((w for w in pool if near[w] is not None), key=lambda w: (near[w], w))
    if kind not in ("entity", "custom") or len(known) < max(3, k):
        drawn = draw.sample(pool, min(k, len(pool)))
        opposite = _opposite(phrase) if kind == "relationship" else None
        if opposite is None or (opposite not in pool and vocabulary is not None and not vocabulary(opposite)):
            return tuple(drawn)
        return tuple([opposite, *(w for w in drawn if w != opposite)][:k])
    edges = [0, len(known) // 3, 2 * len(known) // 3, len(known)]
    picked: list[str] = []
    for group in range(3):
        share = k // 3 + (1 if group < k % 3 else 0)
        third = known[edges[group] : edges[group + 1]]
        picked += draw.sample(third, min(share, len(third)))
    return tuple(picked)
