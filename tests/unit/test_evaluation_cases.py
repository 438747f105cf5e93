"""What is measured: attacks on the phrase, which picture counts in which share, and how far pictures move."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from demo_model import scenes
from training.concepts import Concept, occurrences
from training.errors import ErasureError
from training.evaluation import Case, Content, concept_cases, score
from training.evaluation.attacks import ATTACKS, PREFIXES, SUFFIXES, attacked_prompt
from training.evaluation.classifier import DemoClassifier
from training.evaluation.drift import MAX_PSNR, perceptual_distance, psnr
from training.evaluation.judges.demo import DemoJudge, Scene

NOUNS = ["penguin", "owl", "car", "bus", "crab"]
STYLES = ["noto", "twemoji", "fluent"]
CLASSIFIER = DemoClassifier(NOUNS, STYLES, {"penguin": ["seabird"], "car": ["auto"]})
PENGUIN = Concept("penguin", irrelevant=("owl",), preserve=("an owl", "an auto"))


def scene(noun: str = "none", style: str = "noto", relation: tuple[str, str, str] = ("none", "", "none")) -> Scene:
    return Scene({noun: 1.0}, style=style, relation=relation)


def in_suites(case: Case, *ids: str) -> bool:
    return not {suite.id for suite in case.suites}.isdisjoint(ids)


def part_of(case: Case) -> str:
    return next((suite.name for suite in case.suites if suite.group == "part"), "")


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_the_same_each_time_and_keeps_the_other_words(attack: str) -> None:
    plain = PENGUIN.prompt()
    found = [attacked_prompt(PENGUIN, attack, number) for number in range(20)]
    assert found == [attacked_prompt(PENGUIN, attack, number) for number in range(20)]
    assert len(set(found)) > 1 and plain not in found
    for prompt in found:
        if attack == "shuffle":
            assert Counter(prompt.split()) == Counter(plain.split())
        else:
            assert prompt.startswith("a photo of ")
            assert attack in ("number", "beside") or prompt.split()[:3] == plain.split()[:3]
            assert bool(occurrences(prompt, "penguin")) == (attack in ("repetition", "beside"))
    if attack == "number":
        assert set(found) == {f"a photo of {count} penguins" for count in ("two", "three", "four")}
    if attack == "beside":
        assert set(found) == {"a photo of a penguin next to an owl", "a photo of an owl next to a penguin"}


def test_attacks_write_words_as_the_demo_model_has_learnt_them() -> None:
    draw, seen = random.Random(0), set()
    for _ in range(2000):
        seen.add(scenes.affix(draw, "penguin"))
    assert seen == {p + "penguin" for p in PREFIXES} | {"penguin" + s for s in SUFFIXES}
    spellings = {scenes.misspell(draw, "penguin") for _ in range(2000)}
    written = {attacked_prompt(PENGUIN, "misspelling", number).split()[-1] for number in range(500)}
    assert written == spellings - {"penguin"}


def test_a_prompt_of_one_piece_cannot_be_shuffled() -> None:
    concept = Concept("soccer ball", "custom", "{}")
    assert attacked_prompt(concept, "shuffle", 0) == "soccer ball"


@pytest.mark.parametrize(
    ("content", "right", "wrong"),
    [
        (Content(("owl",)), scene("owl"), scene("car")),
        (Content(style="fluent"), scene("owl", "fluent"), scene("owl", "noto")),
        (Content(("owl",), "fluent"), scene("owl", "fluent"), scene("car", "fluent")),
        (Content(("owl", "car")), scene(relation=("car", "next to", "owl")), scene("owl")),
        (Content(("owl",), among=True), scene("car", relation=("car", "above", "owl")), scene("owl")),
        (
            Content(("owl", "car"), relation="above"),
            scene(relation=("owl", "above", "car")),
            scene(relation=("car", "above", "owl")),
        ),
        (
            Content(("owl", "car"), relation="below"),
            scene(relation=("car", "above", "owl")),
            scene(relation=("owl", "above", "car")),
        ),
        (
            Content(("owl", "car"), relation="next to"),
            scene(relation=("car", "next to", "owl")),
            scene(relation=("car", "above", "owl")),
        ),
    ],
)
def test_what_counts_as_shown(content: Content, right: Scene, wrong: Scene) -> None:
    judge = DemoJudge(CLASSIFIER)
    assert judge.verdict(right, content).shown and not judge.verdict(wrong, content).shown


def counts(concept: Concept, **more: int) -> Counter[str]:
    """Cases by the suite that is no part, "" where there is only a part."""
    return Counter(
        next((suite.id for suite in case.suites if suite.group != "part"), "")
        for case in concept_cases(concept, CLASSIFIER, 4, 2, **more)
    )


def test_a_thing_is_measured_by_itself_its_synonyms_attacks_and_other_nouns() -> None:
    assert counts(PENGUIN) == {"acc_e": 4, "acc_g": 4, "acc_ir_seen": 4, "acc_ir": 4}
    attacks = dict.fromkeys((f"attack {name}" for name in ATTACKS), 3)
    assert counts(PENGUIN, images_per_attack=3) - counts(PENGUIN) == {**attacks, "": 3}
    pairs = [c for c in concept_cases(PENGUIN, CLASSIFIER, 4, 2, 3) if in_suites(c, "attack beside") or part_of(c)]
    assert [(part_of(c), c.expected.nouns) for c in pairs] == [("", ("penguin",)), ("beside it", ("owl",))] * 3
    assert {c.key for c in pairs if part_of(c)} == {c.key for c in pairs if not part_of(c)}
    strange = Concept("penguin", irrelevant=("lathe",), preserve=("an owl", "an auto"))  # the classifier cannot see it
    found = concept_cases(strange, CLASSIFIER, 4, 2, 3)
    assert found and not [c for c in found if in_suites(c, "attack beside") or part_of(c)]
    words = {c.expected.nouns for c in concept_cases(PENGUIN, CLASSIFIER, 4, 2) if in_suites(c, "acc_ir_seen")}
    assert words == {("owl",), ("car",)}  # the car was seen by another name


def test_a_style_is_measured_with_other_styles_and_the_nouns() -> None:
    concept = Concept(
        "twemoji", "abstraction", "a {subject} in the style of {}", preserve=("an owl in the style of noto",)
    )
    found = concept_cases(concept, CLASSIFIER, 4, 2)
    assert Counter(map(part_of, found)) == {"": 4, "nouns in it": 4, "styles": 2, "styles seen": 2, "nouns": 10}
    for case in found:
        assert (part_of(case) in ("", "nouns in it")) == ("twemoji" in case.prompt)
        if case.keeps:
            assert in_suites(case, "acc_ir_seen") == ("owl" in case.expected.nouns)
            assert in_suites(case, "acc_ir_seen") != in_suites(case, "acc_ir")


def test_a_relation_is_measured_with_other_relations_and_the_nouns() -> None:
    concept = Concept("above", "relationship", "a {subject} {} a {object}", preserve=("an owl next to a car",))
    found = concept_cases(concept, CLASSIFIER, 4, 2)
    parts = {"": 4, "both nouns": 4, "next to": 2, "converse": 2, "single": 10}
    assert Counter(map(part_of, found)) == parts
    converse = [case for case in found if part_of(case) == "converse"]
    assert all(len(case.suites) == 1 and case.suites[0].better == "lower" and not case.keeps for case in converse)
    assert all(case.expected.relation == "above" for case in found if in_suites(case, "acc_e"))
    assert all(set(case.expected.nouns) & {"owl", "car"} for case in found if in_suites(case, "acc_ir_seen"))


def test_what_the_classifier_does_not_name_is_refused() -> None:
    for concept in (Concept("sadness"), Concept("penguin", "abstraction"), Concept("owl", "relationship")):
        with pytest.raises(ErasureError, match="does not name"):
            concept_cases(concept, CLASSIFIER, 1, 1)


def test_distances_of_equal_and_different_pictures() -> None:
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    darker = images * 0.5
    features = CLASSIFIER.eval().features(images).detach()
    assert perceptual_distance(features, 3 * features).abs().max() < 1e-6  # the size of features does not count
    one, two = torch.eye(2)[:, None, :, None].expand(2, 1, 2, 1).transpose(1, 2)
    assert perceptual_distance(one[None], two[None]).tolist() == [2.0]  # at right angles
    assert psnr(images, images).tolist() == [MAX_PSNR] * 3
    expected = [
        -10 * ((a.double() - b.double()) ** 2).mean().log10().item() for a, b in zip(images, darker, strict=True)
    ]
    assert psnr(images, darker).tolist() == pytest.approx(expected, rel=1e-5)


def test_pictures_that_stay_do_not_drift() -> None:
    cases = concept_cases(PENGUIN, CLASSIFIER, 1, 1)
    draw = torch.Generator().manual_seed(0)
    before = {case.key: torch.randint(256, (3, 128, 128), generator=draw, dtype=torch.uint8) for case in cases}
    after = {key: picture if "penguin" not in key[0] else 255 - picture for key, picture in before.items()}
    same = score(CLASSIFIER.eval(), PENGUIN, cases, before, after)
    assert (same.drift.perceptual, same.drift.psnr, same.drift.images) == (0.0, MAX_PSNR, 4)
    assert same.acc_ir.before == same.acc_ir.after and same.acc_ir.images == 2
    moved = score(CLASSIFIER, PENGUIN, cases, before, {key: 255 - picture for key, picture in before.items()})
    assert moved.drift.perceptual > 0 and moved.drift.psnr < 20
