"""Prompts around a concept: filled templates, shuffles that keep the phrase whole, prompts to be preserved."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from .grammar import NUMBERS, article, indefinite, plural, spellings, takes_adjective, verb_forms
from .matching import occurrences
from .words import Vocabulary, is_word, misspelt

COLORS = ("red", "blue", "green", "yellow", "white", "black", "pink", "purple", "orange", "gray")

# What may stand around a noun. A pattern is used only where the model's text encoder knows all of its words.
ENTITY_PATTERNS = (
    "a {x}",
    "a photo of a {x}",
    "a picture of a {x}",
    "a drawing of a {x}",
    "an image of a {x}",
    "a {x} on a {color} background",
    "a {color} {x}",
    "{x}",
)
COUNTED_PATTERNS = (
    *(f"{start}{number} {{xs}}" for start in ("", "a photo of ") for number in NUMBERS),
    "many {xs}",
    "a group of {xs}",
)
PAIR_PATTERNS = ("a {x} next to a {y}", "a {x} above a {y}", "a {x} below a {y}")
STYLE_PATTERNS = ("{x}", "a {y} in the style of {x}", "a {y} on a {color} background in the style of {x}")
_RELATION = "a {y} {x} a {z}"
RELATION_PATTERNS = (_RELATION, "{x}", "a photo of a {y} {x} a {z}")
EMPTY_PATTERNS = ("", "a photo", "a drawing", "a {color} background")


# The forms in which a thing is asked for, in turn: alone in most prompts, since that is what most people write. Their
# number is odd, because the concept's phrase takes turns with its synonyms.
PROMPT_FORMS = (
    "alone",
    "misspelt",
    "shuffled",
    "several",
    "alone",
    "several",
    "beside",
    "alone",
    "misspelt",
    "several",
    "shuffled",
)


# The same where the text encoder reads a capital as another word, as T5 does: "golf ball", "Golf Ball", "Golf ball".
PROMPT_FORMS_WITH_CAPITALS = (
    "alone",
    "misspelt",
    "capitals",
    "shuffled",
    "several",
    "alone",
    "several",
    "beside",
    "capitals",
    "alone",
    "misspelt",
    "several",
    "shuffled",
)
_COLORED = "{color} {x}"

# Words that only bring in a style and go with its name: "in the style of", "by", "after the manner of".
_BRINGS_IN = r"(?:\b(?:an?|the|in|by|of|from|after|with|style|manner)\s+)*$"


def fill(
    template: str, slots: dict[str, str], definite: Collection[str] = (), meant: Mapping[str, str] | None = None
) -> str:
    """`template` with each {slot} filled; an article right before a slot is made to agree with the words put in, a
    colour between them or not. definite: words that take "the" here; meant: the word that another spelling stands for,
    whose article it gets.
    """

    def put(match: re.Match[str]) -> str:
        adjective, word = (slots[match[2]], slots[match[3]]) if match[2] else ("", slots[match[3]])
        phrase = f"{adjective} {word}" if match[2] else word
        if not match[1]:
            return phrase
        if match[3] == "color":
            agreed = indefinite(word)
        else:
            agreed = _article(word, adjective, definite, meant or {})
        return (agreed.capitalize() if match[1][0] == "A" else agreed) + phrase

    return re.sub(r"(\b[Aa]n? )?(?:\{(color)\} )?\{(\w*)\}", put, template)


def _article(word: str, adjective: str, definite: Collection[str], meant: Mapping[str, str]) -> str:
    name = meant.get(word, word)
    return "the " if name in definite else article(name, adjective)


def slots_of(template: str) -> list[str]:
    """Names of the slots in `template`, in order; the concept's own slot has the empty name or "x"."""
    return re.findall(r"\{(\w*)\}", template)


def shuffle(prompt: str, phrases: Sequence[str], draw: random.Random, brought_in: bool = False) -> str:
    """The prompt's words in another order; every occurrence of each of `phrases` stays in one piece.

    brought_in: the words that only bring it in stay with it ("in the style of …").
    """
    ranges: list[tuple[int, int]] = []
    for phrase in sorted(phrases, key=len, reverse=True):
        for start, end in occurrences(prompt, phrase):
            if brought_in:
                start = len(re.sub(_BRINGS_IN, "", prompt[:start], flags=re.IGNORECASE))
            if all(end <= a or start >= b for a, b in ranges):
                ranges.append((start, end))
    units: list[str] = []
    at = 0
    for start, end in sorted(ranges):
        units += prompt[at:start].split()
        units.append(prompt[start:end])
        at = end
    units += prompt[at:].split()
    draw.shuffle(units)
    return " ".join(units)


def substitute(prompt: str, phrase: str, word: str) -> str:
    """`prompt` with every occurrence of `phrase` replaced by `word`, articles made to agree."""
    template, at = "", 0
    for start, end in occurrences(prompt, phrase):
        template += prompt[at:start].replace("{", "").replace("}", "") + "{x}"
        at = end
    return fill(template + prompt[at:].replace("{", "").replace("}", ""), {"x": word})


def without(prompt: str, phrase: str) -> str:
    """`prompt` with every occurrence of `phrase` taken out, and with it the words that only bring it in."""
    rest, at = "", 0
    for start, end in occurrences(prompt, phrase):
        rest += re.sub(_BRINGS_IN, "", prompt[at:start], flags=re.IGNORECASE)
        at = len(prompt) - len(re.sub(r"\A(?:\s+style\b)?[\s,]*", "", prompt[end:], flags=re.IGNORECASE))
    return (rest + prompt[at:]).strip(" ,")


def known_patterns(patterns: Sequence[str], vocabulary: Vocabulary | None) -> list[str]:
    """Those patterns whose fixed words (and some colour) the vocabulary knows; all of them without a vocabulary."""
    if vocabulary is None:
        return list(patterns)
    colors = known_colors(vocabulary)
    fixed = {p: re.sub(r"\{\w*\}", " ", p).split() for p in patterns if colors or "{color}" not in p}
    return [pattern for pattern, words in fixed.items() if all(vocabulary(word) for word in words)]


def known_colors(vocabulary: Vocabulary | None) -> list[str]:
    """Colours that the vocabulary knows."""
    return [color for color in COLORS if vocabulary is None or vocabulary(color)]


class ErasePrompt(NamedTuple):
    """A prompt that asks for the concept.

    Attributes:
        name: The name of the concept that is meant.
        phrase: What stands for that name in the text, its plural, say.
        rest: A prompt for what else is asked for and should stay; "" where that is no thing of its own.
    """

    text: str
    name: str
    phrase: str
    rest: str = ""


def erase_prompts(
    phrases: Sequence[str],
    template: str,
    kind: str,
    others: Sequence[str],
    count: int,
    seed: int,
    vocabulary: Vocabulary | None = None,
    shuffled: bool = True,
    capitals: bool = True,
) -> list[ErasePrompt]:
    """`count` different prompts that ask for the concept.

    The template as it is comes first, then the built-in patterns of the concept's kind. Some prompts misspell a thing's
    name where that makes no other word, some ask for several of it, and some for it beside another thing (see
    PROMPT_FORMS): a model that is erased without them still draws "two cars". A relation that is a verb is also said in
    its other forms ("a cat hugs a dog").

    Args:
        phrases: The concept's phrase and the synonyms to be erased with it; half of the prompts use the first.
        others: Unrelated nouns for the other slots.
        shuffled: Put the words of some prompts into another order.
        capitals: Write some names with other capitals.
    """
    draw = random.Random(f"erase:{seed}:{phrases[0]}")
    patterns = known_patterns(
        {"abstraction": STYLE_PATTERNS, "relationship": RELATION_PATTERNS}.get(kind, ENTITY_PATTERNS), vocabulary
    )
    counted = known_patterns(COUNTED_PATTERNS, vocabulary) if kind == "entity" else []
    pairs = known_patterns([*PAIR_PATTERNS, PAIR_PATTERNS[0]], vocabulary) if kind == "entity" and others else []
    colors = known_colors(vocabulary) or [""]  # patterns with a colour are left out where none is known
    nouns = list(others) or ["thing"]
    definite = frozenset(phrases) if re.search(r"\bthe \{\}", template, re.IGNORECASE) else frozenset()
    prompt_forms = PROMPT_FORMS_WITH_CAPITALS if capitals and kind != "relationship" else PROMPT_FORMS
    found: list[ErasePrompt] = []
    turn = failed = 0
    for number in range(40 * count):
        if len(found) == count:
            break
        name = phrases[0] if number % 2 == 0 or len(phrases) == 1 else phrases[1 + (number // 2) % (len(phrases) - 1)]
        slots = {"": name, "x": name, "y": draw.choice(nouns), "z": draw.choice(nouns)}
        slots["color"] = draw.choice(colors)
        if kind == "relationship" and slots["y"] == slots["z"] and len(nouns) > 1:
            continue
        slots |= {"subject": slots["y"], "object": slots["z"]}
        # The next form comes once there is a prompt of this one: the template gives each name a single prompt only.
        form = prompt_forms[turn % len(prompt_forms)]
        fitting = patterns if takes_adjective(name) else [p for p in patterns if _COLORED not in p]
        pattern = draw.choice(fitting) if fitting and (number % 3 or form == "shuffled") else template
        phrase, rest, several = name, "", plural(name)
        if form == "several" and counted and several and (vocabulary is None or vocabulary(several)):
            phrase = slots["xs"] = several
            pattern = draw.choice(counted)
        elif form == "misspelt" and kind in ("entity", "custom") and name.isascii():
            slip = misspelt(name, draw)
            if not any(map(is_word, {slip, *slip.split()} - set(name.split()))):
                phrase = slots[""] = slots["x"] = slip
        elif form == "beside" and pairs:
            rest = fill("a {y}", slots)
            if draw.random() < 0.5:  # either side
                slots |= {"x": slots["y"], "y": name}
            pattern = draw.choice(pairs)
        elif form == "capitals" and (written := spellings(name)[1:]):
            phrase = slots[""] = slots["x"] = written[turn % len(written)]
        elif kind == "relationship" and number % 4 == 3 and (forms := _verb_forms(name, vocabulary)):
            phrase = slots[""] = slots["x"] = forms[number // 4 % len(forms)]
            pattern = _RELATION if forms.index(phrase) == 0 else "{x}"
        # an article is that of the name itself: "a penguin" also where it is misspelt or has a capital
        prompt = fill(pattern, slots, definite, {phrase: name} if phrase.lower() != several else {})
        if form == "shuffled" and shuffled and kind != "relationship":
            prompt = shuffle(prompt, phrases, draw, brought_in=kind == "abstraction")
        new = (prompt, phrase) not in [(one.text, one.phrase) for one in found]
        if new:
            found.append(ErasePrompt(prompt, name, phrase, rest))
        failed = 0 if new else failed + 1
        turn += new or failed % 10 == 0
    return found


def _verb_forms(name: str, vocabulary: Vocabulary | None) -> list[str]:
    """The forms of a relation that is a verb, as they read after one subject and alone: "hugs", "hug"."""
    return [form for form in verb_forms(name) if vocabulary is None or vocabulary(form)]


def _rounds(items: Sequence[str], draw: random.Random) -> Iterator[str]:
    """All items in a random order, then again in another order, without end; "" for ever where there are none."""
    while True:
        yield from draw.sample(list(items), len(items)) or [""]


def preservation_prompts(
    words: Sequence[str],
    template: str,
    kind: str,
    nouns: Sequence[str],
    count: int,
    seed: int,
    vocabulary: Vocabulary | None = None,
) -> tuple[str, ...]:
    """`count` prompts that do not hold the concept: its template with other words, nouns in many settings, no noun.

    `words`: what may stand in the concept's place; `nouns`: nouns to be kept in general (for an entity the same).
    The empty prompt comes first: what a prompt says by its function words alone must stay too.
    """
    draw = random.Random(f"preserve:{seed}:{template}")
    pairs = known_patterns(PAIR_PATTERNS, vocabulary)
    singles = known_patterns(ENTITY_PATTERNS, vocabulary) or ["{x}"]
    counted = known_patterns(COUNTED_PATTERNS, vocabulary) if kind == "entity" else []
    colors = known_colors(vocabulary) or [""]  # patterns with a colour are left out where none is known
    found = [""] if count else []
    empties = known_patterns(EMPTY_PATTERNS, vocabulary)
    word_rounds, noun_rounds = _rounds(words, draw), _rounds(nouns or words, draw)
    for number in range(40 * count):
        if len(found) >= count:
            break
        word, noun = next(word_rounds), next(noun_rounds)
        other = draw.choice(nouns) if nouns else word
        slots = {"": word, "x": noun, "y": other, "z": noun, "color": draw.choice(colors)}
        slots |= {"subject": noun, "object": other}
        several = slots["xs"] = plural(noun) or ""
        if number % 8 == 7 and empties:
            pattern = draw.choice(empties)
        elif number % 4 == 1 and words:
            pattern = template
        elif number % 8 == 2 and pairs and len(nouns) > 1:
            pattern = draw.choice(pairs)
        elif number % 8 == 4 and counted and several and (vocabulary is None or vocabulary(several)):
            pattern = draw.choice(counted)
        else:
            fitting = singles if takes_adjective(noun) else [p for p in singles if _COLORED not in p]
            pattern = draw.choice(fitting or ["{x}"])
        prompt = fill(pattern, slots)
        if prompt not in found:
            found.append(prompt)
    return tuple(found)
