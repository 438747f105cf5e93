"""English around a concept's words: articles, plurals, the forms of a verb.

The rules are those of the library inflect; names.json says which nouns have no plural, are plural only or take "the",
and WordNet, where its data are there, which words exist.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache, wraps
from typing import Any

from . import wordnet
from .lexicon import PARTICLES, entry_of, folded, relation_of, words_listed
from .matching import plain

NUMBERS = ("two", "three", "four")
_DETERMINED = frozenset({*NUMBERS, "many", "some", "several", "no", "his", "her", "their", "a", "an", "the"})

# What inflect has no rule or exception for: plurals that English irregularly has, and sounds that its letters hide.
_PLURALS = {
    "thief": "thieves",
    "grandchild": "grandchildren",
    "stepchild": "stepchildren",
    "godchild": "godchildren",
    "schoolchild": "schoolchildren",
    "monarch": "monarchs",
    "patriarch": "patriarchs",
    "matriarch": "matriarchs",
    "passer-by": "passers-by",
    "cactus": "cacti",
    "fungus": "fungi",
    "bison": "bison",
    "grizzly": "grizzlies",
    "flamingo": "flamingos",
    "saguaro": "saguaros",
}
_AN = ("SUV", "SUVs", "herb", "herbs", "8-ball", "18-wheeler", "11th", "hors", "heirloom")
_A = ("Uzi", "Uzis", "Ouija", "uakari", "one-.*")
_VERBS = {
    "dye": "dyeing",
    "singe": "singeing",
    "canoe": "canoeing",
    "hoe": "hoeing",
    "tiptoe": "tiptoeing",
    "picnic": "picnicking",
    "mimic": "mimicking",
}

_lock = threading.RLock()


@lru_cache(maxsize=1)
def _engine() -> Any:
    import inflect  # reading it takes half a second, and most starts of the host need none of it

    engine = inflect.engine()
    for one, many in _PLURALS.items():
        engine.defnoun(one, many)
    for word in _AN:
        engine.defan(word)
    for word in _A:
        engine.defa(word)
    return engine


def _one_at_a_time(function: Any) -> Any:
    """inflect's engine keeps what it works on in itself: of two threads at once each would get the other's word."""

    @wraps(function)
    def alone(*args: Any) -> Any:
        with _lock:
            return function(*args)

    return alone


def _last(phrase: str) -> str:
    """The noun of a noun phrase: its last word, or the one before "of", "in", "with" …"""
    head = re.split(r"\s+(?:of|in|on|with|from|for|at|by|to|without|under|over|near)\s+", phrase.strip())[0]
    return head.split()[-1] if head.split() else ""


def is_name(phrase: str) -> bool:
    """Whether a phrase is a proper name, which takes no article: known to names.json, or its last word has a capital.

    "Tom Hanks", "Coca-Cola" and "NASA" are names; "European city", "X-ray" and "UFO" are nouns.
    """
    last = _last(phrase)
    end = last.rsplit("-", 1)[-1]
    if not any(c.isupper() for c in phrase):
        return False
    entry = entry_of(phrase)
    if entry is not None and entry.category not in ("style", "safety"):
        return True
    if end.isupper() and len(end) > 1 and end.isalpha():  # an abbreviation: of a thing where WordNet says so
        return not wordnet.available() or not wordnet.is_counted_abbreviation(end)
    return end[:1].isupper()


def is_plural(phrase: str) -> bool:
    """Whether a noun phrase is plural ("grapes", "polar mice", "jeans"; not "bus", "glass", "sheep")."""
    last = _last(phrase).lower()
    if not last or is_name(phrase) or last in words_listed("invariant") or is_mass(phrase):
        return False
    if folded(phrase) in words_listed("plural_only") or last in words_listed("plural_only"):
        return True
    one = singular(last)
    return one is not None and one != last


@lru_cache(maxsize=20000)
@_one_at_a_time
def _regular_singular(word: str) -> str | None:
    found = _engine().singular_noun(word)
    return found if isinstance(found, str) and found != word and len(found) > 2 else None


def singular(phrase: str) -> str | None:
    """What a plural noun phrase has as its singular ("children": "child"); None for what is no plural."""
    last = phrase.split()[-1] if phrase.split() else ""
    lower = last.lower()
    if lower in words_listed("invariant") or lower in words_listed("mass") or lower in words_listed("plural_only"):
        return None
    one = _regular_singular(lower)
    if one is None or lower.endswith(("ss", "us", "is")):
        return None
    if _regular_plural(one) != lower and wordnet.available() and wordnet.base_form(lower) != one:
        return None
    if wordnet.available() and not wordnet.senses(one):
        return None
    return phrase[: len(phrase) - len(last)] + one


def is_mass(phrase: str) -> bool:
    """Whether a noun phrase has no plural and no "a": "water", "orange juice", "nudity"; not "traffic light"."""
    listed, last = words_listed("mass"), _last(phrase).lower()
    if phrase.lower() in listed:
        return True
    several = len(phrase.split()) > 1
    if last in listed:
        # a compound that WordNet has as a thing of its own is counted: "forest fire", "magnifying glass"
        known = wordnet.senses(phrase) if several and wordnet.available() else []
        return not known or known[0].lexname in ("noun.food", "noun.substance", "noun.plant", "noun.body", "noun.state")
    if several or not phrase.islower() or not wordnet.available():
        return False
    found = wordnet.senses(phrase)
    return bool(found) and found[0].lexname in ("noun.feeling", "noun.substance")


def is_adjective(phrase: str) -> bool:
    """Whether a single word describes a thing and names none: "naked"."""
    if len(phrase.split()) != 1 or not phrase.islower() or not wordnet.available():
        return False
    return not wordnet.has(phrase, "n") and (wordnet.has(phrase, "a") or wordnet.has(phrase, "s"))


def takes_adjective(phrase: str) -> bool:
    """Whether a colour may stand before a noun phrase as it is: not before names and what has its article already."""
    return not is_name(phrase) and phrase.split()[:1] != [] and phrase.split()[0].lower() not in _DETERMINED


def takes_the(phrase: str) -> bool:
    """Whether there is one of it, so that prompts say "the": "moon", "Eiffel Tower"."""
    entry = entry_of(phrase)
    if entry is not None and entry.category == "place":
        return entry.name.startswith("the ")
    return phrase.lower() in words_listed("unique")


@lru_cache(maxsize=20000)
@_one_at_a_time
def indefinite(phrase: str) -> str:
    """ "a " or "an ", as the first sound of `phrase` asks for."""
    return _engine().a(phrase).split(" ", 1)[0] + " "


def article(phrase: str, adjective: str = "") -> str:
    """What stands before a noun phrase in a prompt, with its space: "a ", "an ", "the " or nothing.

    Nothing before names, plurals, nouns that are not counted, and words of other scripts. adjective: a word that stands
    between the article and the phrase.
    """
    words = phrase.split()
    if not words or not plain(phrase).isascii() or words[0].lower() in _DETERMINED:
        return ""
    if takes_the(phrase):
        return "the "
    if is_name(phrase) or is_plural(phrase) or is_mass(phrase) or is_adjective(phrase):
        return ""
    return indefinite(f"{adjective} {phrase}".strip())


@lru_cache(maxsize=20000)
@_one_at_a_time
def _regular_plural(word: str) -> str:
    found = _engine().plural_noun(word)
    # inflect takes a word in -s that it does not know for a plural already: "ananass"
    return f"{word}es" if word.endswith("s") and found == f"{word}s" else found


def plural(phrase: str) -> str | None:
    """The plural of a noun phrase ("soccer ball": "soccer balls", "sheep": "sheep"); None for names, other scripts,
    what is not counted and what is plural already."""
    if not re.search(r"[a-z]$", plain(phrase)) or is_name(phrase) or is_plural(phrase) or is_adjective(phrase):
        return None
    if is_mass(phrase) or takes_the(phrase) or phrase.split()[0].lower() in _DETERMINED:
        return None
    if len(phrase.split()) > 3 and " of " not in phrase:
        return None  # a clause or nearly one, whose noun no rule finds: "children playing in a park"
    start, last = phrase[: len(phrase) - len(phrase.split()[-1])], phrase.split()[-1]
    if last.lower() in words_listed("invariant"):
        return phrase
    head = _last(phrase)
    if head != last:  # "glass of wine": the noun is not at the end
        at = phrase.index(head)
        return phrase[:at] + _regular_plural(head) + phrase[at + len(head) :]
    return start + _regular_plural(last)


@lru_cache(maxsize=20000)
@_one_at_a_time
def _is_plural_pair(first: str, second: str) -> bool:
    return bool(_engine().compare_nouns(first, second))


def same_noun(first: str, second: str) -> bool:
    """Whether two words, in small letters, are one noun in singular or plural ("mouse" and "mice")."""
    if first == second:
        return True
    if not (first.isascii() and second.isascii() and first[:1] == second[:1]):
        return False  # no English plural changes the first letter
    if _is_plural_pair(first, second):
        return True
    return wordnet.available() and wordnet.base_form(first) == wordnet.base_form(second)


def forms_of(phrase: str) -> tuple[str, ...]:
    """The phrase and its other forms in texts: a noun's plural, a relation's "hug", "hugs" beside "hugging"."""
    relation = relation_of(phrase)
    if relation is not None or (several := plural(phrase)) is None:
        return tuple(dict.fromkeys((phrase, *verb_forms(phrase)))) if relation is not None else (phrase,)
    return (phrase,) if several == phrase else (phrase, several)


@lru_cache(maxsize=20000)
@_one_at_a_time
def _participle(verb: str) -> str:
    return _VERBS.get(verb) or _engine().present_participle(verb)


@lru_cache(maxsize=20000)
@_one_at_a_time
def _third_person(verb: str) -> str:
    irregular = {"be": "is", "have": "has", "do": "does", "go": "goes"}
    return irregular.get(verb) or _engine().plural_noun(verb)  # verbs take the same endings as nouns: "kisses"


def is_verb(word: str) -> bool:
    """Whether WordNet has `word` as a verb, in its base form."""
    if not word or not wordnet.available():
        return False
    return wordnet.base_form(word, "v") == word.lower() and wordnet.has(word, "v")


def relation_form(phrase: str) -> str:
    """How a relation reads in "a cat … a dog": "hug" → "hugging", "shake hands" → "shaking hands with"; prepositions,
    and what reads so already, as they are."""
    known = relation_of(phrase)
    if known is not None:
        return known.form
    phrase = re.sub(r"^to\s+(?=\w+)", "", phrase) if is_verb("".join(phrase.split()[1:2])) else phrase
    known = relation_of(phrase)
    if known is not None:
        return known.form
    first, *rest = phrase.split() or [""]
    if first.lower() in _PREPOSITIONS or any(word.lower().endswith("ing") for word in (first, *rest)):
        return phrase
    if first.lower().endswith("ed") and rest and rest[0].lower() in _PREPOSITIONS | {"to"}:
        return phrase  # "tied with", "covered in": what is done to the first, not what it does
    base = wordnet.base_form(first.lower(), "v") if wordnet.available() else first.lower()
    if not is_verb(base):
        return phrase
    return " ".join([_participle(base), *rest])


def verb_forms(form: str) -> tuple[str, ...]:
    """The other forms of a relation that is a verb: "hugging" → "hugs", "hug"; () for prepositions."""
    first, *rest = form.split() or [""]
    lower = first.lower()
    if not lower.endswith("ing") or not wordnet.available():
        return ()
    base = wordnet.base_form(lower, "v")
    if base == lower or not is_verb(base) or _participle(base) != lower:
        return ()
    return tuple(" ".join([verb, *rest]) for verb in (_third_person(base), base))


_PREPOSITION_WORDS = """
    about above across after against along alongside amid amidst among around at atop away back before behind below
    beneath beside besides between beyond by close down facing far for from in inside into left near next off on onto
    opposite out outside over past right round through throughout to toward towards under underneath up upon with within
    without
"""
_PREPOSITIONS = frozenset(_PREPOSITION_WORDS.split())


def is_relation(phrase: str) -> bool:
    """Whether a phrase says how two things relate: a relation of names.json, or one that begins with a preposition."""
    words = phrase.lower().split()
    if not words:
        return False
    return relation_of(phrase) is not None or words[0] in _PREPOSITIONS or words[-1] in _PREPOSITIONS


def spellings(phrase: str) -> tuple[str, ...]:
    """The phrase in the capitals that people type: "golf ball", "Golf Ball", "Golf ball"; T5 reads each as another
    word. A name in small letters too."""
    words = phrase.split()
    title = " ".join(
        word if word.lower() in PARTICLES and number else word[:1].upper() + word[1:]
        for number, word in enumerate(words)
    )
    return tuple(dict.fromkeys((phrase, title, phrase[:1].upper() + phrase[1:], phrase.lower())))
