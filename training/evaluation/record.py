"""What the judges have found in every set of pictures of an evaluation, and the tables made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .cases import Case, Key, by_suite
from .intervals import bootstrap_mean
from .judges.base import Finding, Judge, Verdict, count
from .pictures import PictureFolder, picture_name
from .tally import Tally


class Record:
    """The findings of each judge in the pictures of each set.

    Args:
        folder: Holds a `PictureFolder` for each set, by the set's name.
        subjects: The base and what is compared with it; further sets are points of a strength curve.
    """

    def __init__(self, folder: Any, judges: Sequence[Judge], cases: Sequence[Case], subjects: Sequence[str]) -> None:
        self.folder, self.judges, self.cases, self.subjects = folder, judges, cases, subjects
        self.findings: dict[str, list[dict[Key, Finding]]] = {}  # set → of each judge
        self.places: dict[str, dict[Key, str]] = {}  # set → picture → the set that holds its file

    def pictures(self, name: str, keys: Sequence[Key]) -> torch.Tensor:
        """Pictures of a set, fp32 [n, 3, H, W] in 0..1."""
        places = self.places[name]
        return torch.stack([PictureFolder(self.folder / places[key])[key] for key in keys]).float() / 255

    def detect(self, name: str, chunk: int = 64) -> None:
        """Lets the judges look at every picture of a set, `chunk` at once; at points of a curve only the first one."""
        keys = list(self.places[name])
        judges = self.judges if name in self.subjects else self.judges[:1]
        self.findings[name] = [{} for _ in judges]
        for start in range(0, len(keys), chunk):
            some = keys[start : start + chunk]
            for judge, found in zip(judges, self.findings[name], strict=True):
                found |= dict(zip(some, judge.detect(self.pictures(name, some)), strict=True))

    def verdict(self, name: str, case: Case, judge: int = 0) -> Verdict:
        """What a judge says of a case's picture in a set."""
        return self.judges[judge].verdict(self.findings[name][judge][case.key], case.expected)

    def tally(self, name: str, cases: Sequence[Case], judge: int = 0) -> dict[str, Any]:
        """The tally of some cases in a set, as JSON."""
        return Tally.of(self.verdict(name, case, judge) for case in cases).to_dict()

    # --- tables ----------------------------------------------------------------------------------------------------

    def suites(self) -> list[dict[str, Any]]:
        """The tally of every suite for every subject, by the first judge."""
        return [
            {**suite.facts(), "results": {name: self.tally(name, cases) for name in self.subjects}}
            for suite, cases in by_suite(self.cases).items()
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Every case with the first judge's verdict on its picture in each set."""
        return [
            {
                "prompt": case.prompt,
                "seed": case.seed,
                "asked": str(case.expected),
                "suites": [suite.id for suite in case.suites],
                "results": {
                    name: self._result(name, case) for name, (first, *_) in self.findings.items() if case.key in first
                },
            }
            for case in self.cases
        ]

    def _result(self, name: str, case: Case) -> dict[str, Any]:
        verdict = self.verdict(name, case)
        file = f"pictures/{self.places[name][case.key]}/{picture_name(*case.key)}"
        error = {"error": verdict.error} if verdict.error else {}
        return {"file": file, "seen": verdict.seen, "shown": verdict.shown, **error}

    def attacks_succeeded(self) -> dict[str, list[dict[str, Any]]]:
        """Of every subject but the base: which prompts that do not name the concept as it is brought it back."""
        return {
            name: [
                {"suite": suite.id, "prompt": case.prompt, "seed": case.seed}
                for case in self.cases
                for suite in case.suites
                if suite.role in ("generalise", "attack") and self.verdict(name, case).shown
            ]
            for name in self.subjects[1:]
        }

    def detectors(self) -> list[dict[str, Any]]:
        """Each judge's facts, its own tables (of the first one only what `suites` do not say), and what it could not
        judge."""
        return [
            {**judge.facts(), "suites": self._tables(number), "failed": self._failed(number)}
            for number, judge in enumerate(self.judges)
        ]

    def _tables(self, number: int) -> list[dict[str, Any]]:
        measures = {suite: self._measures(number, cases) for suite, cases in by_suite(self.cases).items()}
        return [{"id": suite.id, "title": suite.title, "measures": found} for suite, found in measures.items() if found]

    def _measures(self, number: int, cases: Sequence[Case]) -> list[dict[str, Any]]:
        judge, measures = self.judges[number], []
        known = [case for case in cases if judge.knows(case.expected.word)]
        if number and known:
            results = {name: {"per_image": self.tally(name, known, number)} for name in self.subjects}
            measures.append({"id": "asked", "title": "what was asked for", "results": results})
        for group, labels in judge.groups.items():
            assert judge.threshold is not None, "a judge with groups finds places by their scores"
            results = {
                name: count_group([self.findings[name][number][case.key] for case in cases], labels, judge.threshold)
                for name in self.subjects
            }
            measures.append({"id": group, "title": group, "results": results})
        return measures

    def _failed(self, number: int) -> list[dict[str, Any]]:
        return [
            {"set": name, "prompt": prompt, "seed": seed, "error": finding.error}
            for name in self.subjects
            for (prompt, seed), finding in self.findings[name][number].items()
            if finding.error
        ]


def count_group(findings: Sequence[Finding], labels: Sequence[str], threshold: float) -> dict[str, Any]:
    """A group of labels by both conventions of counting.

    Returns:
        {"per_image": as `Tally.to_dict`, "per_detection": {"detections", "images", "mean" (places in a picture),
        "interval" (of the mean), "failed"}}.
    """
    found = count(findings, labels, threshold)
    places = [
        sum(place.label in labels and place.score >= threshold for place in finding.detections or ())
        for finding in findings
        if not finding.error
    ]
    interval = [round(edge, 4) for edge in bootstrap_mean(places)] if len(places) > 1 else None
    return {
        "per_image": Tally(found.per_image, found.images, len(found.failed)).to_dict(),
        "per_detection": {
            "detections": found.per_detection,
            "images": found.images,
            "mean": round(sum(places) / len(places), 4) if places else None,
            "interval": interval,
            "failed": len(found.failed),
        },
    }
