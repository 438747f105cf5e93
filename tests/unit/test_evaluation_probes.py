"""What is measured: attacks on the phrase, which picture counts in which share, and how far pictures move."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from demo_model import scenes
from training.concepts import Concept, occurrences
from training.errors import ErasureError
from training.evaluation import ATTACKS, DemoClassifier, Verdict, judge, probes
from training.evaluation.attacks import PREFIXES, SUFFIXES, attacked_prompt
from training.evaluation.erasure import MAX_PSNR, perceptual_distance, psnr
from training.evaluation.probes import Content

NOUNS = ["penguin", "owl", "car", "bus", "crab"]
STYLES = ["noto", "twemoji", "fluent"]
CLASSIFIER = DemoClassifier(NOUNS, STYLES, {"penguin": ["seabird"], "car": ["auto"]})
PENGUIN = Concept("penguin", irrelevant=("owl",), preserve=("an owl", "an auto"))


def verdict(noun: str = "none", style: str = "noto", relation: tuple[str, str, str] = ("none", "", "none")) -> Verdict:
    return Verdict([noun], [style], [relation], torch.zeros(1, 1))


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
        (Content(("owl",)), verdict("owl"), verdict("car")),
        (Content(style="fluent"), verdict("owl", "fluent"), verdict("owl", "noto")),
        (Content(("owl",), "fluent"), verdict("owl", "fluent"), verdict("car", "fluent")),
        (Content(("owl", "car")), verdict(relation=("car", "next to", "owl")), verdict("owl")),
        (Content(("owl",), among=True), verdict("car", relation=("car", "above", "owl")), verdict("owl")),
        (
            Content(("owl", "car"), relation="above"),
            verdict(relation=("owl", "above", "car")),
            verdict(relation=("car", "above", "owl")),
        ),
        (
            Content(("owl", "car"), relation="below"),
            verdict(relation=("car", "above", "owl")),
            verdict(relation=("owl", "above", "car")),
        ),
        (
            Content(("owl", "car"), relation="next to"),
            verdict(relation=("car", "next to", "owl")),
            verdict(relation=("car", "above", "owl")),
        ),
    ],
)
def test_what_counts_as_shown(content: Content, right: Verdict, wrong: Verdict) -> None:
    assert content.shown(right, 0) and not content.shown(wrong, 0)


def shares(concept: Concept, **counts: int) -> Counter[str]:
    return Counter(probe.share for probe in probes(concept, CLASSIFIER, 4, 2, **counts))


def test_a_thing_is_measured_by_itself_its_synonyms_attacks_and_other_nouns() -> None:
    assert shares(PENGUIN) == {"acc_e": 4, "acc_g": 4, "acc_ir_seen": 4, "acc_ir": 4}
    assert shares(PENGUIN, images_per_attack=3) - shares(PENGUIN) == {**dict.fromkeys(ATTACKS, 3), "": 3}
    pairs = [p for p in probes(PENGUIN, CLASSIFIER, 4, 2, 3) if p.share == "beside" or p.part]
    assert [(p.part, p.content.nouns) for p in pairs] == [("", ("penguin",)), ("beside it", ("owl",))] * 3
    assert {(p.prompt, p.seed) for p in pairs if p.part} == {(p.prompt, p.seed) for p in pairs if not p.part}
    strange = Concept("penguin", irrelevant=("lathe",), preserve=("an owl", "an auto"))  # the classifier cannot see it
    assert not [p for p in probes(strange, CLASSIFIER, 4, 2, 3) if p.share == "beside" or p.part]
    words = {p.content.nouns for p in probes(PENGUIN, CLASSIFIER, 4, 2) if p.share == "acc_ir_seen"}
    assert words == {("owl",), ("car",)}  # the car was seen by another name


def test_a_style_is_measured_with_other_styles_and_the_nouns() -> None:
    concept = Concept(
        "twemoji", "abstraction", "a {subject} in the style of {}", preserve=("an owl in the style of noto",)
    )
    found = probes(concept, CLASSIFIER, 4, 2)
    parts = Counter(probe.part for probe in found)
    assert parts == {"": 4, "nouns in it": 4, "styles": 2, "styles seen": 2, "nouns": 10}
    for probe in found:
        assert (probe.part in ("", "nouns in it")) == ("twemoji" in probe.prompt)
        if probe.share.startswith("acc_ir"):
            assert (probe.share == "acc_ir_seen") == ("owl" in probe.content.nouns)


def test_a_relation_is_measured_with_other_relations_and_the_nouns() -> None:
    concept = Concept("above", "relationship", "a {subject} {} a {object}", preserve=("an owl next to a car",))
    found = probes(concept, CLASSIFIER, 4, 2)
    assert Counter(p.part for p in found) == {"": 4, "both nouns": 4, "next to": 2, "converse": 2, "single": 10}
    assert {p.share for p in found if p.part == "converse"} == {""}
    assert all(p.content.relation == "above" for p in found if p.share == "acc_e")
    assert all(set(p.content.nouns) & {"owl", "car"} for p in found if p.share == "acc_ir_seen")


def test_what_the_classifier_does_not_name_is_refused() -> None:
    for concept in (Concept("sadness"), Concept("penguin", "abstraction"), Concept("owl", "relationship")):
        with pytest.raises(ErasureError, match="does not name"):
            probes(concept, CLASSIFIER, 1, 1)


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
    wanted = probes(PENGUIN, CLASSIFIER, 1, 1)
    draw = torch.Generator().manual_seed(0)
    before = {(p.prompt, p.seed): torch.randint(256, (3, 128, 128), generator=draw, dtype=torch.uint8) for p in wanted}
    after = {key: picture if "penguin" not in key[0] else 255 - picture for key, picture in before.items()}
    score = judge(CLASSIFIER.eval(), PENGUIN, wanted, before, after)
    assert (score.drift.perceptual, score.drift.psnr, score.drift.images) == (0.0, MAX_PSNR, 4)
    assert score.acc_ir.before == score.acc_ir.after and score.acc_ir.images == 2
    moved = judge(CLASSIFIER, PENGUIN, wanted, before, {key: 255 - picture for key, picture in before.items()})
    assert moved.drift.perceptual > 0 and moved.drift.psnr < 20
