"""Words from T5 pieces, against the pieces' own text, with the demo model's tokenizer and the host's of Flux.1."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from training.errors import ConceptError
from training.inspection.words import PromptWords, read_prompt

LENGTH = 48
PARTS = [
    "cat",
    "Cat",
    "CAT",
    "teddy bear",
    "soccer ball",
    "don't",
    "well-known",
    "x-ray",
    "café",
    "naïve",
    "Straße",
    "ﬁne",
    "ｗｉｄｅ",
    "½",
    "3.5",
    "1,000",
    "#1",
    "e.g.",
    "U.S.A.",
    "猫が好き",
    "北京",
    "ภาษาไทย",
    "Привет",
    "😀",
    "👩‍🚀",
    "—",
    "...",
    "?!",
    "(red)",
    '"quoted"',
    "'single'",
    "semi;colon",
    "a/b",
    "C++",
    "state-of-the-art",
    "antidisestablishmentarianism",
    "Xylophone",
    "cat",
    "cat",
    "on a",
    "next to",
    "the",
    ",",
    ".",
    ":",
    "&",
    "e\u0301t\u00e9",
    "\u00a0",
    "  ",
    "\n",
]


@pytest.fixture(scope="module", params=["demo", "flux"])
def tokenizer(request: pytest.FixtureRequest, demo_folder: Path, host_folder: Path):
    folder = (
        demo_folder / "tokenizer_2" if request.param == "demo" else host_folder / "comfy/text_encoders/t5_tokenizer"
    )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def random_prompts(count: int) -> list[str]:
    rng = random.Random(5)
    prompts = []
    for _ in range(count):
        parts = [rng.choice(PARTS) for _ in range(rng.choice((1, 3, 8, 14, 40)))]
        prompts.append("".join(part + rng.choice((" ", " ", " ", ", ", "")) for part in parts))
    return prompts


def plain(text: str) -> str:
    """As SentencePiece compares text: NFKC, no white space, no invisible characters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text))
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc", "Zs"))


def check_rebuilds(words: PromptWords) -> None:
    """Words in order, nothing between them but white space, what is cut after them."""
    at = 0
    for word in words.words:
        assert words.prompt[at : word.start].strip() == ""
        assert words.prompt[word.start : word.end] == word.text
        assert not any(c.isspace() for c in word.text)
        at = word.end
    assert words.prompt[at:].strip() == words.cut


def test_every_token_belongs_to_the_right_word(tokenizer) -> None:
    unknown = tokenizer.unk_token_id
    compared = repeated = cut = 0
    for prompt in random_prompts(200):
        words = read_prompt(tokenizer, prompt, LENGTH)
        ids = tokenizer(prompt, truncation=True, max_length=LENGTH).input_ids
        assert [*words.ids, tokenizer.eos_token_id] == ids
        check_rebuilds(words)
        # each token once, in order
        assert [token for word in words.words for token in word.tokens] == list(range(words.end))
        # what the pieces themselves say
        for n, word in enumerate(words.words):
            pieces = [words.ids[token] for token in word.tokens]
            whole = n + 1 < len(words.words) or not words.cut
            if unknown in pieces or not whole or words.end == LENGTH - 1:
                continue
            said = "".join(tokenizer.convert_ids_to_tokens(pieces)).replace("▁", "")
            if plain(said) or plain(word.text):
                assert plain(said) == plain(word.text), (prompt, word)
                compared += 1
        texts = [word.text for word in words.words]
        repeated += len(texts) != len(set(texts))
        cut += bool(words.cut)
    assert compared > 500 and repeated > 30 and cut > 10  # all kinds were met


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat, next to", ["a", "cat", ",", "next", "to"]),
        ("don't stop!", ["don't", "stop", "!"]),
        ("(well-known)", ["(", "well-known", ")"]),
        ("", []),
        ("   ", []),
    ],
)
def test_what_counts_as_a_word(tokenizer, prompt: str, expected: list[str]) -> None:
    assert [word.text for word in read_prompt(tokenizer, prompt, LENGTH).words] == expected


def test_a_phrase_has_all_its_occurrences(tokenizer) -> None:
    words = read_prompt(tokenizer, "A red car and a Red Car, no redcar", LENGTH)
    tokens = words.phrase("red car").tokens
    by_text = [word.text for word in words.words if set(word.tokens) & set(tokens)]
    assert by_text == ["red", "car", "Red", "Car"]
    with pytest.raises(ConceptError, match="does not contain"):
        words.phrase("blue")


def test_segments_are_tokenised_one_by_one(tokenizer) -> None:
    """As the host does with prompt weights: "a (red:1.3) car" becomes three segments."""
    segments = ["a ", "red", " car"]
    words = read_prompt(tokenizer, segments, LENGTH)
    expected = [i for segment in segments for i in tokenizer(segment, add_special_tokens=False).input_ids]
    assert list(words.ids) == expected
    assert [word.text for word in words.words] == ["a", "red", "car"]
    assert [token for word in words.words for token in word.tokens] == list(range(words.end))


def test_positions_after_the_prompt(tokenizer) -> None:
    words = read_prompt(tokenizer, "a cat", LENGTH)
    assert words.end == len(words.ids)
    assert words.padding == range(words.end + 1, LENGTH)


class NoOffsets:
    unk_token_id = 0

    def __call__(self, *_: object, **__: object) -> None:
        raise NotImplementedError


def test_a_slow_tokenizer() -> None:

    with pytest.raises(ConceptError, match="no offsets"):
        read_prompt(NoOffsets(), "a cat", LENGTH)
