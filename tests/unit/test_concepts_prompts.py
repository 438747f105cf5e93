"""Templates, shuffles, preservation prompts, token spans and the Concept itself."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training.concepts import (
    Concept,
    erase_prompts,
    forms_of,
    make_concept,
    misspelt,
    occurrences,
    plural,
    require_span,
    shuffle,
    span_mask,
    substitute,
    token_spans,
    without,
)
from training.concepts.grammar import spellings
from training.concepts.matching import contains
from training.concepts.prompts import fill, preservation_prompts
from training.concepts.words import is_word
from training.errors import ConceptError

WORDS = ["car", "soccer", "ball", "a", "photo", "of", "on", "blue", "background", "giraffe"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Built as T5's: a unigram model over ▁-marked pieces, words in several pieces, an end token, unknowns."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{w}", -3.0) for w in WORDS if w != "giraffe"]
    pieces += [("▁gir", -4.0), ("affe", -4.0)]
    pieces += [(c, -9.0) for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'()-"]
    model = Tokenizer(models.Unigram(pieces, unk_id=2))
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    model.decoder = decoders.Metaspace()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def texts_of(tokenizer, prompt: str, phrase: str, length: int = 64) -> list[str]:
    """What the tokens of each span spell, without spaces: an independent reading of the spans."""
    ids = tokenizer(prompt, truncation=True, max_length=length).input_ids
    spans = token_spans(tokenizer, prompt, phrase, length)
    return ["".join(tokenizer.convert_ids_to_tokens(ids[a:b])).replace("▁", "") for a, b in spans]


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a photo of a car", "car", ["car"]),
        ("car, a Car! (CAR) on a car.", "car", ["car", "Car", "CAR", "car"]),
        ("a car's photo of cars, a cart, scar", "car", ["car"]),
        ("a soccer  ball on a blue ball", "soccer ball", ["soccerball"]),
        ("a soccer ball on a blue ball", "ball", ["ball", "ball"]),
        ("a giraffe, giraffe", "giraffe", ["giraffe", "giraffe"]),
        ("a photo of a car", "ball", []),
        ("", "car", []),
    ],
)
def test_spans_spell_the_phrase(tokenizer, prompt: str, phrase: str, expected: list[str]):
    assert texts_of(tokenizer, prompt, phrase) == expected


def test_spans_of_words_in_several_pieces(tokenizer):
    assert token_spans(tokenizer, "a giraffe", "giraffe", 64) == [(1, 3)]
    ids = tokenizer("a giraffe").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁gir", "affe", "</s>"]


def test_spans_are_cut_off_where_the_encoder_cuts(tokenizer):
    prompt = "a photo of a car on a soccer ball"  # 9 tokens and the end token
    assert token_spans(tokenizer, prompt, "soccer ball", 10) == [(7, 9)]
    assert token_spans(tokenizer, prompt, "soccer ball", 9) == [(7, 8)]  # the end token takes the last place
    assert token_spans(tokenizer, prompt, "soccer ball", 8) == []
    assert token_spans(tokenizer, prompt, "car", 6) == [(4, 5)]
    with pytest.raises(ConceptError, match="beyond the 8 tokens"):
        require_span(tokenizer, prompt, "soccer ball", 8)


def test_unspaced_scripts_and_unknowns(tokenizer):
    assert occurrences("一只猫的照片", "猫") == [(2, 3)]
    assert occurrences("фотокот, кот", "кот") == [(9, 12)]
    with pytest.raises(ConceptError, match="does not know"):
        require_span(tokenizer, "a photo of 猫", "猫", 64)
    with pytest.raises(ConceptError, match="does not contain"):
        require_span(tokenizer, "a photo of a car", "ball", 64)


def test_span_mask():
    assert span_mask([(1, 2), (4, 6)], 7).tolist() == [False, True, False, False, True, True, False]
    assert span_mask([], 3).tolist() == [False] * 3


def test_a_phrase_with_regex_characters_is_literal():
    assert occurrences("a c++ and c. d", "c++") == [(2, 5)]
    assert occurrences("cab", "c.b") == []


def test_shuffles_keep_the_phrase_whole_and_every_word():
    prompt = "a photo of a Soccer Ball next to a ball and a soccer ball"
    seen = set()
    for seed in range(50):
        mixed = shuffle(prompt, ["soccer ball"], random.Random(seed))
        assert len(occurrences(mixed, "soccer ball")) >= 2
        assert "Soccer Ball" in mixed and "soccer ball" in mixed
        assert Counter(mixed.split()) == Counter(prompt.split())
        seen.add(mixed)
    assert len(seen) > 45
    assert shuffle(prompt, ["soccer ball"], random.Random(1)) == shuffle(prompt, ["soccer ball"], random.Random(1))


def test_fill_agrees_articles():
    assert fill("a photo of a {}", {"": "apple"}) == "a photo of an apple"
    assert fill("A {} on an {x}", {"": "owl", "x": "car"}) == "An owl on a car"
    assert fill("a photo of a {}", {"": "Pikachu"}) == "a photo of Pikachu"
    assert fill("a {}", {"": "grapes"}) == "grapes" and fill("a {}", {"": "octopus"}) == "an octopus"
    assert fill("a {} on a {}", {"": "bus"}) == "a bus on a bus"


def test_substitute_replaces_every_occurrence():
    assert substitute("a car on a Car, cars", "car", "apple") == "an apple on an apple, cars"
    assert substitute("car a of {x}", "car", "soccer ball") == "soccer ball a of x"


@pytest.mark.parametrize(
    ("prompt", "phrase", "rest"),
    [
        ("a cat in the style of Van Gogh", "Van Gogh", "a cat"),
        ("a cat on a red background in the style of Van Gogh", "van gogh", "a cat on a red background"),
        ("An Art in the style of Picasso, oil", "Picasso", "An Art oil"),
        ("a Van Gogh style painting of a cat", "Van Gogh", "painting of a cat"),
        ("a cat by Monet and a dog by Monet", "Monet", "a cat and a dog"),
        ("Monet", "Monet", ""),
        ("a cat in the garden", "Monet", "a cat in the garden"),
    ],
)
def test_without_takes_out_the_style_and_what_brings_it_in(prompt: str, phrase: str, rest: str):
    assert without(prompt, phrase) == rest


def test_erase_prompts_hold_their_phrase_and_differ():
    found = erase_prompts(["car", "auto"], "a photo of a {}", "entity", ["dog"], 24, seed=0)
    assert len(found) == 24 == len({prompt.text for prompt in found})
    assert found[0] == ("a photo of a car", "car", "car", "")
    assert all(contains(prompt.text, prompt.phrase) for prompt in found)
    counts = Counter(prompt.name for prompt in found)
    assert counts["car"] >= 8 and counts["auto"] >= 8
    assert found == erase_prompts(["car", "auto"], "a photo of a {}", "entity", ["dog"], 24, seed=0)
    assert found != erase_prompts(["car", "auto"], "a photo of a {}", "entity", ["dog"], 24, seed=1)
    straight = erase_prompts(["car"], "a photo of a {}", "entity", [], 12, seed=0, shuffled=False)
    assert all(p.text.endswith(p.phrase) or "background" in p.text for p in straight)


def test_a_thing_is_asked_for_in_numbers_and_beside_others():
    """A model that was erased on single things alone still draws "two cars"."""
    found = erase_prompts(["car", "Lada"], "a photo of a {}", "entity", ["dog", "cat"], 48, seed=0)
    several = [prompt for prompt in found if prompt.phrase.endswith("s")]
    assert len(several) >= 2 and {(p.name, p.phrase) for p in several} == {("car", "cars")}  # a name has no plural
    assert all(re.search(r"\bcars\b", p.text) and p.rest == "" for p in several)
    beside = [prompt for prompt in found if prompt.rest]
    assert len(beside) >= 4 and {prompt.rest for prompt in beside} == {"a dog", "a cat"}
    for prompt in beside:
        assert contains(prompt.text, prompt.name) and contains(prompt.text, prompt.rest.split()[-1])
    assert {prompt.text.index(prompt.name) < prompt.text.index(prompt.rest[2:]) for prompt in beside} == {True, False}
    styles = erase_prompts(["dot"], "a {subject} in the style of {}", "abstraction", ["dog", "cat"], 24, seed=0)
    assert not any(prompt.rest or prompt.phrase.lower() != prompt.name for prompt in styles)
    assert not any(p.rest for p in erase_prompts(["dot"], "people who {}", "custom", ["dog", "cat"], 24, seed=0))


@pytest.mark.parametrize(("kind", "name"), [("entity", "guitar"), ("custom", "guitar"), ("entity", "Mickey Mouse")])
def test_a_thing_is_asked_for_with_slips(kind: str, name: str):
    """A model that was erased without them still draws a "pengiun"."""
    found = erase_prompts([name], "a photo of a {}", kind, ["dog"], 48, seed=0)
    slips = {prompt.phrase for prompt in found if prompt.name == name} - {*forms_of(name), *spellings(name)}
    assert len(slips) >= 3
    for slip in slips:
        assert slip[0].lower() == name[0].lower() and abs(len(slip) - len(name)) <= 1 and not is_word(slip)
    assert all(contains(p.text, p.phrase) for p in found)


def test_a_slip_that_makes_another_word_is_no_prompt_of_the_thing():
    assert is_word("root") and is_word("Bat") and not is_word("rbot")  # of "robot" and "boat"
    written = {misspelt("robot", random.Random(seed)) for seed in range(200)}
    assert {"root", "rboot", "roobt", "robbot"} <= written and "robot" not in written
    found = {p.phrase for seed in range(20) for p in erase_prompts(["robot"], "a {}", "entity", ["dog"], 24, seed)}
    assert "rboot" in found and "root" not in found
    assert misspelt("ox", random.Random(0)) == "oxx" and "猫" in misspelt("猫", random.Random(0))


@pytest.mark.parametrize(
    ("word", "several"),
    [
        ("car", "cars"),
        ("soccer ball", "soccer balls"),
        ("cherry", "cherries"),
        ("toy", "toys"),
        ("fox", "foxes"),
        ("bus", "buses"),
        ("glass", "glasses"),
        ("mouse", "mice"),
        ("polar wolf", "polar wolves"),
        ("sheep", "sheep"),
        ("human", "humans"),
        ("grapes", None),
        ("mice", None),
        ("Nike", None),
        ("Van Gogh", None),
        ("猫", None),
        ("café", "cafés"),
        ("children", None),
        ("scissors", None),
        ("water", None),
        ("thief", "thieves"),
        ("ananas", "ananas"),
        ("jeans", None),
        ("pancreas", "pancreases"),
        ("c++", None),
    ],
)
def test_plurals(word: str, several: str | None):
    assert plural(word) == several


def test_shuffled_erase_prompts_of_styles_and_relations_say_the_same():
    nouns = ["dog", "tree", "cat"]
    styles = erase_prompts(["Van Gogh"], "a {subject} in the style of {}", "abstraction", nouns, 24, seed=0)
    assert any(not p.text.endswith("in the style of Van Gogh") and " style" in p.text for p in styles)
    assert all("in the style of Van Gogh" in p.text or p.text == "Van Gogh" for p in styles if p.phrase == p.name)
    assert {p.phrase for p in styles if p.phrase != p.name} == {"van gogh"}
    relations = erase_prompts(["above"], "a {subject} {} a {object}", "relationship", nouns, 10, seed=0)
    for prompt in relations[1:]:
        match = re.fullmatch(r"(?:a photo of )?a (\w+) above a (\w+)|above", prompt.text)
        assert match and (match[1] is None or match[1] != match[2]), prompt


def test_prompts_keep_to_the_vocabulary():
    words = {"a", "of", "photo", "car", "dog", "tree", "red", "on", "background"}
    known = lambda phrase: all(w in words for w in phrase.split())  # noqa: E731
    kept = preservation_prompts(["dog", "tree"], "a photo of a {}", "entity", ["dog", "tree"], 12, 0, known)
    asked = erase_prompts(["car"], "a photo of a {}", "entity", ["dog"], 8, 0, known)
    erased = [p.text for p in asked]
    assert len(kept) >= 10 and len(erased) == 8
    slips = {p.phrase for p in asked} - {"car"}
    assert {w for p in [*kept, *erased] for w in p.split()} <= words | slips
    assert kept[0] == ""


def concept(**changes) -> Concept:
    return make_concept(
        "car", **{"synonyms": ["automobile"], "irrelevant": ["dog", "tree", "bus"], "preserve": ["a dog"], **changes}
    )


def test_concepts_round_trip_through_json():
    made = concept(kind="relationship", template="a {subject} {} a {object}")
    assert Concept.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made.prompt() == "a cat car a house"
    assert concept().prompt("apple") == "a photo of an apple"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phrase": "  "}, "empty"),
        ({"phrase": "!?"}, "no letter"),
        ({"phrase": " ".join(["word"] * 40)}, "more than 12 words"),
        ({"template": "a photo"}, "must have {}"),
        ({"template": "a {} and {}"}, "must have {}"),
        ({"template": "a {} of {noun}"}, "must have {}"),
        ({"template": "a {} of { noun"}, "brace"),
        ({"kind": "colour"}, "Unknown kind"),
        ({"synonyms": ("",)}, "empty word"),
        ({"irrelevant": ("Car",)}, "cannot be an irrelevant word"),
        ({"irrelevant": ("automobile",)}, "cannot be an irrelevant word"),
        ({"preserve": ("a dog next to an Automobile",)}, "contains the concept"),
        ({"preserve": ("a {dog}",)}, "may not contain"),
    ],
)
def test_bad_concepts_say_why(changes: dict, message: str):
    data = concept().to_dict() | changes
    with pytest.raises(ConceptError, match=message):
        Concept.from_dict(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "many {}s"}, "does not contain the concept"),
        ({"irrelevant": ["cars"]}, "singular or plural"),
        ({"irrelevant": ["Automobiles"]}, "singular or plural"),
        ({"preserve": ["two cars"]}, "contains the concept"),
        ({"synonyms": [" ".join(["word"] * 40)]}, "more than 12 words"),
    ],
)
def test_a_new_concept_must_satisfy_more_than_an_old_job_file(changes: dict, message: str):
    with pytest.raises(ConceptError, match=message):
        concept(**changes)
    Concept.from_dict(concept().to_dict() | changes)


@pytest.mark.parametrize("phrase", ["", " | ", "!?", " ".join(["word"] * 40), "a {car}"])
def test_bad_phrases_say_why_in_one_sentence(phrase: str):
    with pytest.raises(ConceptError) as caught:
        make_concept(phrase, synonyms=[], irrelevant=["owl"])
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


@pytest.mark.parametrize("phrase", ["猫", "кот", "ßßß", "猫 кот"])
def test_a_concept_that_tokenises_to_unknowns(tokenizer, phrase: str):
    """The words by hand: WordNet lacks them. The concept itself is sound; this model cannot tell it from others."""
    made = make_concept(phrase, synonyms=[], irrelevant=["owl"])
    with pytest.raises(ConceptError, match=r"does not know.*choose words it was trained on"):
        require_span(tokenizer, made.prompt(), made.phrase, 64)


@pytest.mark.parametrize(
    "data", [{}, {"phrase": 3}, {"phrase": "car", "colour": "red"}, {"phrase": "car", "synonyms": "x"}]
)
def test_data_that_is_no_concept(data: dict):
    with pytest.raises(ConceptError):
        Concept.from_dict(data)


def test_the_phrase_is_tidied_and_given_words_are_kept():
    assert concept().phrase == make_concept("  a   car ", synonyms=[], irrelevant=["dog"]).phrase == "car"
    assert make_concept("a", synonyms=[], irrelevant=["dog"]).phrase == "a"
    made = concept(irrelevant=["owl"])
    assert made.irrelevant == ("owl",) and made.synonyms == ("automobile",) and made.preserve == ("a dog",)


def test_fitted_drops_unknown_words_and_fills_what_is_missing():
    known = {"dog", "tree", "a", "photo", "of"}
    fitted = concept(preserve=[]).fitted(lambda text: all(w in known for w in text.split()))
    assert fitted.synonyms == () and fitted.irrelevant == ("dog", "tree")
    assert fitted.preserve and {w for p in fitted.preserve for w in p.split()} <= known
    assert concept().fitted(None) == concept()
