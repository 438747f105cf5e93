"""`seeds`: how often the interval of a figure holds what evaluations with other seeds give."""

from __future__ import annotations

import argparse
import json

from .page import conclude
from .workplace import Workplace, seeds_of


def seeds(args: argparse.Namespace) -> None:
    """How often a figure's 95 % interval holds what the evaluations with the other seeds give.

    One evaluation of attention deletion beside the base for each of --seeds, the first one twice; nothing is trained.
    Every picture is kept, so that a run that was stopped goes on, and the same command again only counts.
    """
    from training.evaluation import EvaluationSpec, Subject
    from training.evaluation.result import SUITES_OF_VERSION_1
    from training.evaluation.run import evaluate

    stored_names = {new: old for old, new in SUITES_OF_VERSION_1.items()}  # as stored rows name them

    place = Workplace(args, "seeds")
    for phrase in args.concepts.split(","):
        concept = place.concept(phrase, 0)
        for seed in seeds_of(args.seeds):
            spec = EvaluationSpec(
                place.source,
                concept,
                (Subject(),),
                **place.counts,
                heatmap=False,
                seed=seed,
                suites=("synonyms", "attacks", *(["preserved"] if args.images_per_other else [])),
            )
            key = place.key(phrase, seed, "evaluation", concept)
            if place.done(key):
                continue
            with place.rows.claim(key) as mine:
                if not mine or place.done(key):
                    continue
                folder = place.folder / "seeds" / f"{key}-{place.behaviour}"
                found = evaluate(spec, folder, args.device)
                same = {}
                if seed == seeds_of(args.seeds)[0]:
                    anew = folder.with_name(f"{folder.name}-again")  # where nothing is kept yet
                    again = json.loads(json.dumps(evaluate(spec, anew, args.device)))
                    same = {"same": {**again, "run": None} == {**json.loads(json.dumps(found)), "run": None}}
                row = {
                    **same,
                    "suites": {
                        stored_names.get(suite["id"], suite["id"]): suite["results"] for suite in found["suites"]
                    },
                    "seconds": found["run"]["seconds"],
                }
                place.keep(key, {"concept": phrase, "seed": seed}, row)
            print(f"{phrase:12s} seed {seed:2d}  {found['run']['seconds']} s", flush=True)
    conclude(place.rows, "seeds")
