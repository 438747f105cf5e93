"""What the rows of trainings at full size come to: speed and memory, and the long one that is killed and resumed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .rows import Row
from .table import Summary

COMPILED = "compiled"  # of the ways of a full-size training; with weights in bf16 alone
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
            known = None not in peaks.values()
            entry = {
                **slot,
                "pair_seconds": round(pair, 4),
                "step_seconds": round(step, 4),
                "share_of_peak": round(useful / step / row["peak_flops"], 4),
                "bank_seconds": round(row["bank_seconds_per_pass"] * row["bank_passes"], 1),
                "peak_bytes": max(peaks.values()) if known else None,
                "estimated_bytes": max(estimated.values()),
                "estimate_over_peak": round(min(estimated[p] / peaks[p] for p in peaks), 3) if known else None,
            }
            if authors := theirs.get(row["resolution"]):
                flops = AUTHORS_PASSES * authors["forward_flops"] + AUTHORS_STEPS * useful
                entry["times_less_time"] = round(authors["pair_seconds"][0] / pair, 1)
                entry["times_less_flops"] = round(flops / row["pair_flops"], 1)
            table.append(entry)
        found[name] = {"peak_tflops": round(here[-1]["peak_flops"] / 1e12, 2), "rows": table, "authors": list(theirs)}
    return found


def full_size(train: Summary) -> Summary:
    """The figures of Flux.1-dev's shape on a GPU that bars ask for, from `train_summary`; rows of small shapes and of
    CPUs do not count. One that was not measured is missing."""
    rows = [
        row
        for name, one in train.items()
        if name.startswith("flux-dev-random") and not name.endswith("cpu")
        for row in one["rows"]
        if "pair_seconds" in row
    ]
    plain = [row for row in rows if (row["precision"], row["mode"]) == ("bf16", "plain")]
    shares = {
        side: [r["share_of_peak"] for r in rows if r["resolution"] == side and r["mode"] != "streamed"]
        for side in (512, 1024)
    }
    peaks = {
        mode: [r["peak_bytes"] / 1024**3 for r in rows if (r["resolution"], r["mode"]) == (512, mode)]
        for mode in ("checkpointed", "streamed")
    }
    less = {name: [row[name] for row in plain if name in row] for name in ("times_less_flops", "times_less_time")}
    over = [row["estimate_over_peak"] for row in rows]
    found: Summary = {f"share of peak, {side}": max(values) for side, values in shares.items() if values}
    found |= {f"gigabytes, {mode}": min(values) for mode, values in peaks.items() if values}
    found |= {name: min(values) for name, values in less.items() if values}
    if over:
        found |= {"least_estimate": min(over), "largest_estimate": max(over), "combinations": len(over)}
    return found


def long_training(endurance: Sequence[Summary]) -> Summary:
    """Trainings of 1,000 pairs at full size on a GPU, from `endurance_summary`: whether all held; nothing where there
    are none."""
    there = [r for r in endurance if r["model"] == "flux-dev-random" and r["device"] != "cpu" and r["pairs"] >= 1000]
    facts = ("finite", "taken_by_the_host", "taken_by_diffusers")
    held = all(row["steps"] == row["pairs"] and all(row[fact] for fact in facts) for row in there)
    text = ", ".join(f"{row['precision']}: {row['steps']} pairs" for row in there)
    return {"held": held, "text": text} if there else {}


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
