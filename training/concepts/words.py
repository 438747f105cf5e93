"""Words around a concept: its synonyms, and irrelevant words at three distances (no relation, far, mid)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
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


def synonyms_of(phrase: str, vocabulary: Vocabulary | None = None) -> tuple[str, ...]:
    """Other words of WordNet for the phrase's first visual sense (else its first sense), commonest sense first.

    Empty for names and brands that WordNet lacks: none is invented. Words that `vocabulary` does not know are left out,
    and so are those that contain the phrase itself ("true cat" for "cat"). Raises WordNetMissing.
    """
    senses = wordnet.senses(phrase)
    if not senses:
        return ()
    plain = " ".join(phrase.lower().split())
    found = []
    for word in senses[0].words:
        lower = word.lower()
        if lower == plain or contains(lower, plain) or lower in found:
            continue
        if vocabulary is None or vocabulary(word):
            found.append(word)
    return tuple(found)


def contains(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words, in any capitals."""
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None


def related(word: str, phrase: str, synonyms: Collection[str] = ()) -> bool:
    """Whether `word` names the concept itself: phrase, synonym, inflection, a kind of it or what it is a kind of.

    Without WordNet's data only the spelling is compared.
    """
    names = [phrase, *synonyms]
    if any(contains(word, name) or contains(name, word) for name in names):
        return True
    stem = word.lower().rstrip("s")
    if any(stem == name.lower().rstrip("s") for name in names):
        return True
    return wordnet.available() and any(wordnet.is_kind_of(word, name) for name in names)


def candidates(kind: str, phrase: str, synonyms: Collection[str], vocabulary: Vocabulary | None) -> list[str]:
    """Words an irrelevant word may be drawn from, for a concept of this kind, in a fixed order."""
    lists = common_words()
    pools: dict[str, Sequence[str]] = {
        "entity": lists["concrete"],
        "custom": lists["concrete"],
        "abstraction": STYLES,
        "relationship": RELATIONS,
    }
    keep = [w for w in pools[kind] if vocabulary is None or vocabulary(w)]
    return [w for w in keep if not related(w, phrase, synonyms)]


def irrelevant_words(
    phrase: str,
    seed: int = 0,
    k: int = 3,
    *,
    kind: str = "entity",
    synonyms: Collection[str] = (),
    vocabulary: Vocabulary | None = None,
) -> tuple[str, ...]:
    """`k` words that are not the concept, in equal parts with no relation to it, far from it and at middle distance.

    Distances are WordNet similarities (Wu–Palmer) over the built-in words: the lowest third of the list, the middle
    third and the highest third. Words come in that order; the same seed gives the same words. A phrase that WordNet
    lacks gets words drawn from the whole list. Fewer than `k` come back where the vocabulary knows fewer.
    Raises WordNetMissing.
    """
    if not wordnet.available():
        raise wordnet.WordNetMissing()
    pool = candidates(kind, phrase, synonyms, vocabulary)
    draw = random.Random(f"{seed}:{phrase.lower()}")
    near = {w: wordnet.similarity(phrase, w) for w in pool}
    known = sorted((w for w in pool if near[w] is not None), key=lambda w: (near[w], w))
    if kind not in ("entity", "custom") or len(known) < max(3, k):
        return tuple(draw.sample(pool, min(k, len(pool))))
    edges = [0, len(known) // 3, 2 * len(known) // 3, len(known)]
    picked: list[str] = []
    for group in range(3):
        share = k // 3 + (1 if group < k % 3 else 0)
        third = known[edges[group] : edges[group + 1]]
        picked += draw.sample(third, min(share, len(third)))
    return tuple(picked)
