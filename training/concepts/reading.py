"""What somebody typed, read as a concept's phrases: tidied, without its article and quotes, in the right capitals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import wordnet
from .grammar import is_adjective, is_relation, relation_form
from .lexicon import PARTICLES, category_of, entry_of, folded, is_person_name, words_listed
from .matching import plain, tidy

_QUOTES = "\"'“”„‟«»‹›`*"
_DETERMINERS = frozenset(
    (
        "a",
        "an",
        "the",
        "my",
        "your",
        "his",
        "her",
        "its",
        "our",
        "their",
        "some",
        "any",
        "this",
        "that",
        "these",
        "those",
        "another",
        "each",
        "every",
    )
)
_ABBREVIATED = {"jr.", "sr.", "dr.", "mr.", "mrs.", "ms.", "st.", "inc.", "co.", "ltd.", "vs.", "no."}
_BRINGS_IN = re.compile(
    r"^(?:(?:an?\s+)?(?:painting|drawing|picture|image|photo|artwork|art|work|illustration|sketch|portrait)s?\s+)?"
    r"(?:in\s+the\s+(?:art\s+)?(?:style|manner|fashion)\s+of|(?:made|painted|drawn)\s+by|by|à\s+la|a\s+la)\s+",
    re.IGNORECASE,
)
_STYLE_AFTER = re.compile(r"(?:[\s-]+(?:art\s+)?style)$", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """phrases: the concept's phrase, then its other spellings; definite: it was typed with "the"; hints: sentences
    about what may have been meant otherwise."""

    phrases: tuple[str, ...] = ()
    definite: bool = False
    hints: tuple[str, ...] = ()


def phrases_of(text: str, kind: str = "entity") -> tuple[str, ...]:
    """The phrases of one concept in a text like "Coca-Cola | Coca Cola | Coke", each once; empty for an empty text.

    See `read`.
    """
    return read(text, kind).phrases


def read(text: str, kind: str = "entity") -> Reading:
    """What a typed text asks to erase; phrases are separated by bars.

    Spaces are made single, underscores are spaces; quotes around a phrase, a full stop after it and the words that only
    bring it in ("a", "the", "my", of a style "in the style of" and "by") are left out: templates bring their own. A
    common noun gets small letters ("Golf Ball"), a name keeps its own, and one of names.json gets those it has there
    ("van gogh"). A relation is put as it reads between two things ("hug": "hugging").
    """
    phrases, definite, hints = [], False, []
    for part in text.split("|"):
        phrase, the = _plain(part, kind)
        if phrase:
            phrases.append(_named(phrase, kind))
            definite |= the
    found: dict[str, str] = {}
    for phrase in phrases:
        found.setdefault(phrase.lower(), phrase)
    phrases = list(found.values())
    if phrases:
        hints = list(_hints(text, phrases[0], kind))
    return Reading(tuple(phrases), definite, tuple(hints))


def _plain(text: str, kind: str) -> tuple[str, bool]:
    """(the phrase without what people put around it, whether "the" was before it)."""
    phrase = " ".join(re.sub('["“”„‟«»]', "", tidy(text)).replace("_", " ").split())
    before = None
    while phrase != before:
        before = phrase
        phrase = phrase.strip(_QUOTES + " ") or phrase
        if not _ends_in_a_dot_of_its_own(phrase):
            phrase = re.sub(r"(?<=\w)[.,;:…!?]+$", "", phrase)
    definite = False
    if kind == "relationship":
        return phrase, False
    while match := re.match(r"(\w+)\s+(?=\S)", phrase):
        if match[1].lower() not in _DETERMINERS or (match[1].isupper() and len(match[1]) > 1):
            break
        definite |= match[1].lower() == "the"
        phrase = phrase[match.end() :]
    brought = _BRINGS_IN.sub("", phrase)
    if brought and brought != phrase:
        phrase = _plain(brought, "custom")[0]
    if kind == "abstraction" and (bare := _STYLE_AFTER.sub("", phrase)):
        phrase = bare
    return phrase, definite


def _ends_in_a_dot_of_its_own(phrase: str) -> bool:
    """Whether its last sign is part of a phrase: "Robert Downey Jr.", "U.S.A.", a name of names.json."""
    last = phrase.split()[-1].lower() if phrase.split() else ""
    return last in _ABBREVIATED or bool(re.search(r"\w\.\w\.$", phrase)) or entry_of(phrase) is not None


def _named(phrase: str, kind: str) -> str:
    """The phrase in the capitals that it is to have."""
    if kind == "relationship":
        return relation_form(phrase.lower() if phrase.istitle() or phrase.isupper() else phrase)
    capital = any(c.isupper() for c in phrase)
    entry = entry_of(phrase)
    if entry is not None and entry.category not in ("style", "safety"):
        common = wordnet.available() and wordnet.has(phrase.lower())
        if not capital and (kind == "abstraction" or not common):
            return re.sub(r"^the ", "", entry.name)
        if capital:
            return phrase
    if kind == "custom" or not plain(phrase).isascii() or not capital or is_person_name(phrase):
        return phrase
    if entry is not None:
        return re.sub(r"^the ", "", entry.name)
    return phrase.lower() if _is_common(plain(phrase)) else phrase


def _is_common(phrase: str) -> bool:
    """Whether a phrase with capitals is a common noun that was typed so: English has it, or each word of it, in small
    letters."""
    lower, words = phrase.lower(), phrase.split()
    if lower in words_listed("mass") | words_listed("plural_only") | words_listed("invariant"):
        return True
    if not wordnet.available():
        from .words import is_word  # the pack's own list of common words is all there is

        return is_word(lower)
    if wordnet.is_place(phrase):
        return False  # "Turkey"
    # capitals inside a word are a name's or an abbreviation's ("iPhone", "TVs", "X-ray"), and who wrote one word with a
    # capital and the next without meant both
    typed = all(re.fullmatch(r"[A-Z][a-z]+(?:[-'][A-Za-z]?[a-z]+)*", w) or w.lower() in PARTICLES for w in words)
    if not typed and not (phrase.isupper() and len(phrase) > 4):
        return len(words) > 1 and words[0].istitle() and words[1:] == lower.split()[1:] and _has_noun(lower)
    if _has_noun(lower) or is_adjective(lower):
        return True
    # of several words that English has no name for, the last must be something that can be seen: "Red Car"
    last = wordnet.senses(words[-1].lower())
    return (
        len(words) > 1
        and words[0] not in words_listed("given_names")
        and all(_has_noun(word.lower()) or wordnet.has(word.lower()) for word in words)
        and bool(last)
        and last[0].visual
    )


def _has_noun(word: str) -> bool:
    return wordnet.has(word, "n") or wordnet.has(wordnet.base_form(word), "n")


def _hints(text: str, phrase: str, kind: str) -> Iterable[str]:
    parts = [part.strip() for part in re.split(r"[,;/\n]|\s+(?:and|or|&)\s+", text.replace("|", " ").strip(" .,;"))]
    parts = [part for part in parts if part]
    if len(parts) > 1 and entry_of(phrase) is None and not (wordnet.available() and wordnet.has(phrase)):
        yield (
            f'"{phrase}" looks like {len(parts)} concepts: train one LoRA for each and merge them, or put a bar between'
            " spellings of one thing."
        )
    entry = entry_of(phrase)
    if kind in ("entity", "custom") and is_relation(phrase):
        yield f'"{phrase}" looks like a relation between two things: choose the kind relationship.'
    elif kind == "entity" and entry is not None and entry.category in ("artist", "style"):
        yield f'"{phrase}" looks like a style: choose the kind abstraction, unless you mean the person or thing.'
    elif kind == "entity" and _BRINGS_IN.match(tidy(text)):
        yield f'"{text.strip()}" asks for a style: choose the kind abstraction.'
    elif kind == "abstraction" and entry is not None and entry.category in ("brand", "character", "place", "safety"):
        yield f'"{phrase}" looks like a thing, not a style: choose the kind entity.'
    elif kind == "abstraction" and is_relation(phrase):
        yield f'"{phrase}" looks like a relation between two things: choose the kind relationship.'
    elif kind == "abstraction" and _is_thing(phrase):
        yield f'"{phrase}" looks like a thing, not a style: choose the kind entity.'
    elif kind == "relationship" and not is_relation(phrase) and not phrase.split()[0].lower().endswith("ing"):
        yield f'"{phrase}" does not look like a relation between two things: choose the kind entity or abstraction.'
    if kind == "entity" and is_adjective(phrase):
        yield f'"{phrase}" describes a thing: name the thing as well, as in "{phrase} person".'
    named = kind == "entity" and category_of(phrase) in ("brand", "character")
    if named and wordnet.available() and wordnet.has(folded(phrase)) and wordnet.senses(folded(phrase))[0].visual:
        yield f'"{phrase}" is read as the name. Write "{phrase.lower()}" if you mean the common word.'


def _is_thing(phrase: str) -> bool:
    if not wordnet.available() or entry_of(phrase) is not None:
        return False
    found = wordnet.senses(phrase)
    return bool(found) and found[0].lexname in ("noun.animal", "noun.plant", "noun.food", "noun.body")
