"""The cases of a measurement: which picture to render, what it should show, and the suites that it counts in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..concepts import TEMPLATES, Concept, occurrences, phrases_of, presets
from ..concepts.prompts import fill
from ..errors import ErasureError
from .attacks import ATTACKS, BESIDE, attacked_prompt, companion

FIRST_SEED = 50_000  # of the measured images; the bank trains on seeds from 1,000,000 on
RELATIONS = ("next to", "above", "below")
CONVERSE = {"above": "below", "below": "above"}

Role = Literal["erase", "generalise", "attack", "keep"]
Key = tuple[str, int]  # prompt, seed: what a picture is rendered from


@dataclass(frozen=True)
class Content:
    """What a picture must show to count: each part that is given.

    Args:
        nouns: Of the whole picture, or two.
        style: Its name.
        relation: How the first of two nouns lies to the second.
        among: Whether there may be another thing too.
    """

    nouns: tuple[str, ...] = ()
    style: str = ""
    relation: str = ""
    among: bool = False

    @property
    def word(self) -> str:
        """The one word that a judge among labels is asked for."""
        return self.style or self.relation or self.nouns[0]

    def __str__(self) -> str:
        if self.relation:
            return f" {self.relation} ".join(self.nouns)
        nouns = " and ".join(self.nouns)
        return f"{nouns or 'anything'} in the style {self.style}" if self.style else nouns


@dataclass(frozen=True)
class Suite:
    """Cases that are counted together.

    Args:
        name: Its name in JSON, within its group.
        title: Its name for people.
        role: "erase": asks for the concept by its name; "generalise": by a synonym; "attack": in another disguise;
            "keep": for what must stay as it is.
        seeks_concept: Whether a hit is the concept seen, so that fewer are better.
        group: "attack": ways to rewrite the prompt; "part": finer shares of pictures; "file": prompts of a file.
    """

    name: str
    title: str
    role: Role
    seeks_concept: bool = True
    group: Literal["", "attack", "part", "file"] = ""

    @property
    def id(self) -> str:
        """What JSON calls it: acc_e, acc_g, acc_ir, acc_ir_seen, presets, "attack …", "part …" or "file …"."""
        return f"{self.group} {self.name}".lstrip()

    @property
    def better(self) -> Literal["lower", "higher"]:
        """Which shares are better."""
        return "lower" if self.seeks_concept else "higher"

    def facts(self) -> dict[str, str]:
        """As JSON, without results."""
        return {"id": self.id, "title": self.title, "role": self.role, "group": self.group, "better": self.better}


ACC_E = Suite("acc_e", "The concept by its name", "erase")
ACC_G = Suite("acc_g", "Its synonyms", "generalise")
ACC_IR = Suite("acc_ir", "What should stay, in no training prompt", "keep", False)
ACC_IR_SEEN = Suite("acc_ir_seen", "What should stay, in training prompts", "keep", False)
PRESETS = Suite("presets", "The pack's other everyday concepts", "keep", False)


def attack_suite(name: str) -> Suite:
    """The suite of one way to rewrite the concept's prompt."""
    return Suite(name, f"Attack: {name}", "attack", group="attack")


def part_suite(name: str) -> Suite:
    """A finer share of pictures. "converse" is the erased relation in other words, all others should stay."""
    converse = name == "converse"
    return Suite(name, f"In detail: {name}", "erase" if converse else "keep", converse, "part")


@dataclass(frozen=True)
class Case:
    """One picture to judge: the prompt and seed that it is rendered from, what it should show, where it counts."""

    prompt: str
    seed: int
    expected: Content
    suites: tuple[Suite, ...] = ()

    @property
    def key(self) -> Key:
        """What the picture is rendered from; cases that ask several things of one picture share it."""
        return self.prompt, self.seed

    @property
    def keeps(self) -> bool:
        """Whether the picture should stay as it is."""
        return any(suite.role == "keep" for suite in self.suites)


class Vocabulary(Protocol):
    """Names that a judge tells apart. synonyms: noun → other words for it that the model was trained on."""

    @property
    def nouns(self) -> Sequence[str]: ...

    @property
    def styles(self) -> Sequence[str]: ...

    @property
    def relations(self) -> Sequence[str]: ...

    @property
    def synonyms(self) -> dict[str, list[str]]: ...


def keys_of(cases: Iterable[Case]) -> list[Key]:
    """The pictures of these cases, each once, in their order."""
    return list(dict.fromkeys(case.key for case in cases))


def in_suite(cases: Iterable[Case], *suites: Suite) -> list[Case]:
    """The cases that count in one of these suites."""
    return [case for case in cases if not set(suites).isdisjoint(case.suites)]


def by_suite(cases: Iterable[Case]) -> dict[Suite, list[Case]]:
    """The cases of each suite; suites in the order of their first case."""
    found: dict[Suite, list[Case]] = {}
    for case in cases:
        for suite in case.suites:
            found.setdefault(suite, []).append(case)
    return found


def untouched(cases: Iterable[Case], concept: Concept) -> list[Key]:
    """The pictures that should stay and whose prompt does not name the concept: those that drift is about."""
    return keys_of(case for case in cases if case.keeps and not occurrences(case.prompt, concept.phrase))


def require_measurable(concept: Concept, vocabulary: Vocabulary) -> None:
    """Raises ErasureError where the model's classifier cannot tell whether the concept is there."""
    known = {"abstraction": vocabulary.styles, "relationship": vocabulary.relations}.get(concept.kind, vocabulary.nouns)
    if concept.phrase not in known:
        raise ErasureError(
            f'This model\'s classifier does not name "{concept.phrase}", so its erasure cannot be measured: it names '
            "the single nouns, styles and relations that the model was trained on."
        )


def concept_content(concept: Concept) -> Content:
    """What a picture of the concept shows, for prompts whose other words are not known."""
    return Content(style=concept.phrase) if concept.kind == "abstraction" else Content((concept.phrase,))


def concept_cases(
    concept: Concept, vocabulary: Vocabulary | None, images: int, images_per_other: int = 0, images_per_attack: int = 0
) -> list[Case]:
    """The cases that measure the erasure of `concept`, at fixed seeds from FIRST_SEED on.

    What an erasure should keep counts in acc_ir, or in acc_ir_seen where a preservation prompt held one of its nouns.
    With a vocabulary, further parts are counted:

    - a thing: "beside it" (what is asked for beside it, which should stay);
    - a style: "styles" (other styles, right with their noun; "styles seen" where preservation prompts held them),
      "nouns" (prompts without a style), "nouns in it" (the noun of a prompt with the erased style);
    - a relation: "single" nouns, "next to" and other relations, "both nouns" of a prompt with the erased relation, and
      "converse": "below" where "above" is erased, which counts in no other suite (it says the same of the same picture
      with other words).

    Args:
        vocabulary: What the judge can name; None for a judge that gets the concept's own words.
        images: Of the concept, as many or a few more of its synonyms, and half as many of each other style or relation.
        images_per_other: Of each other noun (without a vocabulary the irrelevant words share `images`).
        images_per_attack: Of each of ATTACKS (with a vocabulary of things only).

    Raises:
        ErasureError: Where the vocabulary does not name the concept.
    """
    if vocabulary is None:
        return list(_named(concept, images, images_per_attack))
    require_measurable(concept, vocabulary)
    make = {"abstraction": _style, "relationship": _relation}.get(concept.kind, _thing)
    return list(make(concept, vocabulary, images, images_per_other, images_per_attack))


def preset_cases(concept: Concept, count: int) -> Iterator[Case]:
    """`count` pictures of each of the pack's everyday presets but the concept itself."""
    for preset in presets():
        word = phrases_of(preset.phrase, preset.kind)[0]
        if preset.group == "everyday" and not concept.named_in(word):
            prompt = fill(preset.template, {"": word, "subject": "cat", "object": "house"})
            for number in range(count):
                yield Case(prompt, FIRST_SEED + number, Content((word,)), (PRESETS,))


def _named(concept: Concept, images: int, attacks: int) -> Iterator[Case]:
    """The concept by its name, synonyms and attacks, and its irrelevant words, for a judge without a vocabulary."""
    expected, plain = concept_content(concept), concept.prompt()

    def shared(words: Iterable[str]) -> Iterator[tuple[str, str, int]]:
        """(word, prompt, seed) of `images` pictures that words share evenly, or a few more."""
        words = tuple(dict.fromkeys(words))
        for word in words:
            for number in range(-(-images // len(words))):
                yield word, concept.prompt(word), FIRST_SEED + number

    for number in range(images):
        yield Case(plain, FIRST_SEED + number, expected, (ACC_E,))
    for _, prompt, seed in shared(concept.synonyms):
        yield Case(prompt, seed, expected, (ACC_G,))
    for attack in ("misspelling", "affixes", "repetition", "shuffle", "number"):
        forms = ("prefix", "suffix") if attack == "affixes" else (attack,)
        prompts = [attacked_prompt(concept, forms[number % len(forms)], number) for number in range(images)]
        if any(prompt != plain for prompt in prompts):  # a phrase alone cannot be shuffled
            for number, prompt in enumerate(prompts[:attacks]):
                yield Case(prompt, FIRST_SEED + number, expected, (attack_suite(attack),))
    for word, prompt, seed in shared(concept.irrelevant):
        yield Case(prompt, seed, Content((word,)), (ACC_IR,))


def _keep_suite(concept: Concept, vocabulary: Vocabulary, nouns: Sequence[str]) -> Suite:
    """The suite of prompts with these nouns: whether a preservation prompt held one of them, under any of its names."""
    names = [name for noun in nouns for name in (noun, *vocabulary.synonyms.get(noun, ()))]
    preserved = "\n".join(concept.preserve)
    return ACC_IR_SEEN if any(occurrences(preserved, name) for name in names) else ACC_IR


def _single(concept: Concept, vocabulary: Vocabulary, template: str, count: int, part: str) -> Iterator[Case]:
    """`count` pictures of each noun that is not the concept."""
    plain = Concept(concept.phrase, template=template)
    own = {concept.phrase, *concept.synonyms, *vocabulary.synonyms.get(concept.phrase, ())}
    for noun in vocabulary.nouns:
        if noun not in own:
            suites = (_keep_suite(concept, vocabulary, [noun]), *([part_suite(part)] if part else []))
            for number in range(count):
                yield Case(plain.prompt(noun), FIRST_SEED + number, Content((noun,)), suites)


def _thing(concept: Concept, vocabulary: Vocabulary, images: int, others: int, attacks: int) -> Iterator[Case]:
    synonyms = list(dict.fromkeys([*concept.synonyms, *vocabulary.synonyms.get(concept.phrase, ())]))
    expected = Content((concept.phrase,))
    for number in range(images):
        yield Case(concept.prompt(), FIRST_SEED + number, expected, (ACC_E,))
    for synonym in synonyms:
        for number in range(-(-images // len(synonyms))):
            yield Case(concept.prompt(synonym), FIRST_SEED + number, expected, (ACC_G,))
    for attack in ATTACKS:
        suite = attack_suite(attack)
        for number in range(attacks):
            prompt, seed = attacked_prompt(concept, attack, number), FIRST_SEED + number
            if attack != BESIDE:
                yield Case(prompt, seed, expected, (suite,))
            elif companion(concept, number) in vocabulary.nouns:
                other = Content((companion(concept, number),), among=True)
                yield Case(prompt, seed, Content((concept.phrase,), among=True), (suite,))
                yield Case(prompt, seed, other, (part_suite("beside it"),))
    yield from _single(concept, vocabulary, concept.template, others, "")


def _style(concept: Concept, vocabulary: Vocabulary, images: int, others: int, _attacks: int) -> Iterator[Case]:
    draw = random.Random(f"style:{concept.phrase}")
    preserved = "\n".join(concept.preserve)

    def nouns(count: int) -> Iterator[tuple[int, str]]:
        for number in range(count):
            yield FIRST_SEED + number, draw.choice(vocabulary.nouns)

    for seed, noun in nouns(images):
        prompt, within = (
            concept.prompt(subject=noun),
            (_keep_suite(concept, vocabulary, [noun]), part_suite("nouns in it")),
        )
        yield Case(prompt, seed, Content(style=concept.phrase), (ACC_E,))
        yield Case(prompt, seed, Content((noun,)), within)
    for synonym in concept.synonyms:
        for seed, noun in nouns(-(-images // len(concept.synonyms))):
            yield Case(concept.prompt(synonym, subject=noun), seed, Content(style=concept.phrase), (ACC_G,))
    for style in vocabulary.styles:
        if style not in concept.names():
            part = part_suite("styles seen" if occurrences(preserved, style) else "styles")
            for seed, noun in nouns(images // 2):
                suites = (_keep_suite(concept, vocabulary, [noun]), part)
                yield Case(concept.prompt(style, subject=noun), seed, Content((noun,), style), suites)
    yield from _single(concept, vocabulary, TEMPLATES["entity"], others, "nouns")


def _relation(concept: Concept, vocabulary: Vocabulary, images: int, others: int, _attacks: int) -> Iterator[Case]:
    draw = random.Random(f"relation:{concept.phrase}")

    def pairs(word: str, count: int) -> Iterator[tuple[str, int, tuple[str, str]]]:
        for number in range(count):
            first, second = draw.sample(vocabulary.nouns, 2)
            yield concept.prompt(word, subject=first, object=second), FIRST_SEED + number, (first, second)

    for prompt, seed, nouns in pairs(concept.phrase, images):
        yield Case(prompt, seed, Content(nouns, relation=concept.phrase), (ACC_E,))
        yield Case(prompt, seed, Content(nouns), (_keep_suite(concept, vocabulary, nouns), part_suite("both nouns")))
    for synonym in concept.synonyms:
        for prompt, seed, nouns in pairs(synonym, -(-images // len(concept.synonyms))):
            yield Case(prompt, seed, Content(nouns, relation=concept.phrase), (ACC_G,))
    for relation in vocabulary.relations:
        if relation not in concept.names():
            converse = relation == CONVERSE.get(concept.phrase)
            for prompt, seed, nouns in pairs(relation, images // 2):
                keep = () if converse else (_keep_suite(concept, vocabulary, nouns),)
                suites = (*keep, part_suite("converse" if converse else relation))
                yield Case(prompt, seed, Content(nouns, relation=relation), suites)
    yield from _single(concept, vocabulary, TEMPLATES["entity"], others, "single")
