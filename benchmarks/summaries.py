"""Summaries of result rows: means, spreads, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .rows import Row

UNNAMED = "none, the style not named"  # what an erased style falls to that is neither shown nor pushed away
KINDS = {"entity": "nouns", "abstraction": "styles", "relationship": "relations"}
SHARES = ("acc_e", "acc_g", "acc_ir", "acc_ir_seen")
ATTENTION = "attention"  # of the erased noun, what is left of it on its own object
AUTHORS = "authors' schedule"
DELETION = "attention_deletion"
EVERY = "every kind"  # of concept
EARLY = "200 steps"  # variants whose names begin so are compared with it
SPARED = 0.02  # of Acc_ir, which a method may lose where methods are compared at equal preservation
Summary = dict[str, Any]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample (0 for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties, -1..1; None where one of them does not vary."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    a, b = ranks(first), ranks(second)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return round(statistics.correlation(a, b), 4)


def shares_of(row: Row) -> dict[str, dict[str, float]]:
    """All shares of a row that have images: accuracies, attacks, attention left, parts (as "part: …")."""
    found = {name: row[name] for name in SHARES} | row["attacks"]
    found |= {ATTENTION: row[ATTENTION]} if ATTENTION in row else {}
    found |= {f"part: {name}": share for name, share in row["parts"].items()}
    return {name: share for name, share in found.items() if share["images"]}


def _table(rows: list[Row]) -> Summary:
    """One variant's rows: for each share means before and after, the spread after over rows, the worst concept."""
    shares: Summary = {}
    every = [shares_of(row) for row in rows]
    for name in dict.fromkeys(name for shares_ in every for name in shares_):
        held = [(row["concept"], share[name]) for row, share in zip(rows, every, strict=True) if name in share]
        after, spread = mean_and_spread([share["after"] for _, share in held])
        concepts: dict[str, list[float]] = {}
        for concept, share in held:
            concepts.setdefault(concept, []).append(share["after"])
        means = {concept: statistics.mean(values) for concept, values in concepts.items()}
        keep = name.startswith(("acc_ir", "part"))
        worst = (min if keep else max)(means, key=means.__getitem__)
        shares[name] = {
            "before": round(statistics.mean(share["before"] for _, share in held), 4),
            "after": round(after, 4),
            "spread": round(spread, 4),
            "worst": {"concept": worst, "after": round(means[worst], 4)},
            "rows": len(held),
        }
    drifts = [row["drift"] for row in rows if row["drift"]]
    result: Summary = {"rows": len(rows), "shares": shares}
    if drifts:
        result["drift"] = {n: round(statistics.mean(d[n] for d in drifts), 4) for n in ("perceptual", "psnr")}
    for name in ("seconds", "cpu_seconds", "bank_seconds", "measure_cpu_seconds"):
        if times := [row[name] for row in rows if name in row]:
            result[name] = {"mean": round(statistics.mean(times), 1), "max": max(times)}
    return result


def erasure_summary(rows: list[Row]) -> Summary:
    """method → kind → `_table`."""
    found: Summary = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(KINDS[row["kind"]], []).append(row)
    return {method: {kind: _table(part) for kind, part in kinds.items()} for method, kinds in found.items()}


def attacked(table: Summary) -> float:
    """Acc_g and the attacks as one number, their mean: what bar 2 compares."""
    names = [*attacks_in(table), *(["acc_g"] if "acc_g" in table["shares"] else [])]
    return statistics.mean(table["shares"][name]["after"] for name in names)


def attacks_in(table: Summary) -> list[str]:
    return [name for name in table["shares"] if name not in (*SHARES, ATTENTION) and not name.startswith("part")]


def _compared(row: Row) -> dict[str, float]:
    """What variants are compared by: all shares after erasing, and the drift of untouched prompts."""
    found = {name: share["after"] for name, share in shares_of(row).items()}
    return found | ({"drift": row["drift"]["perceptual"]} if row["drift"] else {})


def ablation_summary(rows: list[Row]) -> Summary:
    """Kind, and EVERY for all together → variant → `_table` with "difference": mean and standard error to the defaults,
    or to EARLY where a name begins so, on the same concepts and seeds."""
    kinds = {EVERY: rows}
    for row in rows:
        kinds.setdefault(KINDS[row["kind"]], []).append(row)
    return {kind: _variants(part) for kind, part in kinds.items()}


def _variants(rows: list[Row]) -> Summary:
    found: dict[str, list[Row]] = {"defaults": [], EARLY: []}  # what the others are compared with comes first
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    references = {
        name: {(row["concept"], row["seed"]): _compared(row) for row in found[name]} for name in ("defaults", EARLY)
    }
    summary = {}
    for variant, part in found.items():
        if not part:
            continue
        reference = references[EARLY if variant.startswith(f"{EARLY} ") else "defaults"]
        table = summary[variant] = _table(part)
        table["difference"] = {}
        for name in dict.fromkeys(name for row in part for name in _compared(row)):
            pairs = [
                (_compared(row)[name], reference[row["concept"], row["seed"]][name])
                for row in part
                if name in _compared(row) and name in reference.get((row["concept"], row["seed"]), {})
            ]
            if pairs:
                mean, spread = mean_and_spread([a - b for a, b in pairs])
                error = spread / len(pairs) ** 0.5
                table["difference"][name] = {"mean": round(mean, 4), "error": round(error, 4), "pairs": len(pairs)}
    return summary


def precision_summary(rows: list[Row]) -> Summary:
    """precision → `_table`."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["precision"], []).append(row)
    return {precision: _table(part) for precision, part in found.items()}


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
    for schedule in dict.fromkeys(row["schedule"] for row in rows if row["what"] == "training"):
        summary["trainings"][schedule] = _table([r for r in rows if r.get("schedule") == schedule])
    return summary


AUTHORS_PASSES, AUTHORS_STEPS = 142, 3  # of a pair: passes without gradient; those with one, and their backward pass


def train_summary(rows: list[Row]) -> Summary:
    """model, device → the rows of combinations with what follows from them, and whether the authors' were measured.

    Of each combination: seconds per pair and per grad step (medians), the share of the device's measured peak that a
    grad step reaches (what checkpointing computes twice does not count), seconds of a bank by the defaults, bytes at
    the peak and estimated for the same phases, their ratio at the tightest phase, and how many times more the authors'
    schedule takes, in time and FLOPs.
    """
    found: Summary = {}
    for name in dict.fromkeys(f"{row['model']}, {row['device']}" for row in rows):
        here = [row for row in rows if f"{row['model']}, {row['device']}" == name]
        theirs = {row["resolution"]: row for row in here if row["what"] == "authors" and "pair_seconds" in row}
        table = []
        for row in (row for row in here if row["what"] == "combination"):
            slot = {field: row[field] for field in ("precision", "resolution", "mode")}
            if "out_of_memory" in row:
                table.append({**slot, "out_of_memory": True})
                continue
            pair, step = (statistics.median(row[f"{what}_seconds"]) for what in ("pair", "step"))
            useful = row["step_flops"] - row["replayed_flops"]
            peaks, estimated = row["peak_bytes"], row["estimated_bytes"]
            told = None not in peaks.values()
            entry = {
                **slot,
                "pair_seconds": round(pair, 4),
                "step_seconds": round(step, 4),
                "share_of_peak": round(useful / step / row["peak_flops"], 4),
                "bank_seconds": round(row["bank_seconds_per_pass"] * row["bank_passes"], 1),
                "peak_bytes": max(peaks.values()) if told else None,
                "estimated_bytes": max(estimated.values()),
                "estimate_over_peak": round(min(estimated[p] / peaks[p] for p in peaks), 3) if told else None,
            }
            if authors := theirs.get(row["resolution"]):
                flops = AUTHORS_PASSES * authors["forward_flops"] + AUTHORS_STEPS * useful
                entry["times_less_time"] = round(authors["pair_seconds"][0] / pair, 1)
                entry["times_less_flops"] = round(flops / row["pair_flops"], 1)
            table.append(entry)
        found[name] = {"peak_tflops": round(here[-1]["peak_flops"] / 1e12, 2), "rows": table, "authors": list(theirs)}
    return found


def endurance_summary(rows: list[Row]) -> list[Summary]:
    """What each training was and whether it held, without what the rows were made by."""
    names = (
        "model",
        "device",
        "precision",
        "pairs",
        "killed_after",
        "steps",
        "seconds",
        "identical",
        "finite",
        "taken_by_the_host",
        "taken_by_diffusers",
    )
    return [{name: row[name] for name in names if name in row} for row in rows]


def strength_summary(rows: list[Row]) -> Summary:
    """Mean and spread of rates and Acc_ir at each strength; "each" row's rates with their Spearman; "concepts": mean
    rates over training seeds with theirs; rank correlations of strength and rate: of the mean over rows, and the worst
    of any concept."""
    if not rows:
        return {}
    strengths = rows[0]["strengths"]

    def over(part: list[Row], name: str) -> list[tuple[float, float]]:
        return [mean_and_spread(values) for values in zip(*(row[name] for row in part), strict=True)]

    means: Summary = {
        name: {
            "mean": [round(mean, 4) for mean, _ in over(rows, name)],
            "spread": [round(spread, 4) for _, spread in over(rows, name)],
        }
        for name in ("rates", "acc_ir")
    }
    concepts: dict[str, Summary] = {}
    for concept in dict.fromkeys(row["concept"] for row in rows):
        part = [row for row in rows if row["concept"] == concept]
        rates = [round(mean, 4) for mean, _ in over(part, "rates")]
        concepts[concept] = {"seeds": len(part), "rates": rates, "spearman": spearman(strengths, rates)}
    found = [each["spearman"] for each in concepts.values()]
    return {
        "strengths": strengths,
        "rows": len(rows),
        **means,
        "each": {
            f"{row['concept']}, seed {row['seed']}, {row['images']} images": [row["rates"], row["spearman"]]
            for row in rows
        },
        "concepts": concepts,
        "mean_spearman": spearman(strengths, means["rates"]["mean"]),
        "worst_spearman": None if None in found else max(found),
        "same_at_zero": all(row["same_at_zero"] for row in rows),
    }


def attention_summary(rows: list[Row]) -> Summary:
    """The rows by what they measure: scenes → table, concept → what erasing changes, and the cost."""
    bare = ("key", "what", "date", "machine")
    found: Summary = {"scenes": {}, "erased": {}, "cost": None}
    for row in rows:
        facts = {name: value for name, value in row.items() if name not in bare}
        if row["what"] == "cost":
            found["cost"] = facts
        else:
            name = row["kind"] if row["what"] == "scenes" else f"{row['concept']}, seed {row['seed']}"
            found[row["what"]][name] = facts
    return found


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
    return found


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
        "runs": [{name: row[name] for name in ("seconds", "workers")} for row in rows if row["what"] == "run"],
    }
