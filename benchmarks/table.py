"""Tables: result rows as one long pandas frame, what groups of it come to, and markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean
from typing import Any

import pandas as pd

from .rows import Row

SHARES = ("acc_e", "acc_g", "acc_ir", "acc_ir_seen")
ATTENTION = "attention"  # of the erased noun, what is left of it on its own object
KEPT = ("acc_ir", "part")  # shares whose names begin so are better when higher
TIMES = ("seconds", "cpu_seconds", "bank_seconds", "measure_cpu_seconds")
Summary = dict[str, Any]


def percent(share: float) -> str:
    """0..1 as a percentage."""
    return f"{100 * share:.1f} %"


def markdown(lines: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> list[str]:
    """A table's lines, with an empty line after it; a cell that a line does not have is a dash.

    Args:
        lines: cells by the heading of their column.
        columns: the headings in order, where not every line has them in that order.
    """
    if not lines:
        return []
    frame = pd.DataFrame(list(lines), columns=columns, dtype=object).fillna("–")
    text = frame.to_markdown(index=False, tablefmt="github", disable_numparse=True, stralign=None)
    head, rule, *rest = text.splitlines()
    return [head, re.sub("-+", " --- ", rule), *rest, ""]  # tabulate's rule is as wide as the widest cell


def shares_of(row: Row) -> dict[str, dict[str, float]]:
    """All shares of a row that have images: accuracies, attacks, attention left, parts (as "part: …")."""
    found = {name: row[name] for name in SHARES} | row["attacks"]
    found |= {ATTENTION: row[ATTENTION]} if ATTENTION in row else {}
    found |= {f"part: {name}": share for name, share in row["parts"].items()}
    return {name: share for name, share in found.items() if share["images"]}


def long(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row and share: "concept", "seed", "share", "before", "after"; drift is a share that was 0 before."""
    lines = []
    for row in rows:
        shares = shares_of(row) | (
            {"drift": {"before": 0.0, "after": row["drift"]["perceptual"]}} if row["drift"] else {}
        )
        for name, share in shares.items():
            lines.append((row["concept"], row["seed"], name, share["before"], share["after"]))
    return pd.DataFrame(lines, columns=["concept", "seed", "share", "before", "after"])


def summarised(rows: Sequence[Row]) -> Summary:
    """What rows of one method, variant or precision come to.

    Returns: "rows"; "shares": name → means "before" and "after", "spread" (standard deviation of "after" over rows),
    the "worst" concept, "rows"; "asked": the mean of Acc_g and the attacks; means of "drift" and mean and maximum of
    times, in seconds.
    """
    frame, shares = long(rows), {}
    for name, part in frame[frame["share"] != "drift"].groupby("share", sort=False):
        means = part.groupby("concept", sort=False)["after"].agg(mean)
        worst = means.idxmin() if name.startswith(KEPT) else means.idxmax()
        shares[name] = {
            "before": rounded(mean(part["before"])),
            "after": rounded(mean(part["after"])),
            "spread": rounded(part["after"].std()),
            "worst": {"concept": worst, "after": rounded(means[worst])},
            "rows": len(part),
        }
    found: Summary = {"rows": len(rows), "shares": shares}
    if attacks := attacks_in(found):
        asked = [*attacks, *(["acc_g"] if "acc_g" in shares else [])]
        found["asked"] = mean(shares[name]["after"] for name in asked)
    if drifts := [row["drift"] for row in rows if row["drift"]]:
        found["drift"] = {name: rounded(mean(drift[name] for drift in drifts)) for name in ("perceptual", "psnr")}
    for name in TIMES:
        if times := [row[name] for row in rows if name in row]:
            found[name] = {"mean": round(mean(times), 1), "max": max(times)}
    return found


def attacks_in(table: Summary) -> list[str]:
    """The attacks among a summary's shares."""
    return [name for name in table["shares"] if name not in (*SHARES, ATTENTION) and not name.startswith("part")]


def grouped(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    """The rows by their value of a column, in the order of first appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def differences(rows: Sequence[Row], reference: Sequence[Row]) -> Summary:
    """share → "mean" and standard "error" of rows against reference rows of the same concept and seed, and "pairs"."""
    pairs = long(rows).merge(long(reference), on=["concept", "seed", "share"], suffixes=("", "_reference"))
    pairs["difference"] = pairs["after"] - pairs["after_reference"]
    return {
        name: {"mean": rounded(mean(part)), "error": rounded(part.sem()), "pairs": len(part)}
        for name, part in pairs.groupby("share", sort=False)["difference"]
    }


def rounded(value: float) -> float:
    """Four digits; 0 for what a single value has none of."""
    return 0.0 if pd.isna(value) else round(float(value), 4)
