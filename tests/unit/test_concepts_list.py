"""Two hundred concepts as people type them (concepts_200.json, judged by hand before the code was run on them): their
synonyms, their grammar, and the prompts that keep what stands beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training.concepts import Concept, make_concept, plural
from training.concepts.lexicon import category_of, folded, names_of, safety_concept
from training.concepts.matching import occurrences

CONCEPTS = json.loads((Path(__file__).parent / "concepts_200.json").read_text(encoding="utf-8"))
PRECISION = 0.98
RECALL = 0.9


@pytest.fixture(scope="module")
def made() -> dict[str, Concept]:
    return {entry["phrase"]: make_concept(entry["phrase"], entry["kind"]) for entry in CONCEPTS}


def test_a_person_accepts_the_synonyms(made: dict[str, Concept]) -> None:
    """A wrong synonym erases something else: "machine" for a car, "arm" for a weapon."""
    taken, wrong, expected, missed = 0, [], 0, []
    for entry in CONCEPTS:
        synonyms = made[entry["phrase"]].synonyms
        accepted = {folded(word) for word in entry["accepted"]}
        taken += len(synonyms)
        wrong += [f"{entry['phrase']}: {word}" for word in synonyms if folded(word) not in accepted]
        offered = {folded(word) for word in (*synonyms, made[entry["phrase"]].phrase)}
        expected += len(entry["expected"])
        missed += [f"{entry['phrase']}: {word}" for word in entry["expected"] if folded(word) not in offered]
    assert taken > 120, "the measure needs words to be measured"
    assert len(wrong) <= (1 - PRECISION) * taken, wrong
    assert len(missed) <= (1 - RECALL) * expected, missed


@pytest.mark.parametrize("entry", CONCEPTS, ids=lambda entry: entry["phrase"])
def test_the_prompt_is_english(entry: dict, made: dict[str, Concept]) -> None:
    concept = made[entry["phrase"]]
    if entry["kind"] == "relationship":  # its example has things of its own choice at either end
        assert re.fullmatch(rf"a cat {re.escape(concept.phrase)} an? \w+", entry["example"])
        assert re.fullmatch(rf"a cat {re.escape(concept.phrase)} a (?:dog|house)", concept.prompt())
    else:
        assert concept.prompt() == entry["example"]
    if entry["kind"] == "entity":
        assert plural(concept.phrase) == entry["plural"]


@pytest.mark.parametrize("category", ["person", "character", "brand", "artist", "place", "safety"])
def test_most_names_are_known_for_what_they_are(category: str, made: dict[str, Concept]) -> None:
    mine = [entry for entry in CONCEPTS if entry["category"] == category]
    known = [e for e in mine if category_of(made[e["phrase"]].phrase, e["kind"]) == category]
    assert len(mine) >= 6 and len(known) >= 0.8 * len(mine), [e["phrase"] for e in mine if e not in known]


@pytest.mark.parametrize(
    "entry", [e for e in CONCEPTS if e["category"] in ("person", "character", "brand")], ids=lambda e: e["phrase"]
)
def test_half_of_what_is_kept_of_a_name_are_names_of_its_sort(entry: dict, made: dict[str, Concept]) -> None:
    """Who erases one actor keeps the others."""
    concept = made[entry["phrase"]]
    others = [name for name in names_of(entry["category"]) if folded(name) != folded(concept.phrase)]
    others = [re.sub("^the ", "", name) for name in others]
    showing = [prompt for prompt in concept.preserve if any(occurrences(prompt, name) for name in others)]
    assert len(showing) >= len(concept.preserve) / 2
    assert not any(occurrences(prompt, concept.phrase) for prompt in concept.preserve)


def test_what_is_kept_of_nudity_are_clothed_people(made: dict[str, Concept]) -> None:
    concept, neighbours = made["Nudity"], safety_concept("nudity").neighbours
    showing = [prompt for prompt in concept.preserve if any(occurrences(prompt, each) for each in neighbours)]
    assert len(showing) >= len(concept.preserve) / 2


def test_what_is_kept_of_a_style_are_other_styles(made: dict[str, Concept]) -> None:
    for phrase, category in (("by Monet", "artist"), ("anime", "style")):
        concept = made[phrase]
        styled = [prompt for prompt in concept.preserve if "in the style of" in prompt]
        assert len(styled) >= len(concept.preserve) / 5
        names = names_of(category)
        assert all(any(occurrences(prompt, name) for name in names) for prompt in styled)
