"""Words from the real WordNet (Debian's files), with and without a closed vocabulary, and without WordNet at all."""

from __future__ import annotations

from pathlib import Path

import nltk
import pytest

from training.concepts import (
    WordNetMissing,
    assemble_wordnet,
    irrelevant_words,
    make_concept,
    senses,
    synonyms_of,
    vocabulary_of,
    wordnet,
)
from training.concepts.words import common_words, contains, related
from training.errors import ConceptError


@pytest.fixture(scope="module", autouse=True)
def wordnet_data(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("nltk_data")
    assemble_wordnet(folder)
    before = list(nltk.data.path)
    nltk.data.path[:] = [str(folder)]
    wordnet._reader.cache_clear()
    yield folder
    nltk.data.path[:] = before
    wordnet._reader.cache_clear()


@pytest.fixture
def no_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    wordnet._reader.cache_clear()
    yield
    wordnet._reader.cache_clear()


def test_the_assembled_folder_has_all_45_lexicographer_files(wordnet_data: Path):
    lines = (wordnet_data / "corpora" / "wordnet" / "lexnames").read_text().splitlines()
    assert len(lines) == 45
    assert [line.split()[0] for line in lines] == [f"{i:02d}" for i in range(45)]
    assert senses("dog")[0].lexname == "noun.animal"  # file number 05: the numbering is WordNet's own
    assert senses("run")[-1].lexname.startswith("verb.")


def test_assembling_needs_debians_files(tmp_path: Path):
    with pytest.raises(ConceptError, match="wordnet-base"):
        assemble_wordnet(tmp_path / "out", tmp_path)


def test_senses_that_can_be_seen_come_first():
    found = senses("rose")
    assert found[0].name == "rose.n.01" and found[0].visual
    seen = [s.visual for s in found]
    assert seen == sorted(seen, reverse=True)
    assert {"arise", "rise"} & {w for s in found for w in s.words}  # verbs are listed too, after the nouns
    assert senses("Pikachu") == []


def test_synonyms_are_those_of_the_first_sense():
    assert synonyms_of("car") == ("auto", "automobile", "machine", "motorcar")
    assert synonyms_of("CAR") == synonyms_of("car")
    assert "railcar" not in synonyms_of("car")
    assert synonyms_of("cat") == ()  # its only other word, "true cat", holds the phrase itself
    assert synonyms_of("Pikachu") == ()
    assert synonyms_of("soccer ball") == ()
    assert synonyms_of("car", lambda w: w != "auto") == ("automobile", "machine", "motorcar")


def test_irrelevant_words_lie_at_three_distances():
    words = irrelevant_words("car", seed=3, k=9)
    assert len(set(words)) == 9
    near = [wordnet.similarity("car", w) for w in words]
    groups = [near[0:3], near[3:6], near[6:9]]
    assert max(groups[0]) <= min(groups[1]) and max(groups[1]) <= min(groups[2])
    assert max(groups[0]) < min(groups[2])


def test_irrelevant_words_are_fixed_by_the_seed():
    assert irrelevant_words("penguin", 1) == irrelevant_words("penguin", 1)
    assert len({irrelevant_words("penguin", seed) for seed in range(8)}) > 4


def test_irrelevant_words_keep_to_the_vocabulary_and_off_the_concept():
    known = {"car", "automobile", "cars", "dog", "apple", "house", "bus", "taxi"}
    for seed in range(10):
        words = irrelevant_words("car", seed, k=9, synonyms=("automobile",), vocabulary=known.__contains__)
        assert set(words) <= {"dog", "apple", "house", "bus"}  # a taxi is a car
    assert related("taxi", "car") and related("cars", "car") and related("tennis ball", "ball")
    assert not related("carrot", "car") and not related("bus", "car")


def test_a_name_that_wordnet_lacks_goes_on():
    concept = make_concept("Pikachu")
    assert concept.synonyms == () and len(concept.irrelevant) == 3 and concept.preserve


def test_common_words_are_known_to_wordnet_and_unique():
    lists = common_words()
    assert len(lists["concrete"]) > 250 and len(lists["abstract"]) > 60
    for words in lists.values():
        assert len(set(words)) == len(words)
    missing = [w for w in lists["concrete"] if not senses(w)]
    assert missing == []


def test_contains_looks_at_whole_words():
    assert contains("a Soccer Ball", "ball") and not contains("football", "ball") and contains("ball", "ball")


def test_without_wordnet_one_sentence_and_words_by_hand_still_work(no_wordnet):
    assert not wordnet.available()
    for call in (lambda: synonyms_of("car"), lambda: irrelevant_words("car"), lambda: make_concept("car")):
        with pytest.raises(WordNetMissing, match=r"nltk\.downloader wordnet"):
            call()
    assert issubclass(WordNetMissing, ConceptError)
    concept = make_concept("car", synonyms=["auto"], irrelevant=["dog", "tree", "bus"])
    assert concept.synonyms == ("auto",) and len(concept.preserve) > 10
    assert not any(contains(p, "car") or contains(p, "auto") for p in concept.preserve)


class Encoded:
    def __init__(self, ids: list[int]) -> None:
        self.input_ids = ids


class WordTokenizer:
    """Knows some whole words; others become the unknown token, or letters where `spells`."""

    unk_token_id = 2

    def __init__(self, words: list[str], size: int, spells: bool) -> None:
        self.words, self.size, self.spells = words, size, spells

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, **options) -> Encoded:
        if text in self.words:
            return Encoded([3 + self.words.index(text)])
        return Encoded([100 + ord(c) for c in text] if self.spells else [2])


def test_vocabulary_of_small_and_large_tokenizers():
    closed = vocabulary_of(WordTokenizer(["soccer", "ball"], 600, spells=True))
    assert closed("soccer ball") and not closed("soccer wolf") and not closed("")
    large = vocabulary_of(WordTokenizer(["soccer"], 32100, spells=True))
    assert large("wolf") and large("soccer wolf")
    assert not vocabulary_of(WordTokenizer(["soccer"], 32100, spells=False))("猫")
