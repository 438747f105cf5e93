"""WordNet through NLTK: where its data are, the senses of a phrase, and how near two phrases are."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConceptError

DEBIAN_FOLDER = Path("/usr/share/wordnet")  # Debian's packages wordnet-base and wordnet-sense-index

# WordNet's lexicographer files in the order of their numbers, with the part of speech (1 noun, 2 verb, 3 adjective,
# 4 adverb): the content of the file `lexnames`, which Debian's packages leave out and NLTK needs (lexnames(5WN)).
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
)
_VERBS = (
    "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather"
)
_LEXNAMES = (
    [("adj.all", 3), ("adj.pert", 3), ("adv.all", 4)]
    + [(f"noun.{name}", 1) for name in _NOUNS.split()]
    + [(f"verb.{name}", 2) for name in _VERBS.split()]
    + [("adj.ppl", 3)]
)

# Lexicographer files whose words name something that can be seen; other senses are listed after these.
VISUAL = frozenset(
    f"noun.{name}"
    for name in ("animal", "artifact", "body", "food", "object", "phenomenon", "plant", "person", "shape")
)


Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.RLock()


def _one_at_a_time(function: Function) -> Function:
    """NLTK's reader seeks in one open file: of two threads at once each would read the other's lines."""

    @wraps(function)
    def alone(*args: Any, **options: Any) -> Any:
        with _lock:
            return function(*args, **options)

    return alone  # type: ignore[return-value]


class WordNetMissing(ConceptError):
    """WordNet's data are not in any of NLTK's data folders."""

    def __init__(self) -> None:
        super().__init__(
            "WordNet's data are not installed: run `python -m nltk.downloader wordnet`, or give the synonyms and the "
            "irrelevant words by hand."
        )


def assemble_wordnet(nltk_data: Path, source: Path = DEBIAN_FOLDER) -> Path:
    """Makes `nltk_data`/corpora/wordnet out of Debian's WordNet files plus `lexnames`; returns that folder.

    `nltk_data` must be (or be put) on NLTK's data path, e.g. through the environment variable NLTK_DATA.
    Raises ConceptError where Debian's files are not there.
    """
    if not (source / "data.noun").is_file() or not (source / "index.sense").is_file():
        raise ConceptError(f"No WordNet files in {source}: install Debian's wordnet-base and wordnet-sense-index.")
    target = Path(nltk_data) / "corpora" / "wordnet"
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    lines = [f"{number:02d}\t{name}\t{part}\n" for number, (name, part) in enumerate(_LEXNAMES)]
    (target / "lexnames").write_text("".join(lines), encoding="ascii")
    return target


@_one_at_a_time
def download_wordnet(index: str | None = None) -> None:
    """Fetches WordNet's data (about 11 MB) with NLTK's own downloader into NLTK's data folder, if they are not there.

    Call it only when the user asks for it. `index`: address of an NLTK package index, e.g. a mirror's (default: NLTK's
    own). Raises ConceptError, offline above all.
    """
    if available():
        return
    from nltk.downloader import Downloader

    by_hand = "check the internet connection and that NLTK's data folder can be written, or give the words by hand"
    try:
        Downloader(index).download("wordnet", quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except (OSError, ValueError, SyntaxError) as error:  # XML that cannot be parsed is a SyntaxError
        reason = " ".join(str(error).split())
        raise ConceptError(f"WordNet's data could not be fetched: {by_hand} ({reason}).") from error
    if not available():
        raise ConceptError(f"WordNet's data were fetched but cannot be found: {by_hand}.")


@lru_cache(maxsize=1)
def _reader() -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        with contextlib.suppress(LookupError):
            root = nltk.data.find(name)
            break
    else:
        raise WordNetMissing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that other languages than English are not loaded
        return WordNetCorpusReader(root, None)


@_one_at_a_time
def available() -> bool:
    """Whether WordNet's data can be found now."""
    try:
        _reader()
    except WordNetMissing:
        return False
    return True


@dataclass(frozen=True)
class Sense:
    """One meaning of a phrase: its number in `senses` (from 1), WordNet's name, gloss, lexicographer file, words."""

    number: int
    name: str
    gloss: str
    lexname: str
    words: tuple[str, ...]

    @property
    def visual(self) -> bool:
        return self.lexname in VISUAL

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `visual` says whether it can be seen."""
        return {**dataclasses.asdict(self), "words": list(self.words), "visual": self.visual}


def _synsets(phrase: str) -> list[Any]:
    """Synsets of a phrase, visual nouns first, then other nouns, then the rest; frequency order within each.

    In each, what WordNet writes with a capital comes last unless the phrase has one: a "crane" is no writer.
    """
    key = "_".join(phrase.lower().split())
    rank = {"n": 1, "v": 2, "a": 2, "s": 2, "r": 2}

    def rank_of(synset: Any) -> tuple[int, bool]:
        spelled = [name for name in synset.lemma_names() if name.lower() == key]
        named = phrase == phrase.lower() and bool(spelled) and key not in spelled
        return 0 if synset.lexname() in VISUAL else rank[synset.pos()], named

    return sorted(_reader().synsets(key), key=rank_of)


def senses(phrase: str) -> list[Sense]:
    """All senses of `phrase`, those that can be seen first; empty for names and brands that WordNet lacks.

    Raises WordNetMissing.
    """
    return list(_senses(phrase))


@lru_cache(maxsize=20000)
@_one_at_a_time
def _senses(phrase: str) -> tuple[Sense, ...]:
    return tuple(
        Sense(number, s.name(), s.definition(), s.lexname(), tuple(n.replace("_", " ") for n in s.lemma_names()))
        for number, s in enumerate(_synsets(phrase), 1)
    )


def sense_of(phrase: str, number: int = 1) -> Sense | None:
    """The sense of that number in `senses`; None for number 1 of a phrase that WordNet lacks.

    Raises ConceptError for a number that no sense has; WordNetMissing.
    """
    found = senses(phrase)
    if 1 <= number <= len(found):
        return found[number - 1]
    if found:
        raise ConceptError(f'"{phrase}" has {len(found)} senses in WordNet: choose a number from 1 to {len(found)}.')
    if number != 1:
        raise ConceptError(f'WordNet does not know "{phrase}": leave the sense at 1 and give the synonyms by hand.')
    return None


def _noun(phrase: str, number: int = 1) -> Any:
    """The synset of that number if it is a noun (nouns come first), else None."""
    found = _synsets(phrase)[number - 1 : number]
    return found[0] if found and found[0].pos() == "n" else None


@lru_cache(maxsize=20000)
@_one_at_a_time
def base_form(word: str, part: str = "n") -> str:
    """`word` without its inflection ("cars" → "car"), lower case; unchanged where WordNet knows none. part: n or v."""
    return (_reader().morphy(word.lower().replace(" ", "_"), part) or word.lower()).replace("_", " ")


@lru_cache(maxsize=20000)
@_one_at_a_time
def has(phrase: str, part: str | None = None) -> bool:
    """Whether WordNet has the phrase in small letters as it stands, uninflected: as a word, not as a name. part: n, v,
    a, r, or None for any."""
    key = "_".join(phrase.lower().split())
    return any(name == key for synset in _reader().synsets(key, part) for name in synset.lemma_names())


@lru_cache(maxsize=20000)
@_one_at_a_time
def is_counted_abbreviation(word: str) -> bool:
    """Whether an abbreviation stands for a thing of which there are several: "UFO", "SUV"; not "NASA", "DNA"."""
    found = _reader().synsets(word, "n")
    return (
        bool(found)
        and word in found[0].lemma_names()
        and not found[0].instance_hypernyms()
        and (
            found[0].lexname().removeprefix("noun.")
            not in ("act", "attribute", "communication", "group", "location", "quantity", "state", "substance", "time")
        )
    )


@lru_cache(maxsize=20000)
@_one_at_a_time
def is_place(phrase: str) -> bool:
    """Whether WordNet has the phrase, with these capitals, as the name of a country, a city or the like."""
    key = "_".join(phrase.split())
    return any(
        synset.instance_hypernyms() and synset.lexname() == "noun.location" and key in synset.lemma_names()
        for synset in _reader().synsets(key, "n")
    )


@dataclass(frozen=True)
class Candidate:
    """A word of a sense's own synset. reason: why it is no synonym to be taken unasked ("general", "ambiguous"); ""
    where it is one."""

    word: str
    reason: str = ""


@_one_at_a_time
def candidates(phrase: str, number: int = 1) -> tuple[Candidate, ...]:
    """The other words of one sense of a phrase, each with the reason why it should not be erased with it, if any.

    WordNet lists every word that was ever used in a sense: "machine" for a car, "arm" for a weapon, "whale" for a
    giant. A word is a synonym here only where that sense is its own first one, where texts use it in that sense
    twice as often as in all others together (the counts of tagged texts that come with WordNet, of all parts of
    speech), and where it does not also name what the concept is a kind of. One that the tagged texts never have must be
    another spelling ("aeroplane"): else it is slang, Latin or a term of art. () for a sense that is not there.
    """
    found = _synsets(phrase)[number - 1 : number]
    if not found:
        return ()
    chosen, key = found[0], "_".join(phrase.lower().split())
    base = _reader().morphy(key, chosen.pos()) or key
    above = {
        name.lower()
        for synset in chosen.closure(lambda s: s.hypernyms() + s.instance_hypernyms())
        for name in synset.lemma_names()
    }
    # a number that was chosen says which sense is meant; else it must be what the phrase mostly means
    if number == 1 and not _is_main_sense(chosen, base):
        return ()
    return tuple(
        Candidate(lemma.name().replace("_", " "), _objection(lemma, chosen, base, above))
        for lemma in chosen.lemmas()
        if lemma.name().lower() not in (key, base) and _is_presentable(lemma, chosen, base)
    )


def _is_presentable(lemma: Any, chosen: Any, base: str) -> bool:
    """Whether a word may be offered at all. Not names, abbreviations and Latin ("Canis familiaris"), nor what WordNet
    marks as offensive; nor what no tagged text has in any sense, unless it is another spelling: slang and terms of
    art, and the insults that WordNet does not mark."""
    name = lemma.name()
    if name != name.lower() or "." in name or any(c.isdigit() for c in name) or len(name) < 3:
        return False
    if any(_is_rude(word) for word in (lemma, chosen, *_reader().synsets(name))):
        return False
    if chosen.lexname() in ("noun.person", "noun.body"):
        return lemma.count() > 0
    own, others, _ = _uses(name, chosen)
    return own + others > 0 or _spelled_alike(name, base)


def _is_rude(word: Any) -> bool:
    """Whether WordNet marks a word, or a whole synset, as slang or as offensive."""
    return any(domain.name().split(".")[0] in _RUDE for domain in word.usage_domains())


_RUDE = frozenset({"slang", "ethnic_slur", "disparagement", "obscenity", "dirty_word", "vulgarism", "derogation"})


def _uses(name: str, chosen: Any) -> tuple[int, int, bool]:
    """How often tagged texts have a word in one sense, and in all others of any part of speech; whether that sense is
    the word's first of its part of speech."""
    own = others = 0
    senses_of = [s for s in _reader().synsets(name) if _reader().morphy(name, s.pos()) in (name, None)]
    for synset in senses_of:
        count = sum(one.count() for one in synset.lemmas() if one.name().lower() == name)
        own, others = (count, others) if synset == chosen else (own, others + count)
    return own, others, [s for s in senses_of if s.pos() == chosen.pos()][:1] == [chosen]


def _is_main_sense(chosen: Any, name: str) -> bool:
    own, others, first = _uses(name, chosen)
    return first and own >= others


def _objection(lemma: Any, chosen: Any, base: str, above: set[str]) -> str:
    name = lemma.name()
    if name in above:
        return "general"
    own, others, first = _uses(name, chosen)
    spelling = _spelled_alike(name, base)
    several = len(_reader().synsets(name)) > 1
    if not first or (several and not spelling and (own < 3 or own < 2 * others)):
        return "ambiguous"
    return "" if own or spelling else "ambiguous"


def _spelled_alike(first: str, second: str, least: float = 0.7) -> bool:
    """Whether two words are spellings of one: "aeroplane" and "airplane", "watercolour" and "watercolor"."""
    first, second = (re.sub(r"[-_ ]", "", word) for word in (first, second))
    return difflib.SequenceMatcher(None, first, second).ratio() >= least


@lru_cache(maxsize=20000)
@_one_at_a_time
def similarity(first: str, second: str, sense: int = 1) -> float | None:
    """Wu–Palmer similarity in 0..1 of two phrases as nouns; None where WordNet lacks one.

    `sense`: which sense of `first`; of `second` it is the first noun.
    """
    a, b = _noun(first, sense), _noun(second)
    return a.wup_similarity(b) if a and b else None


def is_kind_of(first: str, second: str, sense: int = 1) -> bool:
    """Whether one phrase is above the other in WordNet's tree ("dog" and "puppy"); `sense` as in `similarity`."""
    (a, above_a), (b, above_b) = _above(first, sense), _above(second, 1)
    return b in above_a or a in above_b


@lru_cache(maxsize=20000)
@_one_at_a_time
def _above(phrase: str, sense: int) -> tuple[str, frozenset[str]]:
    """(the name of a phrase's synset, the names of all above it and its own); none for what WordNet lacks."""
    synset = _noun(phrase, sense)
    if synset is None:
        return "", frozenset()
    return synset.name(), frozenset(each.name() for path in synset.hypernym_paths() for each in path)
