"""What the rows of each experiment come to: one nested dictionary each, which tables and bars are read from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from .rows import Row
from .table import Summary, differences, grouped, percent, rounded, summarised

UNNAMED = "none, the style not named"  # what an erased style falls to that is neither shown nor pushed away
KINDS = {"entity": "nouns", "abstraction": "styles", "relationship": "relations"}
AUTHORS = "authors' schedule"
DELETION = "attention_deletion"
EVERY = "every kind"  # of concept
EARLY = "200 steps"  # variants whose names begin so are compared with it
SPARED = 0.02  # of Acc_ir, which a method may lose where methods are compared at equal preservation
LEFT = 0.15  # of a concept, above which a variant's worst one is named
TOGETHER = 5  # rows behind a correlation over concepts together
ENOUGH = 3  # concepts and seeds behind a difference that is judged
NAMES = {"acc_e": "Acc_e", "acc_g": "Acc_g", "acc_ir": "Acc_ir", "acc_ir_seen": "Acc_ir, seen"}


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1..1; None where one of them does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return round(float(stats.spearmanr(first, second).statistic), 4)


def erasure_summary(rows: list[Row]) -> Summary:
    """method → kind → `table.summarised`."""
    return {
        method: {KINDS[kind]: summarised(part) for kind, part in grouped(of_method, "kind").items()}
        for method, of_method in grouped(rows, "method").items()
    }


def ablation_summary(rows: list[Row]) -> Summary:
    """Kind, and EVERY for all together → variant → `table.summarised` with "difference" to the defaults, or to EARLY
    where a name begins so, and what is "worse" and "better" by it."""
    kinds = {EVERY: rows} | {KINDS[kind]: part for kind, part in grouped(rows, "kind").items()}
    return {kind: _variants(part) for kind, part in kinds.items()}


def _variants(rows: list[Row]) -> Summary:
    found = {"defaults": [], EARLY: []} | grouped(rows, "variant")  # what the others are compared with comes first
    summary = {}
    for variant, part in found.items():
        if part:
            reference = found[EARLY if variant.startswith(f"{EARLY} ") else "defaults"]
            table = summary[variant] = summarised(part) | {"difference": differences(part, reference)}
            table |= _judged(table)
    return summary


def _judged(table: Summary) -> Summary:
    """ "worse" and "better": how many measures are so by more than two standard errors, and which; "left": the concept
    that is left above LEFT, which the mean over concepts hides. Nothing where there are too few pairs."""
    enough = {name: d for name, d in table["difference"].items() if d["pairs"] >= ENOUGH}
    if not enough:
        return {}
    found: Summary = {}
    for side, sign in (("worse", 1), ("better", -1)):
        beyond = [
            f"{NAMES.get(name, name)} {100 * d['mean']:+.1f} ± {100 * d['error']:.1f} points"
            for name, d in enough.items()
            if not name.startswith("part")
            and sign * (-d["mean"] if name.startswith("acc_ir") else d["mean"]) > max(2 * d["error"], 1e-9)
        ]
        found[side] = {"count": len(beyond), "text": ", ".join(beyond) or f"nothing {side} by two standard errors"}
    worst = table["shares"]["acc_e"]["worst"] if "acc_e" in table["shares"] else {"after": 0.0}
    found["left"] = f"; {worst['concept']} is left in {percent(worst['after'])}" if worst["after"] > LEFT else ""
    return found


def precision_summary(rows: list[Row]) -> Summary:
    """precision → `table.summarised`."""
    return {precision: summarised(part) for precision, part in grouped(rows, "precision").items()}


def cost_summary(rows: list[Row]) -> Summary:
    """Ratios of the authors' schedule to ours, in FLOPs and time, per pair of steps and to the end with our bank; and
    what each schedule reaches."""
    summary: Summary = {"trainings": {}}
    for row in rows:
        if row["what"] == "pairs":
            flops, seconds, banks = row["pair_flops"], row["pair_seconds"], row["bank_flops"]
            for name in (n for n in flops if n != AUTHORS):
                ratios = [a / b for a, b in zip(seconds[AUTHORS], seconds[name], strict=True)]
                whole = banks[name] + row["steps"] * flops[name]
                ours, theirs = (row["steps"] * statistics.median(seconds[n]) for n in (name, AUTHORS))
                summary[name] = {
                    "flops": round(flops[AUTHORS] / flops[name], 2),
                    "flops_to_the_end": round(row["steps"] * flops[AUTHORS] / whole, 2),
                    "time": round(statistics.median(ratios), 2),
                    "time_to_the_end": round(theirs / (ours + row["bank_seconds"][name]), 2),
                    "time_range": [round(min(ratios), 2), round(max(ratios), 2)],
                }
    trained = [row for row in rows if row["what"] == "training"]
    summary["trainings"] = {name: summarised(part) for name, part in grouped(trained, "schedule").items()}
    return summary


def strength_summary(rows: list[Row]) -> Summary:
    """Mean and spread of rates and Acc_ir at each strength; "each" row's rates with their Spearman; "concepts": mean
    rates over training seeds with theirs; rank correlations of strength and rate: of the mean over rows, and the worst
    of any concept."""
    if not rows:
        return {}
    strengths = rows[0]["strengths"]
    means: Summary = {}
    for name in ("rates", "acc_ir"):
        values = np.array([row[name] for row in rows])
        spread = values.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(len(strengths))
        means[name] = {"mean": [rounded(m) for m in values.mean(axis=0)], "spread": [rounded(s) for s in spread]}
    concepts: dict[str, Summary] = {}
    for concept, part in grouped(rows, "concept").items():
        rates = [rounded(mean) for mean in np.mean([row["rates"] for row in part], axis=0)]
        concepts[concept] = {"seeds": len(part), "rates": rates, "spearman": spearman(strengths, rates)}
    varying = {name: one for name, one in concepts.items() if one["spearman"] is not None}
    worst = max(varying, key=lambda name: varying[name]["spearman"], default="")
    correlation = spearman(strengths, means["rates"]["mean"])
    found = {
        "strengths": strengths,
        "rows": len(rows),
        **means,
        "each": {
            f"{row['concept']}, seed {row['seed']}, {row['images']} images": [row["rates"], row["spearman"]]
            for row in rows
        },
        "concepts": concepts,
        "mean_spearman": correlation,
        "worst_spearman": varying[worst]["spearman"] if len(varying) == len(concepts) else None,
        "worst": {"concept": worst, "seeds": varying[worst]["seeds"]} if worst else {"concept": "none", "seeds": 0},
        "least_acc_ir": min(means["acc_ir"]["mean"]),
        "same_at_zero": all(row["same_at_zero"] for row in rows),
    }
    return found | ({"together": correlation} if len(rows) >= TOGETHER else {})


def attention_summary(rows: list[Row]) -> Summary:
    """The rows by what they measure: scenes → table and `_heatmaps`, concept → what erasing changes, and the cost."""
    bare = ("key", "what", "date", "machine")
    found: Summary = {"scenes": {}, "erased": {}, "cost": None}
    for row in rows:
        facts = {name: value for name, value in row.items() if name not in bare}
        if row["what"] == "cost":
            found["cost"] = facts
        else:
            name = row["kind"] if row["what"] == "scenes" else f"{row['concept']}, seed {row['seed']}"
            facts |= _heatmaps(row) if row["what"] == "scenes" else {}
            found[row["what"]][name] = facts
    return found


def _heatmaps(row: Row) -> Summary:
    """The maps that Inspect Image shows by default, "raw" and in "output" space, a perfect map, and "own" and
    "output_own": the most that a weighting of all maps reaches, with the share of it that is reached ("of_own")."""
    table, shown = row["table"], f"best, t {row['t']}"
    found: Summary = {"raw": table[shown], "output": table[f"output space, {shown}"], "ceiling": table["ceiling"]}
    for name, space in (("raw", ""), ("output", "output space, ")):
        weighted = [measures for key, measures in table.items() if key.startswith(f"{space}weighted, t ")]
        if weighted:
            own = found[f"{name}_own"] = {m: max(measures[m] for measures in weighted) for m in weighted[0]}
            found[f"{name}_of_own"] = {m: found[name][m] / own[m] if own[m] else 1.0 for m in own}
    return {"judged": found}


def merging_summary(rows: list[Row]) -> Summary:
    """way → N → shares, ranks and the worst concept; "single": means over each concept's own LoRA."""
    found: Summary = {"ways": {}, "concepts": []}
    single = [row for row in rows if row["what"] == "single"]
    merges = sorted((row for row in rows if row["what"] == "merge"), key=lambda row: row["n"])
    for row in merges:
        worst = max(row["concepts"], key=lambda phrase: row["concepts"][phrase]["after"])
        facts = {name: row[name] for name in ("acc_e", "acc_ir", "rank", "parameters", "merge_seconds")}
        found["ways"].setdefault(row["way"], {})[row["n"]] = {
            **facts,
            "worst": {"concept": worst, "after": row["concepts"][worst]["after"]},
        }
    if merges:
        found["concepts"] = list(merges[-1]["concepts"])
    own = {row["concept"]: row for row in single}
    for name, phrases in (("first 10", found["concepts"][:10]), ("all", found["concepts"])):
        held = [own[phrase] for phrase in phrases if phrase in own]
        if held and len(held) == len(phrases):
            found.setdefault("single", {})[name] = {
                share: {
                    when: round(statistics.mean(row[share][when] for row in held), 4) for when in ("before", "after")
                }
                for share in ("acc_e", "acc_ir")
            }
    found["by_concept"] = {
        phrase: {
            "single": own[phrase]["acc_e"]["after"] if phrase in own else None,
            **{
                f"{row['way']}, {row['n']}": row["concepts"][phrase]["after"]
                for row in merges
                if row["n"] == 10 and phrase in row["concepts"]
            },
        }
        for phrase in found["concepts"][:10]
    }
    return found


def gate_summary(rows: list[Row]) -> Summary:
    """kind of prompt → how many; threshold → precision and recall of each kind. Unrelated prompts should not pass."""
    if not rows:
        return {}
    kinds = list(rows[0]["prompts"])
    counted = {kind: sum(row["prompts"][kind]["prompts"] for row in rows) for kind in kinds}
    found: Summary = {"concepts": len(rows), "prompts": counted, "default": f"{rows[0]['default']:g}", "thresholds": {}}
    asked = [kind for kind in kinds if kind not in ("unrelated", "misspelt and painted")]
    for number, threshold in enumerate(rows[0]["thresholds"]):
        let = {kind: sum(row["prompts"][kind]["passed"][number] for row in rows) for kind in kinds}
        right = sum(let[kind] for kind in asked)
        found["thresholds"][f"{threshold:g}"] = {
            "precision": round(right / max(1, right + let["unrelated"]), 4),
            "recall": {kind: round(let[kind] / max(1, counted[kind]), 4) for kind in kinds if kind != "unrelated"},
            "unrelated": round(let["unrelated"] / max(1, counted["unrelated"]), 4),
        }
    return found | {"now": found["thresholds"][found["default"]], "counted": sum(counted.values())}


def fair_strengths(curves: list[Row]) -> dict[str, Summary]:
    """method → the largest strength at which mean Acc_ir over the rows is within SPARED of the base's (strength 0's).

    "strength", "held", and the means behind them: "strengths", "rates", "acc_ir".
    held is False where no strength but 0 does that; the strength is then the least one.
    """
    found: dict[str, Summary] = {}
    for method in dict.fromkeys(row["method"] for row in curves):
        rows = [row for row in curves if row["method"] == method]
        strengths = sorted({strength for row in rows for strength in row["strengths"]})
        means: dict[str, list[float]] = {}
        for name in ("rates", "acc_ir"):
            held = [dict(zip(row["strengths"], row[name], strict=True)) for row in rows]
            means[name] = [round(statistics.mean(each[s] for each in held if s in each), 4) for s in strengths]
        kept = dict(zip(strengths, means["acc_ir"], strict=True))
        fair = [s for s in strengths if s and kept[s] >= kept[0] - SPARED]
        chosen = max(fair) if fair else min(s for s in strengths if s)
        found[method] = {"strength": chosen, "held": bool(fair), "strengths": strengths, **means}
    return found


def pooled(counts: Sequence[dict[str, Any]]) -> Summary:
    """{"hits", "images", "share", "interval"} of several counts as one, with Wilson's interval at 95 %."""
    from training.evaluation.intervals import wilson

    hits, images = (sum(count[name] for count in counts) for name in ("hits", "images"))
    share = round(hits / images, 4) if images else None
    return {"hits": hits, "images": images, "share": share, "interval": [round(e, 4) for e in wilson(hits, images)]}


def defences_summary(rows: list[Row]) -> Summary:
    """ "methods": the base and then, best first, what each leaves of the concept ("erased": under any of its names and
    spellings), keeps, and yields to white-box attacks; "fair": `fair_strengths`; "seconds" of the work by its parts;
    "runs": those that came to their end.

    Methods that do not hold Acc_ir come after all that do. Counts are over all concepts.
    """
    curves = [row for row in rows if row["what"] in ("curve", "lower curve")]
    trained = [row for row in curves if row["what"] == "curve"]
    whole = [row for row in rows if row["what"] == "evaluation"]
    if not whole:
        return {}
    fair, suites = fair_strengths(curves), list(dict.fromkeys(suite for row in whole for suite in row["suites"]))
    asking = [suite for suite in suites if suite in ("concept", "synonyms") or suite.startswith("attack ")]
    kept = [suite for suite in suites if suite.startswith("preserved ")]

    def counted(method: str, names: Sequence[str]) -> Summary:
        return pooled([row["suites"][name][method] for row in whole for name in names if name in row["suites"]])

    def attacked(method: str, name: str) -> Summary:
        own = [each for row in whole for each in row["white_box"] if (each["method"], each["attack"]) == (method, name)]
        sides = {side: pooled([each[side] for each in own]) for side in ("before", "after", "control", "base")}
        return {"title": own[0]["title"], **sides}

    methods: dict[str, Summary] = {}
    for method in whole[0]["suites"]["concept"]:
        table = methods[method] = {
            "erased": counted(method, asking),
            "kept": counted(method, kept),
            "suites": {suite: counted(method, [suite]) for suite in suites},
            "white_box": {
                name: attacked(method, name)
                for name in dict.fromkeys(e["attack"] for row in whole for e in row["white_box"])
                if method != "base"
            },
        }
        if method in fair:
            table |= {"strength": fair[method]["strength"], "held": fair[method]["held"]}
            times = [row["training_seconds"] for row in trained if row["method"] == method]
            table["training_seconds"] = round(statistics.mean(times), 1)
        else:
            before, after = (one["kept"]["share"] or 0 for one in (methods["base"], table))
            table["held"] = after >= before - SPARED
    for table in methods.values():  # one that never preserves alike counts as if it erased nothing
        low, high = table["erased"]["interval"]
        table["alike"] = {"share": table["erased"]["share"], "low": low, "high": high}
        if not table["held"]:
            table["alike"] = dict.fromkeys(table["alike"], 1.0)
    ranked = sorted(
        (name for name in methods if name != "base"),
        key=lambda name: (not methods[name]["held"], methods[name]["erased"]["share"]),
    )
    seconds = {
        "trainings": sum(row["training_seconds"] for row in trained),
        "curves": sum(row["seconds"] for row in curves),
        "evaluations": sum(row["seconds"] for row in whole),
    }
    return {
        "methods": {name: methods[name] for name in ("base", *ranked)},
        "fair": fair,
        "concepts": len({row["concept"] for row in whole}),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "hours": sum(round(value, 1) for value in seconds.values()) / 3600,  # of one core
        "runs": [{name: row[name] for name in ("seconds", "workers")} for row in rows if row["what"] == "run"],
    }
