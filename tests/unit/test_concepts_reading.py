"""What people type, read as they mean it: capitals, articles, quotes, names, relations; and found again in prompts."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from training.concepts import erase_prompts, make_concept, remarks, token_spans
from training.concepts.concept import TEMPLATES
from training.concepts.grammar import article, spellings
from training.concepts.matching import contains, occurrences
from training.concepts.reading import phrases_of, read
from training.concepts.words import synonyms_for


@pytest.mark.parametrize(
    ("typed", "kind", "phrase", "prompt"),
    [
        ("Car", "entity", "car", "a photo of a car"),
        ("GOLF BALL", "entity", "golf ball", "a photo of a golf ball"),
        ("Golf Ball", "entity", "golf ball", "a photo of a golf ball"),
        ("Red Car", "entity", "red car", "a photo of a red car"),
        ("Nudity", "entity", "nudity", "a photo of nudity"),
        ("nike", "entity", "Nike", "a photo of Nike"),
        ("apple", "entity", "apple", "a photo of an apple"),
        ("Apple", "entity", "Apple", "a photo of Apple"),
        ("hulk", "entity", "hulk", "a photo of a hulk"),
        ("Hulk", "entity", "Hulk", "a photo of Hulk"),
        ("Jack Black", "entity", "Jack Black", "a photo of Jack Black"),
        ("will smith", "entity", "Will Smith", "a photo of Will Smith"),
        ("Turkey", "entity", "Turkey", "a photo of Turkey"),
        ("turkey", "entity", "turkey", "a photo of a turkey"),
        ("X-ray", "entity", "X-ray", "a photo of an X-ray"),
        ("UFO", "entity", "UFO", "a photo of a UFO"),
        ("NASA", "entity", "NASA", "a photo of NASA"),
        ("TVs", "entity", "TVs", "a photo of TVs"),
        ("Jalapeño", "entity", "jalapeño", "a photo of a jalapeño"),
        ("the moon", "entity", "moon", "a photo of the moon"),
        ("the Eiffel Tower", "entity", "Eiffel Tower", "a photo of the Eiffel Tower"),
        ("the Beatles", "entity", "Beatles", "a photo of the Beatles"),
        ("my dog.", "entity", "dog", "a photo of a dog"),
        ("“cat”", "entity", "cat", "a photo of a cat"),
        ("'an umbrella!'", "entity", "umbrella", "a photo of an umbrella"),
        ("Robert Downey Jr.", "entity", "Robert Downey Jr.", "a photo of Robert Downey Jr."),
        ("Mickey’s ears", "entity", "Mickey's ears", "a photo of Mickey's ears"),
        ("c++", "entity", "c++", "a photo of a c++"),
        ("van_gogh", "abstraction", "Van Gogh", "a cat in the style of Van Gogh"),
        ("in the style of Van Gogh.", "abstraction", "Van Gogh", "a cat in the style of Van Gogh"),
        ("a painting by Frida Kahlo", "abstraction", "Frida Kahlo", "a cat in the style of Frida Kahlo"),
        ("anime style", "abstraction", "anime", "a cat in the style of anime"),
        ("hug", "relationship", "hugging", "a cat hugging a dog"),
        ("to hug", "relationship", "hugging", "a cat hugging a dog"),
        ("shake hands", "relationship", "shaking hands with", "a cat shaking hands with a dog"),
        ("holding hands", "relationship", "holding hands with", "a cat holding hands with a dog"),
        ("sits on", "relationship", "sitting on", "a cat sitting on a dog"),
        ("tied with", "relationship", "tied with", "a cat tied with a house"),
        ("dance", "relationship", "dancing with", "a cat dancing with a dog"),
        ("tickle", "relationship", "tickling", "a cat tickling a house"),
        ("next to", "relationship", "next to", "a cat next to a house"),
    ],
)
def test_a_concept_is_read_as_it_is_meant(typed: str, kind: str, phrase: str, prompt: str) -> None:
    made = make_concept(typed, kind)
    assert (made.phrase, made.prompt()) == (phrase, prompt)


@pytest.mark.parametrize(
    ("typed", "kind", "hint"),
    [
        ("cat, dog", "entity", "looks like 2 concepts"),
        ("cat and dog", "entity", "looks like 2 concepts"),
        ("next to", "entity", "choose the kind relationship"),
        ("shake hands", "entity", "choose the kind relationship"),
        ("Van Gogh", "entity", "choose the kind abstraction"),
        ("by Monet", "entity", "choose the kind abstraction"),
        ("watercolor", "entity", "choose the kind abstraction"),
        ("dog", "abstraction", "choose the kind entity"),
        ("Nike", "abstraction", "choose the kind entity"),
        ("behind", "abstraction", "choose the kind relationship"),
        ("car", "relationship", "does not look like a relation"),
        ("naked", "entity", "describes a thing"),
        ("Apple", "entity", "is read as the name"),
    ],
)
def test_what_looks_wrong_is_said(typed: str, kind: str, hint: str) -> None:
    hints = read(typed, kind).hints
    assert any(hint in sentence for sentence in hints), hints


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("car", "entity"),
        ("golf ball", "entity"),
        ("Van Gogh", "abstraction"),
        ("hug", "relationship"),
        ("in", "relationship"),
        ("Nike", "entity"),
        ("Harley and the Davidsons | x", "custom"),
        ("nudity", "entity"),
    ],
)
def test_what_looks_right_is_not_remarked_on(typed: str, kind: str) -> None:
    assert [hint for hint in read(typed, kind).hints if "concepts" not in hint] == []


@pytest.mark.parametrize(
    ("word", "before"),
    [
        ("hour", "an "),
        ("unicorn", "a "),
        ("umbrella", "an "),
        ("European city", "a "),
        ("MRI scanner", "an "),
        ("SUV", "an "),
        ("honest man", "an "),
        ("one-eyed cat", "a "),
        ("Uzi", ""),
        ("heirloom", "an "),
        ("water", ""),
        ("orange juice", ""),
        ("forest fire", "a "),
        ("jewelry", ""),
        ("scissors", ""),
        ("mice", ""),
        ("two cars", ""),
        ("Tom Hanks", ""),
        ("moon", "the "),
        ("Mount Fuji", ""),
        ("猫", ""),
        ("naked", ""),
    ],
)
def test_articles(word: str, before: str) -> None:
    assert article(word) == before


@pytest.mark.parametrize(
    "text",
    ["a cat by Van Gogh", "van_gogh, oil", "a Van-Gogh painting", "VAN  GOGH", "a van‑gogh", "x_van_gogh_y"],
)
def test_a_name_is_found_however_it_is_typed(text: str) -> None:
    (start, end) = occurrences(text, "Van Gogh")[0]
    assert text[start:end].lower().replace("_", " ").replace("-", " ").replace("‑", " ").split() == ["van", "gogh"]


def test_apostrophes_and_accents_are_those_of_one_word() -> None:
    assert contains("a McDonald’s sign", "McDonald's") and contains("a McDonald's sign", "McDonald’s")
    decomposed = unicodedata.normalize("NFD", "a painting by Dalí, oil")
    ((start, end),) = occurrences(decomposed, "Dalí")
    assert unicodedata.normalize("NFC", decomposed[start:end]) == "Dalí"
    assert contains("by Dalí", unicodedata.normalize("NFD", "Dalí"))
    assert not contains("a scar", "car") and not contains("cars", "car") and not contains("van gogher", "Van Gogh")


def test_a_slip_has_the_article_of_the_word_that_is_meant() -> None:
    found = [
        p.text
        for seed in range(9)
        for p in erase_prompts(["ukulele"], "a {}", "entity", ["dog"], 24, seed, None, False)
    ]
    assert not any(text.startswith("an u") for text in found)


def test_prompts_hold_a_word_in_other_capitals() -> None:
    """T5 reads "Golf Ball" as other words than "golf ball"."""
    found = {p.phrase for p in erase_prompts(["golf ball"], TEMPLATES["entity"], "entity", ["dog"], 48, 0)}
    assert {"golf ball", "Golf Ball", "Golf ball", "golf balls"} <= found
    assert spellings("Vincent van Gogh")[-1] == "vincent van gogh" and "Vincent Van Gogh" not in spellings("van")
    plain = erase_prompts(["golf ball"], TEMPLATES["entity"], "entity", ["dog"], 48, 0, capitals=False)
    assert not any(p.phrase[0].isupper() for p in plain)


def test_a_relation_is_asked_for_in_all_its_forms() -> None:
    found = erase_prompts(["hugging"], TEMPLATES["relationship"], "relationship", ["man", "woman", "boy"], 24, 0)
    assert {p.phrase for p in found} == {"hugging", "hugs", "hug"}
    assert all(occurrences(p.text, p.phrase) for p in found)
    assert any(p.text.startswith("a ") and " hugs a " in p.text for p in found)
    assert make_concept("hug", "relationship").named_in("two people hug")


@pytest.mark.parametrize(
    ("phrase", "kind", "never"),
    [
        ("car", "entity", {"machine"}),
        ("bicycle", "entity", {"wheel", "cycle"}),
        ("Hulk", "entity", {"whale"}),
        ("hulk", "entity", {"whale", "giant"}),
        ("weapon", "entity", {"arm"}),
        ("breasts", "entity", {"chests"}),
        ("red", "entity", {"Bolshevik"}),
        ("children", "entity", {"fry", "fries"}),
        ("castle", "entity", {"palace"}),
        ("cigarette", "entity", {"fag", "butt"}),
        ("toilet", "entity", {"can", "john"}),
        ("rat", "entity", {"git"}),
        ("sword", "entity", {"brand"}),
        ("doctor", "entity", {"Dr."}),
        ("dog", "entity", {"Canis familiaris"}),
        ("behind", "relationship", {"ass", "buttocks"}),
        ("chasing", "relationship", {"dog"}),
        ("holding", "relationship", {"retention"}),
        ("cop", "entity", {"bull"}),
    ],
)
def test_shameful_synonyms_are_not_taken(phrase: str, kind: str, never: set[str]) -> None:
    assert not {word.lower() for word in make_concept(phrase, kind).synonyms} & {word.lower() for word in never}


def test_what_is_left_out_can_be_taken_in() -> None:
    concept = make_concept("weapon", synonyms=[])
    left_out = dict(remarks(concept, "weapon").left_out)
    assert left_out["gun"] == "narrower" and left_out["weaponry"] == ""
    machine = dict(synonyms_for("motorcar").left_out)
    assert machine["machine"] == "ambiguous"
    taken = make_concept("weapon", synonyms=["gun"])
    assert "gun" not in dict(remarks(taken, "weapon").left_out)
    assert not any("fag" in word for word, _ in synonyms_for("cigarette").left_out)


def test_phrases_in_bars_are_spellings_of_one() -> None:
    assert phrases_of("The Moon | moon | the Moon", "entity") == ("moon",)


def test_a_phrase_with_an_underscore_is_located() -> None:
    folder = Path(__file__).parents[2] / "example_models" / "flux-emoji" / "tokenizer_2"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert token_spans(tokenizer, "a photo of a soccer_ball", "soccer ball", 32)
