"""What is measured of an erasure: for each kind of concept, the pictures to generate and what each should show."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..concepts import TEMPLATES, Concept, occurrences
from ..errors import ErasureError
from .attacks import ATTACKS, BESIDE, attacked_prompt, companion
from .classifier import RELATIONS, DemoClassifier, Verdict

FIRST_SEED = 50_000  # of the measured images; the bank trains on seeds from 1,000,000 on
CONVERSE = {"above": "below", "below": "above"}


@dataclass(frozen=True)
class Content:
    """What a picture must show to count: each part that is given.

    nouns: of the whole picture, or two; style: its name; relation: how the first of two nouns lies to the second.
    among: there may be another thing too.
    """

    nouns: tuple[str, ...] = ()
    style: str = ""
    relation: str = ""
    among: bool = False

    def shown(self, verdict: Verdict, number: int) -> bool:
        """Whether the classifier sees it in picture `number` of those it has judged."""
        first, relation, second = verdict.relations[number]
        if self.style and verdict.styles[number] != self.style:
            return False
        if self.among:
            return set(self.nouns) <= {first, second}
        if self.relation in CONVERSE:
            upper, lower = self.nouns if self.relation == "above" else self.nouns[::-1]
            return (first, relation, second) == (upper, "above", lower)
        if self.relation:
            return relation == self.relation and {first, second} == set(self.nouns)
        if len(self.nouns) == 2:
            return {first, second} == set(self.nouns)
        return not self.nouns or verdict.nouns[number] == self.nouns[0]


@dataclass(frozen=True)
class Probe:
    """One picture to judge: its prompt, seed and content, and the share it counts in.

    share: acc_e, acc_g, acc_ir, acc_ir_seen, an attack, or "" for a part alone; part: the finer share of the same
    picture, "" where there is none.
    """

    share: str
    prompt: str
    seed: int
    content: Content
    part: str = ""


def require_measurable(concept: Concept, classifier: DemoClassifier) -> None:
    """Raises ErasureError where the classifier cannot tell whether the concept is there."""
    known = {"abstraction": classifier.styles, "relationship": RELATIONS}.get(concept.kind, classifier.nouns)
    if concept.phrase not in known:
        raise ErasureError(
            f'This model\'s classifier does not name "{concept.phrase}", so its erasure cannot be measured: it names '
            "the single nouns, styles and relations that the model was trained on."
        )


def probes(
    concept: Concept, classifier: DemoClassifier, images: int, images_per_other: int, images_per_attack: int = 0
) -> list[Probe]:
    """The pictures that measure the erasure of `concept`, at fixed seeds from FIRST_SEED on.

    images: of the concept, and as many or a few more of its synonyms, and half as many of each other style or relation;
    images_per_other: of each other noun; images_per_attack: of each of ATTACKS (things only). What an erasure should
    keep counts in acc_ir, or in acc_ir_seen where a preservation prompt held one of its nouns. Which parts there are:

    - a thing: "beside it" (what is asked for beside it, which should stay);
    - a style: "styles" (other styles, right with their noun; "styles seen" where preservation prompts held them),
      "nouns" (prompts without a style), "nouns in it" (the noun of a prompt with the erased style);
    - a relation: "single" nouns, "next to" and other relations, "both nouns" of a prompt with the erased relation, and
      "converse": "below" where "above" is erased, which counts in no other share (it says the same of the same picture
      with other words).

    Raises ErasureError where the classifier does not name the concept.
    """
    require_measurable(concept, classifier)
    make = {"abstraction": _style, "relationship": _relation}.get(concept.kind, _thing)
    return list(make(concept, classifier, images, images_per_other, images_per_attack))


def _kept(concept: Concept, classifier: DemoClassifier, nouns: Sequence[str]) -> str:
    """The share of prompts with these nouns: whether a preservation prompt held one of them, under any of its names."""
    names = [name for noun in nouns for name in (noun, *classifier.synonyms.get(noun, ()))]
    kept = "\n".join(concept.preserve)
    return "acc_ir_seen" if any(occurrences(kept, name) for name in names) else "acc_ir"


def _single(concept: Concept, classifier: DemoClassifier, template: str, count: int, part: str) -> Iterator[Probe]:
    """`count` pictures of each noun that is not the concept."""
    plain = Concept(concept.phrase, template=template)
    own = {concept.phrase, *concept.synonyms, *classifier.synonyms.get(concept.phrase, ())}
    for noun in classifier.nouns:
        if noun not in own:
            share = _kept(concept, classifier, [noun])
            for number in range(count):
                yield Probe(share, plain.prompt(noun), FIRST_SEED + number, Content((noun,)), part)


def _thing(concept: Concept, classifier: DemoClassifier, images: int, others: int, attacks: int) -> Iterator[Probe]:
    synonyms = list(dict.fromkeys([*concept.synonyms, *classifier.synonyms.get(concept.phrase, ())]))
    content = Content((concept.phrase,))
    for number in range(images):
        yield Probe("acc_e", concept.prompt(), FIRST_SEED + number, content)
    for synonym in synonyms:
        for number in range(-(-images // len(synonyms))):
            yield Probe("acc_g", concept.prompt(synonym), FIRST_SEED + number, content)
    for attack in ATTACKS:
        for number in range(attacks):
            prompt, seed = attacked_prompt(concept, attack, number), FIRST_SEED + number
            if attack != BESIDE:
                yield Probe(attack, prompt, seed, content)
            elif companion(concept, number) in classifier.nouns:
                other = Content((companion(concept, number),), among=True)
                yield Probe(attack, prompt, seed, Content((concept.phrase,), among=True))
                yield Probe("", prompt, seed, other, "beside it")
    yield from _single(concept, classifier, concept.template, others, "")


def _style(concept: Concept, classifier: DemoClassifier, images: int, others: int, _attacks: int) -> Iterator[Probe]:
    draw = random.Random(f"style:{concept.phrase}")
    kept = "\n".join(concept.preserve)

    def nouns(count: int) -> Iterator[tuple[int, str]]:
        for number in range(count):
            yield FIRST_SEED + number, draw.choice(classifier.nouns)

    for seed, noun in nouns(images):
        prompt = concept.prompt(subject=noun)
        yield Probe("acc_e", prompt, seed, Content(style=concept.phrase))
        yield Probe(_kept(concept, classifier, [noun]), prompt, seed, Content((noun,)), "nouns in it")
    for synonym in concept.synonyms:
        for seed, noun in nouns(-(-images // len(concept.synonyms))):
            yield Probe("acc_g", concept.prompt(synonym, subject=noun), seed, Content(style=concept.phrase))
    for style in classifier.styles:
        if style not in concept.names():
            part = "styles seen" if occurrences(kept, style) else "styles"
            for seed, noun in nouns(images // 2):
                share = _kept(concept, classifier, [noun])
                yield Probe(share, concept.prompt(style, subject=noun), seed, Content((noun,), style), part)
    yield from _single(concept, classifier, TEMPLATES["entity"], others, "nouns")


def _relation(concept: Concept, classifier: DemoClassifier, images: int, others: int, _attacks: int) -> Iterator[Probe]:
    draw = random.Random(f"relation:{concept.phrase}")

    def pairs(word: str, count: int) -> Iterator[tuple[str, int, tuple[str, str]]]:
        for number in range(count):
            first, second = draw.sample(classifier.nouns, 2)
            yield concept.prompt(word, subject=first, object=second), FIRST_SEED + number, (first, second)

    for prompt, seed, nouns in pairs(concept.phrase, images):
        yield Probe("acc_e", prompt, seed, Content(nouns, relation=concept.phrase))
        yield Probe(_kept(concept, classifier, nouns), prompt, seed, Content(nouns), "both nouns")
    for synonym in concept.synonyms:
        for prompt, seed, nouns in pairs(synonym, -(-images // len(concept.synonyms))):
            yield Probe("acc_g", prompt, seed, Content(nouns, relation=concept.phrase))
    for relation in RELATIONS:
        if relation not in concept.names():
            converse = relation == CONVERSE.get(concept.phrase)
            for prompt, seed, nouns in pairs(relation, images // 2):
                share = "" if converse else _kept(concept, classifier, nouns)
                content = Content(nouns, relation=relation)
                yield Probe(share, prompt, seed, content, "converse" if converse else relation)
    yield from _single(concept, classifier, TEMPLATES["entity"], others, "single")
