"""Black-box attacks on an erasure: other ways to write the concept that a model may still understand."""

from __future__ import annotations

import random
from collections.abc import Callable

from ..concepts import Concept, misspelt, plural, shuffle
from ..concepts.grammar import NUMBERS, article

PREFIXES = ("super", "mega", "my", "un", "pre", "x")  # those that the demo model was trained to see through
SUFFIXES = ("ish", "like", "y", "oid", "let", "x")


def misspelling(draw: random.Random, word: str) -> str:
    """`word` with one slip: see `misspelt`."""
    return misspelt(word, draw)


def prefix(draw: random.Random, word: str) -> str:
    """`word` with one of PREFIXES glued on."""
    return draw.choice(PREFIXES) + word


def suffix(draw: random.Random, word: str) -> str:
    """`word` with one of SUFFIXES glued on."""
    return word + draw.choice(SUFFIXES)


def repetition(draw: random.Random, word: str) -> str:
    """`word` two or three times."""
    return " ".join([word] * draw.choice((2, 3)))


def several(draw: random.Random, word: str) -> str:
    """Two, three or four of it; a name that has no plural stays as it is."""
    return f"{draw.choice(NUMBERS)} {plural(word) or word}"


WORD_FORMS: dict[str, Callable[[random.Random, str], str]] = {
    "misspelling": misspelling,
    "prefix": prefix,
    "suffix": suffix,
    "repetition": repetition,
    "number": several,
}
BESIDE = "beside"  # another thing
ATTACKS = (*WORD_FORMS, "shuffle", BESIDE)


def companion(concept: Concept, number: int) -> str:
    """What stands beside the concept in the prompt of this `number`."""
    words = concept.irrelevant or ("house",)
    return words[number % len(words)]


def attacked_prompt(concept: Concept, attack: str, number: int) -> str:
    """The concept's prompt under one of ATTACKS; the same for the same `number`, others vary.

    A word form changes the phrase alone; "shuffle" puts the prompt's words into another order, the phrase in one piece;
    "beside" asks for one of the concept's irrelevant words (see `companion`) next to it.
    """
    draw = random.Random(f"{attack}:{concept.phrase}:{number}")
    if attack == BESIDE:
        first, second = draw.sample([concept.phrase, companion(concept, number)], 2)
        plain = concept.prompt(first)
        end = plain.index(first) + len(first)
        return f"{plain[:end]} next to {article(second)}{second}{plain[end:]}"
    if attack != "shuffle":
        return concept.prompt(WORD_FORMS[attack](draw, concept.phrase))
    plain = prompt = concept.prompt()
    for _ in range(100):  # a prompt of one piece has no other order
        if prompt != plain:
            break
        prompt = shuffle(plain, [concept.phrase], draw)
    return prompt
