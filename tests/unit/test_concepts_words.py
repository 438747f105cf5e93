"""Words from the real WordNet (Debian's files), with and without a closed vocabulary, and without WordNet at all."""

from __future__ import annotations

import functools
import hashlib
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nltk
import pytest

from training.concepts import (
    WordNetMissing,
    download_wordnet,
    irrelevant_words,
    make_concept,
    senses,
    vocabulary_of,
    wordnet,
)
from training.concepts.matching import contains
from training.concepts.reading import phrases_of
from training.concepts.wordnet import assemble_wordnet
from training.concepts.words import common_words, mentions, related, same, synonyms_of
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
    assert synonyms_of("car") == ("auto", "automobile", "motorcar")  # not "machine"
    assert synonyms_of("CAR") == synonyms_of("car")
    assert "railcar" not in synonyms_of("car")
    assert synonyms_of("cat") == ("kitty",)  # "true cat" holds the phrase itself
    assert synonyms_of("Pikachu") == ()
    assert synonyms_of("soccer ball") == ()
    assert synonyms_of("car", lambda w: w != "auto") == ("automobile", "motorcar")


def test_persons_come_last_unless_their_name_is_meant():
    assert senses("crane")[0].lexname in ("noun.animal", "noun.artifact")
    assert "Stephen Crane" in senses("Crane")[0].words and "Stephen Crane" not in synonyms_of("crane")


def test_a_sense_is_chosen_by_its_number():
    found = senses("crane")
    assert [s.number for s in found] == list(range(1, len(found) + 1))
    bird = next(s.number for s in found if s.lexname == "noun.animal")
    machine = next(s.number for s in found if s.lexname == "noun.artifact")
    near = {n: wordnet.similarity("crane", "swan", n) for n in (bird, machine)}
    assert near[bird] > 0.8 > near[machine]
    assert related("bird", "crane", sense=bird) and not related("bird", "crane", sense=machine)
    words = {n: irrelevant_words("crane", k=9, sense=n) for n in (bird, machine)}
    assert words[bird] != words[machine]
    assert make_concept("crane", sense=bird).irrelevant == irrelevant_words("crane", sense=bird)
    assert set(make_concept("rock", sense=2).synonyms) <= set(senses("rock")[1].words)
    verb = next(s for s in found if s.lexname.startswith("verb."))
    assert make_concept("crane", sense=verb.number).irrelevant  # a verb has no distance to nouns: any words
    shown = found[0].to_dict()
    assert shown["gloss"] and shown["visual"] is True and shown["number"] == 1 and isinstance(shown["words"], list)


def test_a_relations_opposite_takes_its_place():
    """It comes first where the vocabulary knows it, whatever else the seed draws, and only of relations."""
    for seed in range(5):
        words = irrelevant_words("Above", seed, kind="relationship")
        assert words[0] == "below" and len(set(words)) == 3
    drawn = irrelevant_words("above", kind="relationship", vocabulary=lambda w: w in ("next to", "behind"))
    assert set(drawn) == {"next to", "behind"}
    assert irrelevant_words("above", k=1, kind="relationship") == ("below",)
    assert len(irrelevant_words("holding", kind="relationship")) == 3


def test_threads_do_not_read_each_others_lines():
    """Routes and nodes ask at the same time, while NLTK's reader seeks in one open file."""
    words = common_words()["concrete"][:120]
    wordnet._reader.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(senses, [*words, *reversed(words)]))
    assert found[: len(words)] == found[: len(words) - 1 : -1] and all(found)
    assert all(s.words and s.gloss for one in found for s in one)


def test_a_sense_that_is_not_there():
    count = len(senses("crane"))
    with pytest.raises(ConceptError, match=f"choose a number from 1 to {count}"):
        make_concept("crane", sense=count + 1)
    with pytest.raises(ConceptError, match="choose a number"):
        make_concept("crane", synonyms=["derrick"], irrelevant=["owl"], sense=0)
    with pytest.raises(ConceptError, match="leave the sense at 1"):
        make_concept("Pikachu", sense=2)


def test_singular_and_plural_are_one_word():
    for one, many in [
        ("mouse", "Mice"),
        ("glass", "glasses"),
        ("knife", "knives"),
        ("lady", "ladies"),
        ("fox", "foxes"),
    ]:
        assert same(one, many) and same(many, one)
        assert related(many, one) and related(one, many)
    assert same("soccer ball", "soccer balls") and mentions("two Soccer Balls, please", "soccer ball")
    assert mentions("a leaf", "leaves") and mentions("Pikachus", "Pikachu")
    assert not mentions("a carrot", "car") and not mentions("a ball of soccer", "soccer ball")
    assert not mentions("a c and cs", "c++") and not same("tennis ball", "ball")


def test_several_spellings_are_one_concept():
    assert phrases_of(" Coca-Cola |a  Coca Cola| coke|COKE | ") == ("Coca-Cola", "Coca Cola", "coke")
    assert phrases_of("a horse | on", "relationship") == ("a horse", "on") and phrases_of(" | ") == ()
    made = make_concept("car | jalopy | auto", irrelevant=["owl"])
    assert made.phrase == "car" and made.synonyms == ("jalopy", "auto", "automobile", "motorcar")
    assert make_concept("car | jalopy", synonyms=[], irrelevant=["owl"]).synonyms == ("jalopy",)
    assert not any(mentions(prompt, "jalopy") for prompt in made.preserve)


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
    assert synonyms_of("car") == ("auto", "automobile", "motorcar")  # checked by hand, and in the pack
    for call in (lambda: synonyms_of("llama"), lambda: irrelevant_words("car"), lambda: make_concept("car")):
        with pytest.raises(WordNetMissing, match=r"nltk\.downloader wordnet"):
            call()
    assert issubclass(WordNetMissing, ConceptError)
    concept = make_concept("car", synonyms=["auto"], irrelevant=["dog", "tree", "bus"])
    assert concept.synonyms == ("auto",) and len(concept.preserve) > 10
    assert not any(contains(p, "car") or contains(p, "auto") for p in concept.preserve)
    assert same("glass", "glasses") and same("mouse", "mice") and not same("mouse", "house")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def local_network(monkeypatch: pytest.MonkeyPatch):
    """Lets NLTK ask a server on this machine, which it takes for an attack otherwise."""
    monkeypatch.setattr("nltk.pathsec.ENFORCE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.filterwarnings("ignore:Security Violation")
def test_wordnet_is_fetched_from_a_real_server(no_wordnet, local_network, wordnet_data: Path, tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    files = list((wordnet_data / "corpora" / "wordnet").iterdir())
    with zipfile.ZipFile(site / "wordnet.zip", "w") as archive:
        for file in files:
            archive.write(file, f"wordnet/{file.name}")
    packed = (site / "wordnet.zip").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        facts = {
            "id": "wordnet",
            "name": "WordNet",
            "subdir": "corpora",
            "url": f"{url}/wordnet.zip",
            "unzip": "0",
            "size": len(packed),
            "unzipped_size": sum(file.stat().st_size for file in files),
            "checksum": hashlib.md5(packed).hexdigest(),
            "sha256_checksum": hashlib.sha256(packed).hexdigest(),
        }
        package = " ".join(f'{name}="{value}"' for name, value in facts.items())
        (site / "index.xml").write_text(f"<nltk_data><packages><package {package}/></packages></nltk_data>")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        download_wordnet(f"{url}/index.xml")
        server.shutdown()
    assert wordnet.available() and senses("dog")[0].lexname == "noun.animal"
    download_wordnet("http://127.0.0.1:1/index.xml")  # nothing is fetched that is there


@pytest.mark.filterwarnings("ignore:Security Violation")
@pytest.mark.parametrize("index", ["http://127.0.0.1:1/index.xml", "no address"])
def test_wordnet_cannot_be_fetched(no_wordnet, local_network, capfd, index: str):
    with pytest.raises(ConceptError, match="could not be fetched: check the internet connection") as caught:
        download_wordnet(index)
    assert "\n" not in str(caught.value) and not wordnet.available() and capfd.readouterr() == ("", "")


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
