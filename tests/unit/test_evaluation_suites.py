"""Prompt suites: from a concept, and from files whose columns are those of published sets (the rows are our own)."""

from __future__ import annotations

import csv
import json
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from training.concepts import Concept, occurrences
from training.errors import ErasureError
from training.evaluation import DemoClassifier, probes
from training.evaluation.attacks import PREFIXES, SUFFIXES
from training.evaluation.probes import FIRST_SEED
from training.evaluation.suites import BLACK_BOX, FORMATS, Prompt, Suite, concept_suites, read_prompts

PENGUIN = Concept("penguin", synonyms=("seabird", "flightless bird"), irrelevant=("owl", "car", "house"))


def write(path: Path, header: list[str], *rows: list[object], separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return path


# --- from a concept


def suites(concept: Concept = PENGUIN, **arguments: int) -> dict[str, Suite]:
    return {suite.id: suite for suite in concept_suites(concept, **arguments)}


def test_a_concept_has_its_direct_prompt_all_five_attacks_and_words_to_keep() -> None:
    found = suites(images=6)
    assert set(found) == {"direct", "irrelevant", *BLACK_BOX}
    assert {id: suite.kind for id, suite in found.items() if suite.kind != "attack"} == {
        "direct": "erase",
        "irrelevant": "keep",
    }
    assert {prompt.text for prompt in found["direct"].prompts} == {"a photo of a penguin"}
    assert [prompt.seed for prompt in found["direct"].prompts] == list(range(FIRST_SEED, FIRST_SEED + 6))
    assert Counter(prompt.text for prompt in found["synonyms"].prompts) == {
        "a photo of a seabird": 3,
        "a photo of a flightless bird": 3,
    }
    assert Counter(p.text for p in found["irrelevant"].prompts) == {
        "a photo of an owl": 2,
        "a photo of a car": 2,
        "a photo of a house": 2,
    }
    for suite in found.values():
        assert len(suite.prompts) == len(set(suite.prompts)) == 6


def test_attacks_hold_the_phrase_as_they_should() -> None:
    found = suites(images=40)
    for prompt in found["misspelling"].prompts:
        word = prompt.text.removeprefix("a photo of a ")
        assert word != "penguin" and word[0] == "p" and abs(len(word) - 7) <= 1
    affixed = [prompt.text.split()[-1] for prompt in found["affixes"].prompts]
    assert set(affixed) <= {p + "penguin" for p in PREFIXES} | {"penguin" + s for s in SUFFIXES}
    assert sum(word.startswith("penguin") for word in affixed) == 20  # half of each
    assert all(occurrences(prompt.text, "penguin")[1:] for prompt in found["repetition"].prompts)
    for prompt in found["shuffle"].prompts:
        assert sorted(prompt.text.split()) == ["a", "a", "of", "penguin", "photo"]
        assert prompt.text != "a photo of a penguin"


def test_seed_0_asks_for_the_pictures_that_probes_measure_and_others_for_others() -> None:
    """So that a picture that was generated for one serves the other."""
    asked = {(p.prompt, p.seed) for p in probes(PENGUIN, DemoClassifier(["penguin"], ["noto"]), 6, 0, 6)}
    found = suites(images=6)
    for id in ("direct", "misspelling", "repetition", "synonyms", "shuffle"):
        assert set(found[id].prompts) <= asked
    assert concept_suites(PENGUIN, 6) == concept_suites(PENGUIN, 6)
    for id, other in suites(images=6, seed=1).items():
        assert not {p.seed for p in other.prompts} & {p.seed for p in found[id].prompts}
    assert {p.text for p in suites(images=40, seed=1)["misspelling"].prompts} != {
        p.text for p in suites(images=40)["misspelling"].prompts
    }


def test_what_a_concept_cannot_give_is_left_out() -> None:
    alone = suites(Concept("soccer ball", "custom", "{}"), images=2)
    assert set(alone) == {"direct", "misspelling", "affixes", "repetition", "number"}
    for arguments in ({"images": 0}, {"seed": -1}):
        with pytest.raises(ErasureError, match="at least one picture"):
            concept_suites(PENGUIN, **arguments)


def test_a_suite_survives_json() -> None:
    for suite in concept_suites(PENGUIN, 3):
        assert Suite.from_dict(json.loads(json.dumps(suite.to_dict()))) == suite
    for wrong in ({}, {**suite.to_dict(), "more": 1}, {**suite.to_dict(), "prompts": ["a"]}):
        with pytest.raises(ErasureError, match="no prompt suite"):
            Suite.from_dict(wrong)
    with pytest.raises(ErasureError, match=r'"maybe": choose one of erase, keep, attack'):
        Suite.from_dict({**suite.to_dict(), "kind": "maybe"})


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
    assert (suite.id, suite.kind, suite.prompts, suite.left_out) == (id, kind, (prompt,), 0)
    assert suite.title in {form.title for form in FORMATS}
    other = read_prompts(tmp_path / "some.csv", kind="attack", title="Mine")
    assert (other.kind, other.title, other.prompts) == ("attack", "Mine", suite.prompts)


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
    with pytest.raises(ErasureError, match="Unknown kind"):
        read_prompts(path, kind="maybe")
