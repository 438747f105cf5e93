"""`defences`: attention deletion and the trained methods in whole evaluations, ranked at equal preservation."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.environment import ROOT, SetupError

from ..page import conclude
from ..rows import Row, key_of
from ..summaries import DELETION, fair_strengths
from ..workplace import Workplace, course, seeds_of
from .strength import rates
from .variants import METHODS

TRAINED = {name: overrides for name, overrides in METHODS.items() if overrides is not None}
STRENGTHS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)
LOWER = (0.125, 0.25, 0.375)  # of methods that preserve at none of them
# of each white-box attack; --attack-set changes it
BUDGET = {"images": 12, "tries": 1, "judged": 3, "targets": 2, "steps": 40}
PAUSE = 2.0  # seconds until what another process is at is looked at again


def defences(args: argparse.Namespace) -> None:
    """Base, attention deletion and the trained methods with every suite and white-box attack, ranked by erasure at
    equal preservation."""
    place = Workplace(args, "defences")
    if args.worker:
        work(place)
        return
    before, began = place.rows.all(), time.monotonic()
    if args.workers > 1:
        share(args.workers)
    else:
        work(place)
    if place.rows.all() != before:
        run = {"what": "run", "ended": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
        place.rows.put(key_of(run), run, {"workers": args.workers, "seconds": round(time.monotonic() - began, 1)})
    conclude(place.rows, "defences")


def share(workers: int) -> None:
    """This command in so many processes of one torch thread each, which share its rows. Raises SetupError where one of
    them fails."""
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *sys.argv[1:]]
    command += ["--workers", "1", "--worker", "--threads", "1"]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    try:
        failed = sum(process.wait() != 0 for process in processes)
    finally:
        for process in processes:
            process.terminate()
    if failed:
        raise SetupError(f"{failed} of {workers} workers failed (see above): the same command goes on from there.")


def work(place: Workplace) -> None:
    """Makes the rows that are missing: the curves first, as the strengths are chosen by all of them."""
    from training.cli import read_settings
    from training.evaluation.whitebox import WhiteBox

    budget = WhiteBox.from_dict({**BUDGET, **read_settings(place.args.attack_set)})
    slots = [(phrase, seed) for phrase in place.args.concepts.split(",") for seed in seeds_of(place.args.seeds)]
    curves = [_Curves(place, *slot, "curve", STRENGTHS, TRAINED) for slot in slots]
    fill(place, "curves", curves)
    brutal = {name: TRAINED[name] for name, one in fair_strengths(_rows(place, curves)).items() if not one["held"]}
    curves += [_Curves(place, *slot, "lower curve", LOWER, brutal) for slot in slots]
    fill(place, "lower curves", curves)
    fair = fair_strengths(_rows(place, curves))
    strengths = {name: fair[name]["strength"] for name in TRAINED}
    fill(place, "evaluation", [_Evaluation(place, *slot, strengths, budget) for slot in slots])


def fill(place: Workplace, what: str, parts: Sequence[_Curves | _Evaluation]) -> None:
    """Makes every part, together with other processes; returns when all of them are there."""
    while missing := [part for part in parts if not part.done()]:
        made = False
        for part in missing:
            with place.rows.claim(f"{what} {place.model} {part.phrase} {part.seed}") as mine:
                if mine and not part.done():
                    made = True
                    part.make()
        if not made:
            time.sleep(PAUSE)


class _Curves:
    """One concept's LoRAs of some methods, trained where they are missing, at each of some strengths."""

    def __init__(
        self,
        place: Workplace,
        phrase: str,
        seed: int,
        what: str,
        strengths: Sequence[float],
        methods: Mapping[str, dict[str, Any]],
    ) -> None:
        self.place, self.phrase, self.seed = place, phrase, seed
        self.what, self.strengths, self.methods = what, strengths, methods
        concept = place.concept(phrase, seed)
        self.keys = {
            name: place.key(phrase, seed, [course(place.config(overrides, seed)), strengths], concept)
            for name, overrides in methods.items()
        }

    def done(self) -> bool:
        return all(self.place.done(key) for key in self.keys.values())

    def make(self) -> None:
        place = self.place
        loras = place.loras(self.phrase, self.seed, self.methods)
        for name, path in loras.items():
            if place.done(self.keys[name]):
                continue
            began = time.monotonic()
            row = {"counts": place.counts, **rates(place, path, self.strengths)}
            row |= {"seconds": round(time.monotonic() - began, 1), "training_seconds": place.seconds_of(path)}
            slot = {"what": self.what, "method": name, "concept": self.phrase, "seed": self.seed}
            row = place.keep(self.keys[name], slot, row)
            print(f"{self.phrase:10s} {self.seed:2d}  {name:18s} {row['rates']}  Acc_ir {row['acc_ir']}", flush=True)


def _rows(place: Workplace, curves: Sequence[_Curves]) -> list[Row]:
    keys = {key for part in curves for key in part.keys.values()}
    return [row for row in place.rows.all() if row["key"] in keys]


class _Evaluation:
    """One concept's evaluation of all methods, each at its strength, with every suite and white-box attack."""

    def __init__(self, place: Workplace, phrase: str, seed: int, strengths: dict[str, float], budget: Any) -> None:
        from training.evaluation.spec import SUITES

        self.place, self.phrase, self.seed = place, phrase, seed
        self.strengths, self.budget, self.suites = strengths, budget, SUITES
        courses = {name: course(place.config(overrides, seed)) for name, overrides in TRAINED.items()}
        asked = {"strengths": strengths, "courses": courses, "white_box": budget.to_dict(), "suites": SUITES}
        self.key = place.key(phrase, seed, asked, place.concept(phrase, seed))

    def done(self) -> bool:
        return self.place.done(self.key)

    def make(self) -> None:
        from training.evaluation import EvaluationSpec, Subject, concept_of_loras
        from training.evaluation.result import SUITES_OF_VERSION_1
        from training.evaluation.run import evaluate

        stored_names = {new: old for old, new in SUITES_OF_VERSION_1.items()}  # as stored rows name them

        place = self.place
        loras = place.loras(self.phrase, self.seed, TRAINED)
        concept = concept_of_loras(list(loras.values()), self.phrase, place.classifier)
        subjects = (Subject(), *(Subject(path, self.strengths[name]) for name, path in loras.items()))
        spec = EvaluationSpec(
            place.source, concept, subjects, **place.counts, heatmap=False, suites=self.suites, white_box=self.budget
        )
        folder = place.folder / "defences" / f"{self.key}-{place.behaviour}"
        found = evaluate(spec, folder, place.args.device)
        names = dict(zip((s["id"] for s in found["subjects"]), ("base", DELETION, *loras), strict=True))
        row = {
            "counts": place.counts,
            "strengths": self.strengths,
            "budget": self.budget.to_dict(),
            "suites": {
                stored_names.get(suite["id"], suite["id"]): {
                    names[own]: counted for own, counted in suite["results"].items()
                }
                for suite in found["suites"]
            },
            "drift": {names[own]: drift for own, drift in found["drift"].items()},
            "white_box": [
                {
                    "method": names[each["subject"]],
                    **{name: each[name] for name in ("attack", "title", "before", "after", "control", "base")},
                }
                for each in found["white_box"]
            ],
            "seconds": found["run"]["seconds"],
        }
        place.keep(self.key, {"what": "evaluation", "concept": self.phrase, "seed": self.seed}, row)
        print(f"{self.phrase:10s} {self.seed:2d}  evaluated in {row['seconds']} s", flush=True)
