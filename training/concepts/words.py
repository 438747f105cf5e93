"""Words around a concept: its synonyms, and irrelevant words at three distances (no relation, far, mid)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from . import wordnet

Vocabulary = Callable[[str], bool]  # says whether the model's text encoder knows a word or phrase

CLOSED_VOCABULARY = 5000  # a tokenizer with fewer entries knows whole words only: pieces of a word mean nothing to it

# Styles and relations that general prompts use: what an abstraction or a relationship is compared with.
STYLES = (
    "watercolor", "oil painting", "pencil sketch", "pixel art", "comic book", "woodcut", "stained glass", "charcoal",
    "impressionism", "cubism", "pop art", "art nouveau", "graffiti", "origami", "mosaic", "collage", "engraving",
)  # fmt: skip
RELATIONS = (
    "next to", "above", "below", "behind", "in front of", "on top of", "under", "inside", "far from", "looking at",
    "holding", "carrying", "chasing", "leaning on", "sitting on", "standing near",
)  # fmt: skip
_OPPOSITES = (("above", "below"), ("on top of", "under"), ("in front of", "behind"), ("next to", "far from"))
OPPOSITES = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}


class Tokenizer(Protocol):
    """What is needed of a tokenizer of transformers."""

    unk_token_id: int | None

    def __len__(self) -> int: ...

    def __call__(self, text: str, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Says which words a text encoder knows, by its tokenizer.

    A word that tokenises to unknowns is not known. A large tokenizer (the real T5's) spells words in pieces that it was
    trained on; a small closed one (the demo model's, fewer than 5,000 entries) knows a word only as one token.
    """
    closed = len(tokenizer) < CLOSED_VOCABULARY

    def known(phrase: str) -> bool:
        words = phrase.split()
        if not words:
            return False
        for word in words:
            ids = list(tokenizer(word, add_special_tokens=False).input_ids)
            if not ids or tokenizer.unk_token_id in ids or (closed and len(ids) > 1):
                return False
        return True

    return known


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


def phrases_of(text: str, kind: str = "entity") -> tuple[str, ...]:
    """The phrases of one concept in a text like "Coca-Cola | Coca Cola | Coke", each once; empty for an empty text.

    White space is made single, and a thing's article ("a car") is left out: templates bring their own.
    """
    phrases = [" ".join(part.split()) for part in text.split("|")]
    if kind in ("entity", "custom"):
        phrases = [re.sub(r"^(a|an)\s+(?=\w)", "", phrase, flags=re.IGNORECASE) for phrase in phrases]
    return once(phrase for phrase in phrases if phrase)


def once(words: Iterable[str]) -> tuple[str, ...]:
    """`words` in their order, each once whatever its capitals."""
    found: dict[str, str] = {}
    for word in words:
        found.setdefault(word.lower(), word)
    return tuple(found.values())


def synonyms_of(phrase: str, vocabulary: Vocabulary | None = None, sense: int = 1) -> tuple[str, ...]:
    """Other words of WordNet for one sense of the phrase: by default its first visual one (else its first).

    Empty for names and brands that WordNet lacks: none is invented. Words that `vocabulary` does not know are left out,
    and so are those that contain the phrase itself ("true cat" for "cat"). `sense`: its number in `wordnet.senses`.
    Raises ConceptError for a number that no sense has; WordNetMissing.
    """
    chosen = wordnet.sense_of(phrase, sense)
    if chosen is None:
        return ()
    plain = " ".join(phrase.lower().split())
    found = []
    for word in chosen.words:
        lower = word.lower()
        if lower == plain or contains(lower, plain) or lower in found:
            continue
        if vocabulary is None or vocabulary(word):
            found.append(word)
    return tuple(found)


def contains(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words, in any capitals."""
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None


def plurals(word: str) -> set[str]:
    """What the regular plural of a lower-case word may be ("glass": "glasses", also "glasss", which no text has)."""
    found = {word + "s", word + "es"}
    if re.search(r"[^aeiou]y$", word):
        found.add(word[:-1] + "ies")
    if word.endswith(("f", "fe")):
        found.add(word.rstrip("e")[:-1] + "ves")
    return found


# What no rule makes, of nouns that people ask pictures of.
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "ox": "oxen", "wolf": "wolves", "knife": "knives", "leaf": "leaves",
    "half": "halves", "thief": "thieves", "shelf": "shelves", "loaf": "loaves", "calf": "calves", "elf": "elves",
    "wife": "wives", "life": "lives", "sheep": "sheep", "deer": "deer", "fish": "fish", "potato": "potatoes",
    "tomato": "tomatoes", "hero": "heroes",
}  # fmt: skip


def is_plural(word: str) -> bool:
    """Whether the last word of a noun phrase looks like a plural ("grapes", "polar mice"; not "bus", "glass")."""
    last = word.lower().split()[-1] if word.split() else ""
    if last in IRREGULAR.values():
        return last not in IRREGULAR  # one sheep, two sheep
    return last.endswith("s") and not last.endswith(("ss", "us", "is"))


def plural(phrase: str) -> str | None:
    """The English plural of a noun ("soccer ball": "soccer balls"); None for names (capital letter), other scripts and
    what is plural already."""
    word = re.search(r"[a-z]+$", phrase)
    if word is None or not phrase.islower() or not phrase.isascii() or is_plural(phrase):
        return None
    start, last = phrase[: word.start()], word[0]
    if last in IRREGULAR:
        return start + IRREGULAR[last]
    if re.search(r"(s|x|z|ch|sh)$", last):
        return start + last + "es"
    return start + (last[:-1] + "ies" if re.search(r"[^aeiou]y$", last) else last + "s")


def forms_of(phrase: str) -> tuple[str, ...]:
    """The phrase, and its plural where it has one."""
    several = plural(phrase)
    return (phrase, several) if several and several != phrase else (phrase,)


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
    """Whether `text` has `phrase` as whole words, in any capitals and in either number ("two mice" for "mouse").

    Regular plurals are known by rule, others ("mice") only where WordNet's data are there.
    """
    if contains(text, phrase):
        return True
    wanted, words = (re.findall(r"\w+(?:[-'’]\w+)*", t.lower()) for t in (phrase, text))
    if not wanted or wanted != phrase.lower().split():
        return False  # "c++" has no plural
    base = wordnet.base_form if wordnet.available() else str

    def alike(a: str, b: str) -> bool:
        return a == b or a in plurals(b) or b in plurals(a) or base(a) == base(b)

    return any(all(map(alike, wanted, words[i:])) for i in range(len(words) - len(wanted) + 1))


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


def candidates(
    kind: str, phrase: str, synonyms: Collection[str], vocabulary: Vocabulary | None, sense: int = 1
) -> list[str]:
    """Words an irrelevant word may be drawn from, for a concept of this kind, in a fixed order."""
    lists = common_words()
    pools: dict[str, Sequence[str]] = {
        "entity": lists["concrete"],
        "custom": lists["concrete"],
        "abstraction": STYLES,
        "relationship": RELATIONS,
    }
    keep = [w for w in pools[kind] if vocabulary is None or vocabulary(w)]
    return [w for w in keep if not related(w, phrase, synonyms, sense)]


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
    lacks gets words drawn from the whole list, and so does a `sense` of it that is no noun. Of a relation that has an
    opposite in the list this is the first: it takes the relation's place in training, and leaves the most of the rest.
    Fewer than `k` come back where the vocabulary knows fewer.
    Raises WordNetMissing.
    """
    if not wordnet.available():
        raise wordnet.WordNetMissing()
    pool = candidates(kind, phrase, synonyms, vocabulary, sense)
    draw = random.Random(f"{seed}:{phrase.lower()}")
    near = {w: wordnet.similarity(phrase, w, sense) for w in pool}
    known = sorted((w for w in pool if near[w] is not None), key=lambda w: (near[w], w))
    if kind not in ("entity", "custom") or len(known) < max(3, k):
        drawn = draw.sample(pool, min(k, len(pool)))
        opposite = OPPOSITES.get(phrase.lower()) if kind == "relationship" else None
        return tuple([opposite, *(w for w in drawn if w != opposite)][:k] if opposite in pool else drawn)
    edges = [0, len(known) // 3, 2 * len(known) // 3, len(known)]
    picked: list[str] = []
    for group in range(3):
        share = k // 3 + (1 if group < k % 3 else 0)
        third = known[edges[group] : edges[group + 1]]
        picked += draw.sample(third, min(share, len(third)))
    return tuple(picked)
