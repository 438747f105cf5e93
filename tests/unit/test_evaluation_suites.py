"""Prompt suites: from a concept, and from files whose columns are those of published sets (the rows are our own)."""

from __future__ import annotations

import csv
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from training.concepts import Concept, occurrences
from training.errors import ErasureError
from training.evaluation import Case, concept_cases, keys_of
from training.evaluation.attacks import PREFIXES, SUFFIXES
from training.evaluation.cases import FIRST_SEED, by_suite
from training.evaluation.classifier import DemoClassifier
from training.evaluation.prompt_files import FORMATS, Prompt, read_prompts

BLACK_BOX = {f"attack {name}" for name in ("misspelling", "affixes", "repetition", "shuffle", "number")}
PENGUIN = Concept("penguin", synonyms=("seabird", "flightless bird"), irrelevant=("owl", "car", "house"))


def write(path: Path, header: list[str], *rows: list[object], separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return path


# --- from a concept, for a judge without a vocabulary of its own


def suites(concept: Concept = PENGUIN, images: int = 24, attacks: int | None = None) -> dict[str, list[Case]]:
    found = concept_cases(concept, None, images, 0, images if attacks is None else attacks)
    return {suite.id: cases for suite, cases in by_suite(found).items()}


def test_a_concept_has_its_direct_prompt_all_five_attacks_and_words_to_keep() -> None:
    found = suites(images=6)
    assert set(found) == {"acc_e", "acc_g", "acc_ir", *BLACK_BOX}
    roles = {id: cases[0].suites[0].role for id, cases in found.items()}
    assert roles == {"acc_e": "erase", "acc_g": "generalise", "acc_ir": "keep", **dict.fromkeys(BLACK_BOX, "attack")}
    assert {case.prompt for case in found["acc_e"]} == {"a photo of a penguin"}
    assert [case.seed for case in found["acc_e"]] == list(range(FIRST_SEED, FIRST_SEED + 6))
    assert Counter(case.prompt for case in found["acc_g"]) == {
        "a photo of a seabird": 3,
        "a photo of a flightless bird": 3,
    }
    assert Counter((case.prompt, str(case.expected)) for case in found["acc_ir"]) == {
        ("a photo of an owl", "owl"): 2,
        ("a photo of a car", "car"): 2,
        ("a photo of a house", "house"): 2,
    }
    for cases in found.values():
        assert len(cases) == len(set(cases)) == 6
    fewer = suites(images=6, attacks=2)
    assert {id: len(cases) for id, cases in fewer.items()} == {id: 2 if id in BLACK_BOX else 6 for id in found}
    assert all(fewer[id] == found[id][:2] for id in BLACK_BOX)


def test_attacks_hold_the_phrase_as_they_should() -> None:
    found = suites(images=40)
    for case in found["attack misspelling"]:
        word = case.prompt.removeprefix("a photo of a ")
        assert word != "penguin" and word[0] == "p" and abs(len(word) - 7) <= 1
    affixed = [case.prompt.split()[-1] for case in found["attack affixes"]]
    assert set(affixed) <= {p + "penguin" for p in PREFIXES} | {"penguin" + s for s in SUFFIXES}
    assert sum(word.startswith("penguin") for word in affixed) == 20  # half of each
    assert all(occurrences(case.prompt, "penguin")[1:] for case in found["attack repetition"])
    for case in found["attack shuffle"]:
        assert sorted(case.prompt.split()) == ["a", "a", "of", "penguin", "photo"]
        assert case.prompt != "a photo of a penguin"


def test_all_judges_are_asked_for_the_same_pictures_where_they_can_be() -> None:
    """So that a picture that was generated for one serves the other."""
    asked = set(keys_of(concept_cases(PENGUIN, DemoClassifier(["penguin"], ["noto"]), 6, 0, 6)))
    found = suites(images=6)
    for id in ("acc_e", "attack misspelling", "attack repetition", "acc_g", "attack shuffle"):
        assert set(keys_of(found[id])) <= asked
    assert concept_cases(PENGUIN, None, 6, 0, 6) == concept_cases(PENGUIN, None, 6, 0, 6)


def test_what_a_concept_cannot_give_is_left_out() -> None:
    alone = suites(Concept("soccer ball", "custom", "{}"), images=2)
    assert set(alone) == {"acc_e", *BLACK_BOX} - {"attack shuffle"}


# --- from a file

I2P = ["", "prompt", "categories", "hard", "inappropriate_percentage", "sd_seed", "sd_guidance_scale", "sd_model"]


@pytest.mark.parametrize(
    ("header", "row", "id", "kind", "prompt"),
    [
        (I2P, [0, "a blue boat", "harmless", 0, 0.0, 17, 7.5, "sd"], "i2p", "erase", Prompt("a blue boat", 17)),
        (
            ["case_number", "prompt", "categories", "evaluation_seed", "sd_seed"],
            [0, "a boat", "harmless", 5, 17],
            "i2p",
            "erase",
            Prompt("a boat", 5),
        ),
        (["", "sensitive prompt"], [0, "a red kite"], "ring-a-bell", "attack", Prompt("a red kite", FIRST_SEED)),
        (
            ["", "prompt", "evaluation_seed", "evaluation_guidance"],
            [0, "kite zz", 9, 7.5],
            "p4d",
            "attack",
            Prompt("kite zz", 9),
        ),
        (
            ["target_prompt", "adv_prompt", "clean_prompt"],
            ["a kite", "kyte zz", "a cloud"],
            "mma-diffusion",
            "attack",
            Prompt("kyte zz", FIRST_SEED),
        ),
        (["image_id", "id", "caption"], [7, 8, "Two cups."], "coco", "keep", Prompt("Two cups.", FIRST_SEED)),
        (
            ["case_number", "source", "prompt", "evaluation_seed", "coco_id"],
            [0, "coco", "Two cups.", 3, 7],
            "coco",
            "keep",
            Prompt("Two cups.", 3),
        ),
        (["adv_prompt"], ["kyte zz"], "attack", "attack", Prompt("kyte zz", FIRST_SEED)),
        (["Prompt", "Seed"], ["a cup", "4.0"], "prompts", "erase", Prompt("a cup", 4)),
        (["name", " CAPTION "], ["x", "a cup"], "captions", "keep", Prompt("a cup", FIRST_SEED)),
    ],
)
def test_a_file_is_known_by_its_columns(
    tmp_path: Path, header: list[str], row: list, id: str, kind: str, prompt: Prompt
) -> None:
    suite = read_prompts(write(tmp_path / "some.csv", header, row))
    assert (suite.format, suite.role, suite.prompts, suite.left_out) == (id, kind, (prompt,), 0)
    assert suite.title in {form.title for form in FORMATS}
    assert (suite.suite.id, suite.suite.role, suite.suite.better) == ("file 1", kind, "lower")


def test_quotes_newlines_separators_and_other_letters(tmp_path: Path) -> None:
    texts = ['a "blue" boat', "a boat,\nwith; two\r\nsails\tup", "un été à Rābāṭ 🐧", "ein Schiff, grün"]
    expected = [" ".join(text.split()) for text in texts]
    for separator in ",;\t":
        for encoding in ("utf-8", "utf-8-sig"):
            path = write(
                tmp_path / "a.csv", ["id", "prompt"], *enumerate(texts), separator=separator, encoding=encoding
            )
            assert [prompt.text for prompt in read_prompts(path).prompts] == expected
    (tmp_path / "old.csv").write_bytes(b"\n\nprompt\ra boat\ra kite\r")  # a Mac's line ends, empty lines before
    assert [prompt.text for prompt in read_prompts(tmp_path / "old.csv").prompts] == ["a boat", "a kite"]


def test_rows_without_a_prompt_are_counted_and_seeds_stay_with_their_rows(tmp_path: Path) -> None:
    rows = [["a", 3], ["", 4], ["b", ""], ["   ", 1], ["c", "x"], ["d", -1], ["e", 2**63], ["f", 2**63 - 1], []]
    path = write(tmp_path / "a.csv", ["prompt", "seed"], *rows, ["g"])
    suite = read_prompts(path)
    seeds = {prompt.text: prompt.seed for prompt in suite.prompts}
    assert suite.unusable == 2 and suite.left_out == 0
    assert seeds == {
        "a": 3,
        "b": FIRST_SEED + 2,
        "c": FIRST_SEED + 4,
        "d": FIRST_SEED + 5,
        "e": FIRST_SEED + 6,
        "f": 2**63 - 1,
        "g": FIRST_SEED + 8,
    }


def test_a_long_file_is_sampled_evenly_quickly_and_in_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "long.csv", ["prompt", "seed"], *((f"boat {n} " + "x" * 200, n) for n in range(100_000)))
    before = time.process_time()
    suite = read_prompts(path, 500, seed=1)
    assert time.process_time() - before < 5
    short = write(tmp_path / "short.csv", ["prompt"], *([f"boat {n} " + "x" * 1000] for n in range(5000)))
    tracemalloc.start()
    read_prompts(short, 500)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # of 5 MB
    tracemalloc.stop()
    numbers = [prompt.seed for prompt in suite.prompts]
    assert (len(suite.prompts), suite.left_out) == (500, 99_500)
    assert numbers == sorted(set(numbers)) and all(p.text.startswith(f"boat {p.seed} ") for p in suite.prompts)
    tenths = Counter(number // 10_000 for number in numbers)
    assert all(25 <= tenths[tenth] <= 80 for tenth in range(10))  # 50 expected, 4 standard deviations
    assert read_prompts(path, 500, seed=1) == suite != read_prompts(path, 500, seed=2)
    assert len(read_prompts(path).prompts) == 10_000 and len(read_prompts(path, None).prompts) == 100_000


def test_every_prompt_of_a_short_file_is_drawn_equally_often(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["prompt"], *([f"boat {n}"] for n in range(6)))
    drawn = Counter(prompt.text for seed in range(3000) for prompt in read_prompts(path, 2, seed=seed).prompts)
    assert all(abs(drawn[f"boat {n}"] - 1000) < 130 for n in range(6))  # 5 standard deviations


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n\r\n", "is empty"),
        (
            b"name,age\nx,3\n",
            r"has the columns name, age, none .* known are adv_prompt and target_prompt; sensitive pr",
        ),
        ("prompt\nété\n".encode("latin-1"), "not written in UTF-8"),
        ("prompt\na boat\n".encode("utf-16"), "not written in UTF-8"),
        (b"prompt,seed\n,3\n  ,4\n", 'no prompt in its column "prompt"'),
        (b"prompt\n", 'no prompt in its column "prompt"'),
        (b'prompt\n"' + b"x" * 200_000, "not a CSV file that can be read"),
        (b'prompt\na boat\n"a kite\na cup\n', r"not a CSV file that can be read: .+\(up to line 4\)"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not written in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ErasureError, match=sentence) as raised:
        read_prompts(path)
    assert "bad.csv" in str(raised.value) and "\n" not in str(raised.value)


def test_a_path_that_is_no_file_and_arguments_that_cannot_be(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(ErasureError, match="cannot be read: "):
            read_prompts(path)
    path = write(tmp_path / "a.csv", ["prompt"], ["a boat"])
    with pytest.raises(ErasureError, match="At least one prompt"):
        read_prompts(path, 0)
