"""Names and words that ship with the pack (names.json): people, artists, styles, brands, characters, places, safety
concepts, relations, and how English nouns behave. What a word is, and what stands beside it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..errors import ConceptError
from . import wordnet
from .matching import tidy

Category = Literal["thing", "person", "character", "artist", "style", "brand", "place", "safety", "relation"]

# Words inside a name that are written small: "Vincent van Gogh", "Charles de Gaulle".
PARTICLES = frozenset(
    (
        "van",
        "von",
        "der",
        "den",
        "de",
        "di",
        "da",
        "del",
        "della",
        "du",
        "la",
        "le",
        "bin",
        "al",
        "el",
        "ibn",
        "of",
        "the",
        "and",
    )
)


@dataclass(frozen=True)
class Entry:
    """A name of names.json: as it is written, its category, and the group of names it stands beside."""

    name: str
    category: Category
    group: str


@dataclass(frozen=True)
class Relation:
    """A relation between two things.

    phrase: as people type it ("shake hands"); form: as it reads in "a cat … a dog" ("shaking hands with"); synonyms: in
    the same form; subjects: what it joins ("people", "animals" or "things"); opposite: a form, or None.
    """

    phrase: str
    form: str
    synonyms: tuple[str, ...]
    subjects: str
    opposite: str | None


@dataclass(frozen=True)
class SafetyConcept:
    """Something that a safety team has erased: its name, other names of it, kinds of it, and innocent things that look
    alike."""

    phrase: str
    synonyms: tuple[str, ...]
    kinds: tuple[str, ...]
    neighbours: tuple[str, ...]


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    try:
        return json.loads((Path(__file__).parent / "names.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConceptError("The file names.json is missing or damaged: install the pack again.") from error


@lru_cache(maxsize=1)
def preset_entries() -> tuple[dict[str, Any], ...]:
    """The entries of presets.json."""
    try:
        return tuple(json.loads((Path(__file__).parent / "presets.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConceptError("The file presets.json is missing or damaged: install the pack again.") from error


@lru_cache(maxsize=1)
def _checked() -> dict[tuple[str, str], tuple[str, tuple[str, ...]]]:
    found = {}
    for entry in preset_entries():
        if "synonyms" not in entry:  # they are in names.json
            continue
        names = [name.strip() for name in entry["phrase"].split("|")]
        for name in names:
            others = (*names, *entry["synonyms"])
            unlike = tuple(other for other in others if folded(other) != folded(name))
            found[entry["kind"], folded(name)] = name, unlike
    return found


def checked_synonyms(phrase: str, kind: str) -> tuple[str, ...] | None:
    """The synonyms that presets.json, checked by hand, has for this phrase; None where it has no such preset. A name's
    are not those of a word in small letters ("hulk")."""
    name, others = _checked().get((kind, folded(phrase)), (phrase, None))
    return None if name != name.lower() and phrase == phrase.lower() else others


def folded(text: str) -> str:
    """What two spellings of one name share: small letters, single spaces, no hyphen, no article before it."""
    words = tidy(text).lower().replace("-", " ").replace("_", " ").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] == "the" else words)


@lru_cache(maxsize=1)
def _entries() -> dict[str, Entry]:
    data = _data()
    found: dict[str, Entry] = {}
    grouped: tuple[Category, ...] = ("person", "brand", "character")
    plain: tuple[Category, ...] = ("artist", "style", "place")
    groups = [(category, group, names) for category in grouped for group, names in data[category].items()]
    groups += [(category, category, data[category]) for category in plain]
    groups.append(("artist", "artist", list(data["artist_short"])))
    groups.append(("safety", "safety", [entry["phrase"] for entry in data["safety"]]))
    for category, group, names in groups:
        for name in names:
            found.setdefault(folded(name), Entry(name, category, group))
    for short, name in {**data["person_short"], **data["name_spellings"]}.items():
        whole = found.get(folded(name)) or Entry(name, "person", "public figure")
        found.setdefault(folded(short), dataclasses.replace(whole, name=short))
        found.setdefault(folded(name), whole)
    return found


def entry_of(phrase: str) -> Entry | None:
    """The entry with this name, however it is typed; None where names.json has none."""
    return _entries().get(folded(phrase))


def names_beside(entry: Entry) -> list[str]:
    """The other names of the entry's category: those of its own group first. Short forms of one name count as it."""
    data = _data()
    if entry.category in ("person", "brand", "character"):
        groups = data[entry.category]
        names = [*groups.get(entry.group, ()), *(n for g, ns in groups.items() if g != entry.group for n in ns)]
    elif entry.category == "safety":
        safety = safety_concept(entry.name)
        names = list(safety.neighbours) if safety is not None else []
    else:
        names = list(data[entry.category])
    own = {folded(name) for name in spellings_of(entry.name)}
    return [name for name in names if folded(name) not in own]


def names_of(category: Category) -> list[str]:
    """All names of a category, in the file's order."""
    listed = _data()[category]
    return [name for names in listed.values() for name in names] if isinstance(listed, dict) else list(listed)


@lru_cache(maxsize=1)
def _spellings() -> dict[str, str]:
    """Other spellings of a name → the name as its list has it."""
    data = _data()
    return {**data["artist_short"], **data["person_short"], **data["name_spellings"]}


def spellings_of(name: str) -> tuple[str, ...]:
    """A name with its long and short forms ("Van Gogh", "Vincent van Gogh"), the given one first."""
    by_fold = {folded(key): value for key, value in _spellings().items()}
    whole = by_fold.get(folded(name), name)
    others = [whole, *(key for key, value in _spellings().items() if folded(value) == folded(whole))]
    unique = {folded(other): re.sub("^the ", "", other) for other in reversed(others) if folded(other) != folded(name)}
    return (name, *reversed(unique.values()))


@lru_cache(maxsize=1)
def _safety() -> dict[str, SafetyConcept]:
    return {
        folded(entry["phrase"]): SafetyConcept(
            entry["phrase"], tuple(entry["synonyms"]), tuple(entry["kinds"]), tuple(entry["neighbours"])
        )
        for entry in _data()["safety"]
    }


def safety_concept(phrase: str) -> SafetyConcept | None:
    """The safety concept of this name, or the one that has it among its synonyms."""
    found = _safety()
    direct = found.get(folded(phrase))
    return direct or next((one for one in found.values() if folded(phrase) in map(folded, one.synonyms)), None)


@lru_cache(maxsize=1)
def relations() -> tuple[Relation, ...]:
    """All relations of names.json, in the file's order."""
    return tuple(
        Relation(entry["phrase"], entry["form"], tuple(entry["synonyms"]), entry["subjects"], entry["opposite"])
        for entry in _data()["relation"]
    )


def relation_of(phrase: str) -> Relation | None:
    """The relation that is typed or reads so ("hug", "hugging"); None where names.json has none."""
    key = folded(phrase)
    exact = next((one for one in relations() if key in (folded(one.phrase), folded(one.form))), None)
    return exact or next((r for r in relations() if f"{key} with" in (folded(r.phrase), folded(r.form))), None)


@lru_cache(maxsize=16)
def words_listed(name: str) -> frozenset[str]:
    """One of the lists of nouns: "mass", "plural_only", "invariant", "unique", "given_names"."""
    return frozenset(_data()[name])


def is_person_name(phrase: str) -> bool:
    """Whether `phrase` looks like a person's name: two to four capitalised words, the first of them a given name, or
    none of them an English word or a name of something else."""
    words = [word for word in phrase.split() if word.lower() not in PARTICLES]
    if not 2 <= len(words) <= 4 or not all(re.fullmatch(r"[^\W\d_][\w'.-]*", word) for word in words):
        return False
    if not all(word[0].isupper() for word in words) or phrase.isupper():
        return False
    if words[0] in words_listed("given_names"):
        return True
    if words[0] in words_listed("given_names_ambiguous") and entry_of(phrase) is None:
        return not (wordnet.available() and wordnet.has(phrase.lower()))
    if not wordnet.available() or any(word.isupper() for word in words):
        return False
    return not any(entry_of(word) or wordnet.has(word.lower()) or wordnet.is_place(word) for word in words)


def category_of(phrase: str, kind: str = "entity", names: Iterable[str] = ()) -> Category:
    """What sort of thing a concept of this kind is; `names`: its synonyms, one of which may be the known one."""
    if kind == "relationship":
        return "relation"
    entry = next((found for name in (phrase, *names) if (found := entry_of(name))), None)
    if kind == "abstraction":
        artist = (entry is not None and entry.category in ("artist", "person")) or is_person_name(phrase)
        return "artist" if artist else "style"
    if entry is not None and entry.category != "style":
        # "apple" and "nudity" as they are typed: a name counts only with its capital
        if entry.category == "safety" or any(c.isupper() for c in phrase):
            return entry.category
    elif is_person_name(phrase):
        return "person"
    elif safety_concept(phrase) is not None:
        return "safety"
    return "thing"
