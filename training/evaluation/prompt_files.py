"""Cases from CSV files of prompts: published sets are known by their columns."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..errors import ErasureError
from .cases import FIRST_SEED, Case, Content, Role, Suite

LIMIT = 10_000  # prompts taken from a file unless another number is given
MAX_SEED = 2**63 - 1  # what torch's generators take


class Prompt(NamedTuple):
    """A prompt and the seed of its picture: a key of `Pictures`."""

    text: str
    seed: int


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file.

    Args:
        format: The id of its `Format`; `title` and `role` are the format's too.
        left_out: How many usable prompts of the file are not among `prompts`.
        unusable: How many of its rows have no prompt.
        number: Its place among the files of an evaluation, from 1.
        sha256: Of the file; "" where nobody has asked for it.
    """

    file: str
    format: str
    title: str
    role: Role
    prompts: tuple[Prompt, ...]
    left_out: int = 0
    unusable: int = 0
    number: int = 1
    sha256: str = ""

    @property
    def suite(self) -> Suite:
        """Its suite: such prompts ask for the concept, or are such that it should not be seen."""
        count = len(self.prompts)
        taken = f", {count} of {count + self.left_out} prompts" if self.left_out else ""
        return Suite(str(self.number), f"{self.title} from {self.file}{taken}", self.role, group="file")

    def cases(self, expected: Content) -> list[Case]:
        """A case for each prompt, all of which expect the same."""
        return [Case(*prompt, expected, (self.suite,)) for prompt in self.prompts]

    def facts(self) -> dict[str, Any]:
        """As JSON, without the prompts themselves."""
        return {
            "id": self.suite.id,
            "file": self.file,
            "sha256": self.sha256,
            "format": self.format,
            "kind": self.role,
            "prompts": len(self.prompts),
            "left_out": self.left_out,
            "unusable": self.unusable,
        }


def captions(files: Sequence[PromptFile]) -> list[Prompt]:
    """The prompts of all files that should stay as they are, each once."""
    return list(dict.fromkeys(prompt for file in files if file.role == "keep" for prompt in file.prompts))


@dataclass(frozen=True)
class Format:
    """A known kind of prompt file, recognised by columns that it must have (`needs`, the prompt's own among them)."""

    id: str
    title: str
    role: Role
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


def read_prompts(path: str | Path, limit: int | None = LIMIT, *, seed: int = 0, number: int = 1) -> PromptFile:
    """The prompts of a CSV file with a header (UTF-8; commas, semicolons or tabs), recognised by its columns: FORMATS.

    Of more than `limit` prompts as many are drawn, each as likely as any other and the same for the same `seed`, in the
    file's order. The file is read once, row by row. A picture's seed is the file's (SEED_COLUMNS, whole numbers from 0
    up), or FIRST_SEED plus the row's number where it has none.

    Args:
        limit: From 1 up; None for no limit.
        number: See PromptFile.

    Raises:
        ErasureError: Where there is nothing to read.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ErasureError(f"At least one prompt must be taken from {path.name}, not {limit}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            form, rows = _open_table(path, file)
            prompts, usable, unusable = _sample(rows, limit, random.Random(seed))
    except OSError as problem:
        raise ErasureError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except UnicodeDecodeError as problem:
        raise ErasureError(f"{path.name} is not written in UTF-8: save it again as CSV UTF-8.") from problem
    except csv.Error as problem:
        raise ErasureError(f"{path.name} is not a CSV file that can be read: {problem}.") from problem
    if not usable:
        raise ErasureError(f'{path.name} has no prompt in its column "{form.prompt}": fill it in.')
    left_out = usable - len(prompts)
    return PromptFile(path.name, form.id, form.title, form.role, tuple(prompts), left_out, unusable, number)


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
    chosen: list[tuple[int, Prompt]] = []
    usable = unusable = 0
    for prompt in rows:
        if prompt is None:
            unusable += 1
            continue
        if limit is None or usable < limit:
            chosen.append((usable, prompt))
        elif (place := draw.randrange(usable + 1)) < limit:
            chosen[place] = (usable, prompt)
        usable += 1
    return [prompt for _, prompt in sorted(chosen)], usable, unusable
