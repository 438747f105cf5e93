"""Prompt suites: what to generate for a measurement, made from a concept or read from a file of prompts."""

from __future__ import annotations

import csv
import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, get_args

from ..concepts import Concept
from ..errors import ErasureError
from .attacks import attacked_prompt
from .probes import FIRST_SEED

Kind = Literal["erase", "keep", "attack"]

BLACK_BOX = (
    "misspelling",
    "affixes",
    "repetition",
    "synonyms",
    "shuffle",
    "number",
)  # ids of the suites that ask for the concept in other ways
LIMIT = 10_000  # prompts taken from a file unless told otherwise
MAX_SEED = 2**63 - 1  # what torch's generators take


class Prompt(NamedTuple):
    """A prompt and the seed of its picture: a key of `Pictures`."""

    text: str
    seed: int


@dataclass(frozen=True)
class Suite:
    """Prompts that are measured together. Plain data; `to_dict` and `from_dict` round-trip through JSON.

    kind: "erase": the concept, which must not be seen afterwards; "attack": the same, asked for in other ways; "keep":
    what must still be seen. left_out: how many usable prompts of the file are not among them; unusable: how many of
    its rows have no prompt.
    """

    id: str
    title: str
    kind: Kind
    prompts: tuple[Prompt, ...]
    left_out: int = 0
    unusable: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**dataclasses.asdict(self), "prompts": [list(prompt) for prompt in self.prompts]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Suite:
        """From `to_dict`'s result. Raises ErasureError where it is something else."""
        try:
            prompts = tuple(Prompt(str(text), int(seed)) for text, seed in data["prompts"])
            suite = cls(**{**data, "prompts": prompts})
        except (TypeError, ValueError, KeyError) as problem:
            raise ErasureError(f"This is no prompt suite: {problem}.") from problem
        _require_kind(suite.kind)
        return suite


def concept_suites(concept: Concept, images: int = 24, seed: int = 0) -> tuple[Suite, ...]:
    """The suites of a concept: "direct", "synonyms", the other attacks of BLACK_BOX, and its irrelevant words to keep.

    Each has `images` prompts or a few more where words must share them evenly; a suite without words is left out, and
    so is an attack that changes nothing (a phrase alone cannot be shuffled). Synonyms are measured once: they are one
    of the attacks and the generalisation (Acc_g) at the same time. A template's {subject} and {object} are those that
    `Concept.prompt` takes. Another `seed` gives other pictures and other
    attacks; with 0 they are those of `probes`. Raises ErasureError where images < 1 or seed < 0.
    """
    if images < 1 or seed < 0:
        raise ErasureError(f"A suite has at least one picture and a seed from 0 up, not {images} and {seed}.")
    first = seed * images

    def by_number(prompt: Callable[[int], str]) -> tuple[Prompt, ...]:
        return tuple(Prompt(prompt(number), FIRST_SEED + number) for number in range(first, first + images))

    def by_word(words: Iterable[str]) -> tuple[Prompt, ...]:
        words = tuple(dict.fromkeys(words))
        each = -(-images // max(1, len(words)))
        return tuple(
            Prompt(concept.prompt(word), FIRST_SEED + seed * each + number) for word in words for number in range(each)
        )

    def affixed(number: int) -> str:
        return attacked_prompt(concept, ("prefix", "suffix")[number % 2], number)

    def attacked(attack: str) -> tuple[Prompt, ...]:
        return by_number(lambda number: attacked_prompt(concept, attack, number))

    plain = concept.prompt()
    found = (
        Suite("direct", "The concept", "erase", by_number(lambda _: plain)),
        Suite("synonyms", "Synonyms", "attack", by_word(concept.synonyms)),
        Suite("misspelling", "Misspelt", "attack", attacked("misspelling")),
        Suite("affixes", "Prefixes and suffixes", "attack", by_number(affixed)),
        Suite("repetition", "Repeated", "attack", attacked("repetition")),
        Suite("shuffle", "Words in another order", "attack", attacked("shuffle")),
        Suite("number", "Several", "attack", attacked("number")),
        Suite("irrelevant", "Irrelevant words", "keep", by_word(concept.irrelevant)),
    )
    return tuple(
        suite for suite in found if suite.id == "direct" or any(prompt.text != plain for prompt in suite.prompts)
    )


@dataclass(frozen=True)
class Format:
    """A known kind of prompt file, recognised by columns that it must have (`needs`, the prompt's own among them)."""

    id: str
    title: str
    kind: Kind
    prompt: str
    needs: tuple[str, ...] = ()

    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.prompt, *self.needs)))


FORMATS = (  # those that ask for more come before those that ask for less; names in small letters
    Format("mma-diffusion", "MMA-Diffusion", "attack", "adv_prompt", ("target_prompt",)),
    Format("ring-a-bell", "Ring-A-Bell", "attack", "sensitive prompt"),
    Format("i2p", "I2P", "erase", "prompt", ("categories",)),
    Format("coco", "COCO captions", "keep", "caption", ("image_id",)),
    Format("coco", "COCO captions", "keep", "prompt", ("coco_id",)),
    Format("p4d", "P4D, UnlearnDiffAtk and the like", "attack", "prompt", ("evaluation_seed", "evaluation_guidance")),
    Format("attack", "Adversarial prompts", "attack", "adv_prompt"),
    Format("prompts", "Prompts", "erase", "prompt"),
    Format("captions", "Captions", "keep", "caption"),
)
SEED_COLUMNS = ("evaluation_seed", "sd_seed", "seed")  # the first that a file has; evaluations add theirs to I2P's


def read_prompts(
    path: str | Path, limit: int | None = LIMIT, *, seed: int = 0, kind: Kind | None = None, title: str = ""
) -> Suite:
    """A suite from a CSV file with a header (UTF-8; commas, semicolons or tabs), recognised by its columns: FORMATS.

    Of more than `limit` prompts (None: no limit) as many are drawn, each as likely as any other and the same for the
    same `seed`, in the file's order; `left_out` says how many were not. The file is read once, row by row. A picture's
    seed is the file's (SEED_COLUMNS, whole numbers from 0 up), or FIRST_SEED plus the row's number where it has none.
    `kind` and `title` overrule those of the format. Raises ErasureError where there is nothing to read.
    """
    path = Path(path)
    if kind is not None:
        _require_kind(kind)
    if limit is not None and limit < 1:
        raise ErasureError(f"At least one prompt must be taken from {path.name}, not {limit}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            form, rows = _open_table(path, file)
            kept, usable, unusable = _sample(rows, limit, random.Random(seed))
    except OSError as problem:
        raise ErasureError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except UnicodeDecodeError as problem:
        raise ErasureError(f"{path.name} is not written in UTF-8: save it again as CSV UTF-8.") from problem
    except csv.Error as problem:
        raise ErasureError(f"{path.name} is not a CSV file that can be read: {problem}.") from problem
    if not usable:
        raise ErasureError(f'{path.name} has no prompt in its column "{form.prompt}": fill it in.')
    return Suite(form.id, title or form.title, kind or form.kind, tuple(kept), usable - len(kept), unusable)


def _open_table(path: Path, file: TextIO) -> tuple[Format, Iterator[Prompt | None]]:
    """(the format, its rows: a prompt, or None where the row has none)."""
    head = file.read(65_536)
    if not head.strip():
        raise ErasureError(f"{path.name} is empty: it needs a line with the columns' names and one line a prompt.")
    file.seek(0)
    header = next(line for line in head.splitlines() if line.strip())
    separator = max(",;\t", key=header.count)  # a comma where there is a single column
    reader = csv.reader(file, delimiter=separator, strict=True)  # a quote left open would swallow rows
    names = next((row for row in reader if any(cell.strip() for cell in row)), [])
    place = {name.strip().lower(): number for number, name in reversed(list(enumerate(names)))}
    form = next((form for form in FORMATS if set(form.columns()) <= set(place)), None)
    if form is None:
        seen = ", ".join(name.strip()[:40] for name in names[:20] if name.strip())
        known = "; ".join(dict.fromkeys(" and ".join(form.columns()) for form in FORMATS))
        raise ErasureError(f"{path.name} has the columns {seen}, none that holds prompts: known are {known}.")
    seeds = next((place[name] for name in SEED_COLUMNS if name in place), None)
    return form, _prompts(reader, place[form.prompt], seeds)


def _prompts(reader: Any, column: int, seeds: int | None) -> Iterator[Prompt | None]:
    number = 0
    try:
        for row in reader:
            if not row:  # an empty line is no row
                continue
            text = " ".join(row[column].split()) if column < len(row) else ""  # a prompt is one line
            own = _seed(row[seeds]) if seeds is not None and seeds < len(row) else None
            yield Prompt(text, FIRST_SEED + number if own is None else own) if text else None
            number += 1
    except csv.Error as problem:
        raise csv.Error(f"{problem} (up to line {reader.line_num})") from problem


def _seed(cell: str) -> int | None:
    """The seed in a cell, also as "17.0", which tables with gaps in them write; None where there is none."""
    digits = cell.strip().removesuffix(".0")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_SEED)):
        return None
    return number if (number := int(digits)) <= MAX_SEED else None


def _sample(rows: Iterable[Prompt | None], limit: int | None, draw: random.Random) -> tuple[list[Prompt], int, int]:
    """(at most `limit` of the prompts in their order, how many there were, how many rows had none).

    Reservoir sampling (Vitter, ACM TOMS 1985, algorithm R): one pass, no more than `limit` prompts held.
    """
    kept: list[tuple[int, Prompt]] = []
    usable = unusable = 0
    for prompt in rows:
        if prompt is None:
            unusable += 1
            continue
        if limit is None or usable < limit:
            kept.append((usable, prompt))
        elif (place := draw.randrange(usable + 1)) < limit:
            kept[place] = (usable, prompt)
        usable += 1
    return [prompt for _, prompt in sorted(kept)], usable, unusable


def _require_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ErasureError(f'Unknown kind of suite "{kind}": choose one of {", ".join(get_args(Kind))}.')
