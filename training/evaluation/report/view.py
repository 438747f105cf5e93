"""What the templates of a report are given: the evaluation's JSON, and what is worked out of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from ..drift import MAX_PSNR
from .thumbnails import Thumbnails

Group = TypeVar("Group", bound=Hashable)  # names a group of rows

ROWS = 4  # prompts with a seed that are shown of every suite
ATTACKS_SHOWN = 40  # of the prompts that brought the concept back, for each subject


@dataclass(frozen=True)
class Line:
    """One curve of a plot. kind: "erase" or "keep"; points, band: as SVG takes them; end: where its name stands."""

    kind: str
    name: str
    results: Sequence[dict[str, Any]]
    points: list[str]
    band: Markup
    end: tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """Shares over a LoRA's strengths, in pixels. rules, ticks: (place, what is written there)."""

    label: str
    title: str
    values: list[float]
    rules: list[tuple[float, str]]
    ticks: list[tuple[float, str]]
    lines: list[Line]
    left: int = 44
    right: int = 530
    top: int = 14
    bottom: int = 260
    width: int = 640
    height: int = 300


class View:
    """An evaluation as a page shows it."""

    MAX_PSNR, ATTACKS_SHOWN = MAX_PSNR, ATTACKS_SHOWN
    RULE = Markup(
        f"Of every suite at most {ROWS} prompts are shown, each with its seed: first those where an erasure did not do "
        "what it should, then the others in the order in which they were made; fewer where the page would grow too "
        "large."
    )

    def __init__(self, evaluation: dict[str, Any], folder: Path) -> None:
        optional: dict[str, Any] = {
            "detectors": [],
            "prompt_files": [],
            "fidelity": {},
            "distance": None,
            "white_box": [],
        }
        self.evaluation = {**optional, **evaluation}
        self.phrase: str = evaluation["concept"]["phrase"]
        self.veiled = bool(evaluation["blur"])
        self.labels = {subject["id"]: _label(subject) for subject in evaluation["subjects"]}
        self.tried = [subject for subject in evaluation["subjects"] if subject["id"] != "base"]
        self.suites = {suite["id"]: suite for suite in evaluation["suites"]}
        self._thumbnails = Thumbnails(folder)

    def thumbnail(self, file: str) -> tuple[Markup, int, int]:
        """(data URI, width, height)."""
        data, width, height = self._thumbnails.get(file)
        return Markup(data), width, height

    def attacks(self, subject: str) -> list[dict[str, Any]]:
        """How each rewriting of the prompt fared against a subject."""
        return [
            {
                "name": suite["title"].removeprefix("Attack: "),
                "result": (result := suite["results"][subject]),
                "hits": int(result["hits"]),
                "images": int(result["images"]),
                "base": int(suite["results"]["base"]["hits"]),
                "share": float(result["share"] or 0),
            }
            for suite in self.suites.values()
            if suite["group"] == "attack"
        ]

    def rewritten_hits(self, subject: str) -> int:
        """Pictures that show the concept to a subject by a synonym or a rewriting."""
        return sum(
            int(suite["results"][subject]["hits"])
            for suite in self.suites.values()
            if suite["id"] == "acc_g" or suite["group"] == "attack"
        )

    def measures(self, judge: dict[str, Any], convention: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(suite, measure) of a judge's own tables by a convention of counting."""
        return [
            (suite, measure)
            for suite in judge["suites"]
            for measure in suite["measures"]
            if convention in measure["results"]["base"]
        ]

    def succeeded(self, subject: str) -> list[tuple[str, str, str]]:
        """(prompt, suite, seeds) by which a subject still painted the concept."""
        seeds: dict[tuple[str, str], list[str]] = {}
        for each in self.evaluation["attacks_succeeded"][subject]:
            seeds.setdefault((each["prompt"], each["suite"]), []).append(str(int(each["seed"])))
        return [(prompt, suite, ", ".join(which)) for (prompt, suite), which in seeds.items()]

    def attack_prompts(self, attacks: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
        """(attack, prompt, seeds) by which white-box attacks that search prompts brought the concept back."""
        return [
            (attack["title"], found["prompt"], ", ".join(str(int(seed)) for seed in found["seeds"]))
            for attack in attacks
            for found in attack["prompts"]
            if "curve" not in attack
        ]

    def pairs(self, first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
        """The elements of two equally long lists beside each other."""
        return list(zip(first, second, strict=True))

    # --- pictures --------------------------------------------------------------------------------------------------

    def grids(self) -> dict[str, tuple[list[dict[str, Any]], int]]:
        """Of every suite the rows of pictures to show, no row twice in a page, and of how many."""
        chosen: dict[str, tuple[list[dict[str, Any]], int]] = {}
        seen: set[tuple[str, int]] = set()
        for id, suite in self.suites.items():
            rows = [row for row in self.evaluation["pictures"] if id in row["suites"]]
            rows.sort(key=partial(self._went_wrong, better=suite["better"]), reverse=True)  # stable
            fresh = [row for row in rows if (row["prompt"], row["seed"]) not in seen][:ROWS]
            seen |= {(row["prompt"], row["seed"]) for row in fresh}
            if fresh:
                chosen[id] = (fresh, len(rows))
        return chosen

    def _went_wrong(self, row: dict[str, Any], better: str) -> bool:
        """Whether an erasure left what it should take, or took what the base shows and it should leave."""
        shown = [bool(row["results"][subject["id"]]["shown"]) for subject in self.tried]
        return any(shown) if better == "lower" else bool(row["results"]["base"]["shown"]) and not all(shown)

    # --- strength --------------------------------------------------------------------------------------------------

    def plots(self) -> list[Plot]:
        """The strength curve of every LoRA that has one."""
        return [self._plot(curve) for curve in self.evaluation["strength"]]

    def _plot(self, curve: dict[str, Any]) -> Plot:
        label, values = self.labels[curve["subject"]].split(",")[0], [float(value) for value in curve["values"]]
        span = max(values) - min(values) or 1.0

        def x(value: float) -> float:
            return round(Plot.left + (value - min(values)) / span * (Plot.right - Plot.left), 1)

        def y(share: float) -> float:
            return round(Plot.top + (1 - share) * (Plot.bottom - Plot.top), 1)

        lines: list[Line] = []
        for kind, name, results in (("erase", "concept seen", curve["acc_e"]), ("keep", "rest kept", curve["keep"])):
            if not results:
                continue
            across = [x(value) for value in values]
            points = [f"{a},{y(float(r['share'] or 0))}" for a, r in zip(across, results, strict=True)]
            low, high = (
                [f"{a},{y(float(result['interval'][edge]))}" for a, result in zip(across, results, strict=True)]
                for edge in (0, 1)
            )
            end = y(float(results[-1]["share"] or 0)) + 4
            if any(abs(end - line.end[1]) < 15 for line in lines):  # two names would stand on each other
                end += 16
            lines.append(
                Line(kind, name, results, points, Markup(" ".join([*high, *reversed(low)])), (across[-1] + 10, end))
            )
        return Plot(
            label,
            f"Shares of pictures over the strength of {label}",
            values,
            [(y(share), f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)],
            [(x(value), f"{value:g}") for value in values],
            lines,
        )


def _label(subject: dict[str, Any]) -> str:
    strength = f", strength {float(subject['strength']):g}" if "strength" in subject else ""
    return f"{subject['label']}{strength}"


def fitting(rows: Mapping[Group, Sequence[Callable[[], str]]], room: int) -> dict[Group, list[str]]:
    """Of each group as many of its rows as fit into `room` bytes together, the first of every group before the second.

    Args:
        rows: What makes the markup of each row.
    """
    made: dict[Group, list[str]] = {name: [] for name in rows}
    for turn in range(max((len(group) for group in rows.values()), default=0)):
        for name, group in rows.items():
            if turn < len(group):
                markup = group[turn]()
                size = len(markup.encode("utf-8", "replace"))
                if size < room:
                    room -= size
                    made[name].append(markup)
    return made
