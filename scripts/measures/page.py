"""Summaries of result rows, the bars they meet or miss, and benchmarks/README.md out of the result files."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .rows import Row, Rows, read_result

KINDS = {"entity": "nouns", "abstraction": "styles", "relationship": "relations"}
SHARES = ("acc_e", "acc_g", "acc_ir", "acc_ir_seen")
TERMS = ("esd", "attn", "lora", "rsc")
NAMES = {"acc_e": "Acc_e", "acc_g": "Acc_g", "acc_ir": "Acc_ir", "acc_ir_seen": "Acc_ir, seen"}
AUTHORS = "authors' schedule"
Summary = dict[str, Any]


# --- summaries ------------------------------------------------------------------------------------------------------


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
    """All shares of a row that have images: accuracies, attacks, parts (as "part: …")."""
    found = {name: row[name] for name in SHARES} | row["attacks"]
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
    names = [*_attacks(table), *(["acc_g"] if "acc_g" in table["shares"] else [])]
    return statistics.mean(table["shares"][name]["after"] for name in names)


def _attacks(table: Summary) -> list[str]:
    return [name for name in table["shares"] if name not in SHARES and not name.startswith("part")]


def ablation_summary(rows: list[Row]) -> Summary:
    """variant → `_table` with "difference": to the defaults on the same concepts and seeds, mean and standard error."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    reference = {(row["concept"], row["seed"]): shares_of(row) for row in found.get("defaults", [])}
    summary = {}
    for variant, part in found.items():
        table = summary[variant] = _table(part)
        table["difference"] = {}
        for name in table["shares"]:
            pairs = [
                (shares_of(row)[name]["after"], reference[row["concept"], row["seed"]][name]["after"])
                for row in part
                if name in shares_of(row) and name in reference.get((row["concept"], row["seed"]), {})
            ]
            if pairs:
                mean, spread = mean_and_spread([a - b for a, b in pairs])
                error = spread / len(pairs) ** 0.5
                table["difference"][name] = {"mean": round(mean, 4), "error": round(error, 4), "pairs": len(pairs)}
    return summary


def cost_summary(rows: list[Row]) -> Summary:
    """Ratios of the authors' schedule to ours, in FLOPs and time, and what each schedule reaches."""
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


def strength_summary(rows: list[Row]) -> Summary:
    """Mean and spread of the rates at each strength, and the worst correlation of any concept and seed."""
    if not rows:
        return {}
    columns = [mean_and_spread(values) for values in zip(*(row["rates"] for row in rows), strict=True)]
    found = [row["spearman"] for row in rows]
    return {
        "strengths": rows[0]["strengths"],
        "mean": [round(mean, 4) for mean, _ in columns],
        "spread": [round(spread, 4) for _, spread in columns],
        "worst_spearman": None if None in found else max(found),
        "same_at_zero": all(row["same_at_zero"] for row in rows),
    }


# --- bars -----------------------------------------------------------------------------------------------------------

Bar = tuple[str, bool | None, str]  # what is asked, whether it is met (None: not measured), the numbers


def bars(results: dict[str, Summary]) -> list[Bar]:
    """The bars of "The erasure engine" judged by the summaries, strictly: a mean over a bar by any amount misses it."""
    erasure, ablation = results.get("erasure") or {}, results.get("ablation") or {}
    return [
        *_first(erasure.get("eraseanything", {}).get("nouns")),
        *_second(erasure, ablation),
        *_third(results.get("cost") or {}),
        *_fourth(results.get("strength") or {}),
        *_fifth(erasure.get("eraseanything", {})),
    ]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _kept(table: Summary) -> tuple[bool | None, str]:
    ir = table["shares"].get("acc_ir")
    if ir is None:
        return None, ""
    return ir["after"] >= ir["before"] - 0.02, f"{percent(ir['before'])} → {percent(ir['after'])}"


def _first(table: Summary | None) -> list[Bar]:
    asked = [("acc_e", "1. Acc_e ≤ 5 %", 0.05), ("acc_g", "1. Acc_g ≤ 8 %", 0.08)]
    attacks = _attacks(table) if table else []
    asked += [(name, f"1. Attack {name} ≤ 12 %, base ≥ 90 %", 0.12) for name in attacks or ["by any other spelling"]]
    rest = ("1. Acc_ir within 2 points of the base", "1. No concept's Acc_e above 15 %", "1. ≤ 6 minutes per concept")
    if table is None:
        return [(text, None, "") for text in [*(text for _, text, _ in asked), *rest]]
    found: list[Bar] = []
    for name, text, limit in asked:
        share = table["shares"].get(name)
        if share is None:
            found.append((text, None, ""))
        else:
            met = share["after"] <= limit and (name in SHARES or share["before"] >= 0.9)
            found.append(
                (text, met, f"{percent(share['before'])} → {percent(share['after'])} ± {percent(share['spread'])}")
            )
    worst, slow = table["shares"]["acc_e"]["worst"], table["seconds"]
    found.append((rest[0], *_kept(table)))
    found.append((rest[1], worst["after"] <= 0.15, f"{worst['concept']} {percent(worst['after'])}"))
    found.append((rest[2], slow["max"] <= 360, f"mean {slow['mean']:.0f} s, slowest {slow['max']:.0f} s"))
    return found


def _second(erasure: Summary, ablation: Summary) -> list[Bar]:
    found: list[Bar] = []
    ours = erasure.get("eraseanything", {}).get("nouns")
    for other, text, strict in (
        ("esd", "beats ESD", True),
        ("concept_ablation", "beats Concept Ablation", True),
        ("gem", "is no worse than GEM", False),
        ("multi_objective", "bi-level beats multi-objective", True),
    ):
        theirs = erasure.get(other, {}).get("nouns")
        text = f"2. EraseAnything {text} on Acc_g and attacks at equal or better Acc_ir"
        if not ours or not theirs or "acc_ir" not in ours["shares"] or not _attacks(ours):
            found.append((text, None, ""))
            continue
        a, b = attacked(ours), attacked(theirs)
        ir_a, ir_b = (table["shares"]["acc_ir"]["after"] for table in (ours, theirs))
        met = (a < b if strict else a <= b) and ir_a >= ir_b
        found.append((text, met, f"{percent(a)} against {percent(b)}, Acc_ir {percent(ir_a)} against {percent(ir_b)}"))
    for term in TERMS:
        text = f"2. The term {term} earns its place"
        if "defaults" not in ablation or f"without {term}" not in ablation:
            found.append((text, None, "off by default, or not measured"))
            continue
        difference = ablation[f"without {term}"]["difference"]
        worse = [
            f"{NAMES.get(name, name)} {100 * d['mean']:+.1f} ± {100 * d['error']:.1f} points"
            for name, d in difference.items()
            if not name.startswith("part")
            and (-d["mean"] if name.startswith("acc_ir") else d["mean"]) > max(2 * d["error"], 1e-9)
        ]
        found.append((text, bool(worse), f"without it: {', '.join(worse) or 'nothing worse by two standard errors'}"))
    return found


def _third(cost: Summary) -> list[Bar]:
    texts = (
        "3. ≥ 30 × fewer FLOPs per pair",
        "3. ≥ 20 × less time per pair",
        "3. At equal or better Acc, as many pairs",
    )
    found: list[Bar] = []
    trained = cost.get("trainings", {})
    authors = trained.get(AUTHORS)
    for name in ("ours", "ours, batch 1"):
        one = cost.get(name)
        here = [f"{text} ({name})" for text in texts]
        if one is None:
            found += [(text, None, "") for text in here]
            continue
        low, high = one["time_range"]
        found.append(
            (here[0], one["flops"] >= 30, f"{one['flops']} ×; to the end, bank included, {one['flops_to_the_end']} ×")
        )
        numbers = f"{one['time']} × ({low} to {high}); to the end {one['time_to_the_end']} ×"
        found.append((here[1], one["time"] >= 20, numbers))
        if authors is None or name not in trained:
            found.append((here[2], None, ""))
            continue
        ours, theirs = trained[name]["shares"], authors["shares"]
        both = [(n, ours[n]["after"], theirs[n]["after"]) for n in SHARES[:3] if n in ours and n in theirs]
        met = all(a >= b if n == "acc_ir" else a <= b for n, a, b in both)
        found.append((here[2], met, ", ".join(f"{NAMES[n]} {percent(a)} against {percent(b)}" for n, a, b in both)))
    return found


def _fourth(strength: Summary) -> list[Bar]:
    monotone, still = "4. Strength is monotone: Spearman ≤ −0.95 per concept", "4. Strength 0 changes nothing"
    if not strength:
        return [(monotone, None, ""), (still, None, "")]
    worst = strength["worst_spearman"]
    return [
        (
            monotone,
            worst is not None and worst <= -0.95,
            f"worst {worst}" if worst is not None else "a rate never moves",
        ),
        (still, strength["same_at_zero"], "images equal bit by bit" if strength["same_at_zero"] else "images differ"),
    ]


def _fifth(tables: Summary) -> list[Bar]:
    found: list[Bar] = []
    for kind in ("styles", "relations"):
        text = f"5. {kind.capitalize()}: Acc_e ≤ 15 % with Acc_ir within 2 points of the base"
        table = tables.get(kind)
        if table is None:
            found.append((text, None, ""))
            continue
        share, (kept, numbers) = table["shares"]["acc_e"], _kept(table)
        erased = f"Acc_e {percent(share['before'])} → {percent(share['after'])}"
        found.append((text, kept and share["after"] <= 0.15, f"{erased}, Acc_ir {numbers}"))
    return found


# --- the page -------------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table; an empty line after it."""
    return [
        f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(line)} |" for line in lines), ""
    ]  # fmt: skip


def _cell(share: Summary | None, worst: bool = False) -> str:
    if share is None:
        return "–"
    text = f"{100 * share['after']:.1f} ± {100 * share['spread']:.1f}"
    return f"{text} ({share['worst']['concept']} {100 * share['worst']['after']:.1f})" if worst else text


def _erasure_page(summary: Summary) -> list[str]:
    lines: list[str] = []
    for kind in KINDS.values():
        tables = {method: kinds[kind] for method, kinds in summary.items() if kind in kinds}
        if not tables:
            continue
        names = list(dict.fromkeys(name for table in tables.values() for name in table["shares"]))
        first = next(iter(tables.values()))
        base = ["base", *(f"{100 * first['shares'][n]['before']:.1f}" if n in first["shares"] else "–" for n in names)]
        body = [
            [method, *(_cell(table["shares"].get(n), worst=n == "acc_e") for n in names), *_drift(table)]
            for method, table in tables.items()
        ]
        head = ["", *(NAMES.get(n, n.removeprefix("part: ")) for n in names), "drift", "PSNR", "s", "rows"]
        lines += [f"### {kind.capitalize()}", "", *markdown(head, [[*base, "0", "∞", "", ""], *body])]
    return lines


def _drift(table: Summary) -> list[str]:
    drift, seconds = table.get("drift"), table.get("seconds")
    moved = [f"{drift['perceptual']:.3f}", f"{drift['psnr']:.1f} dB"] if drift else ["–", "–"]
    return [*moved, f"{seconds['mean']:.0f}" if seconds else "0", str(table["rows"])]


def _ablation_page(summary: Summary) -> list[str]:
    names = [n for n in dict.fromkeys(n for t in summary.values() for n in t["shares"]) if not n.startswith("part")]

    def cell(table: Summary, name: str, is_default: bool) -> str:
        difference = table["difference"].get(name)
        if is_default or difference is None:
            return _cell(table["shares"].get(name))
        return f"{100 * difference['mean']:+.1f} ± {100 * difference['error']:.1f}"

    body = [
        [variant, *(cell(table, name, variant == "defaults") for name in names), str(table["rows"])]
        for variant, table in summary.items()
    ]
    return [
        "The first line has the defaults' means and standard deviations, the others the difference to them on the same",
        "concepts and seeds, in points, with its standard error.", "",
        *markdown(["", *(NAMES.get(name, name) for name in names), "rows"], body),
    ]  # fmt: skip


def _cost_page(summary: Summary) -> list[str]:
    body = [
        [name, f"{one['flops']} ×", f"{one['flops_to_the_end']} ×",
         f"{one['time']} × ({one['time_range'][0]} to {one['time_range'][1]})", f"{one['time_to_the_end']} ×"]
        for name, one in summary.items() if name != "trainings"
    ]  # fmt: skip
    trained = [
        [name, *(_cell(table["shares"].get(share)) for share in SHARES), str(table["rows"])]
        for name, table in summary["trainings"].items()
    ]
    return [
        "How many times more the authors' schedule takes than ours: per pair, and to the end with our bank counted.",
        "Their pair trains on one sample; ours, by default, on more.", "",
        *markdown(["", "FLOPs per pair", "FLOPs to the end", "time per pair", "time to the end"], body),
        "After equally many pairs:", "",
        *markdown(["", *(NAMES[name] for name in SHARES), "rows"], trained),
    ]  # fmt: skip


def _strength_page(summary: Summary) -> list[str]:
    if not summary:
        return []
    spread = zip(summary["mean"], summary["spread"], strict=True)
    body = [["concept seen, %", *(f"{100 * mean:.0f} ± {100 * far:.0f}" for mean, far in spread)]]
    return markdown(["strength", *(f"{s:g}" for s in summary["strengths"])], body)


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


LOCALISED = ("pointing", "iou_best", "iou_otsu", "precision", "energy", "leakage")


def _attention_page(summary: Summary) -> list[str]:
    lines = [
        "One pass over composed scenes with known masks, noised to t. Pointing: the highest value lies on the object;",
        "IoU at the best threshold and at Otsu's; average precision over pixels; energy: share of the map on it;",
        "leakage: that on the other objects. Area: a map without information. Ceiling: a perfect map on the image",
        "tokens' grid.", "",
    ]  # fmt: skip
    for kind, row in summary["scenes"].items():
        table = row["table"]
        shown = [n for n in table if n in ("area", "ceiling") or "best" in n]
        body = [[name, *(f"{table[name][measure]:.3f}" for measure in LOCALISED)] for name in shown]
        lines += [f"### {kind.capitalize()} ({row['objects']} objects)", ""]
        lines += markdown(["", "pointing", "best IoU", "Otsu IoU", "precision", "energy", "leakage"], body)
        times = list(dict.fromkeys(n.split(", t ")[1] for n in table if n.startswith("block ")))
        blocks = list(dict.fromkeys(n.split(",")[0] for n in table if n.startswith("block ")))
        cells = [[b, *(f"{table[f'{b}, t {t}']['iou_best']:.3f}" for t in times)] for b in blocks]
        lines += ["Best IoU by block and t:", "", *markdown(["", *times], cells)]
    if summary["erased"]:
        body = [
            [name, f"{row['falls']['median']} × (least {row['falls']['worst']} ×)",
             f"{row['others']['mean']} (worst {row['others']['worst']})", str(row["scenes"])]
            for name, row in summary["erased"].items() if "falls" in row
        ]  # fmt: skip
        head = ["erased", "its attention on its own object falls", "correlation of other words' maps", "scenes"]
        lines += markdown(head, body)
    if cost := summary["cost"]:
        share, apart = (
            cost[f"added_share_5_of_57_blocks{end}"] for end in ("", "_beside_another_kernel")
        )  # fmt: skip
        lines += [
            f"Recording 5 of 57 blocks at Flux's shape ({cost['dtype']}) adds {percent(share)} to attention's time, "
            f"{percent(apart)} where another kernel computes it; memory {cost['peak_mib_added_by_recording']:.0f} MiB "
            f"(one head's whole matrix: {cost['one_head_matrix_mib']:.0f} MiB); a recording of 28 steps holds "
            f"{cost['recording_28_steps_mb']:.0f} MB.", "",
        ]  # fmt: skip
    return lines


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], Summary], Callable[[Summary], list[str]]]] = {
    "erasure": ("Methods", erasure_summary, _erasure_page),
    "ablation": ("One setting at a time", ablation_summary, _ablation_page),
    "cost": ("Cost", cost_summary, _cost_page),
    "strength": ("Strength", strength_summary, _strength_page),
    "attention": ("Looking inside", attention_summary, _attention_page),
}

INTRO = """# Benchmarks

Made by `python scripts/bench.py page` from the JSON files beside it; every figure can be made again by the command
above its table, which does only what is missing. Shares are percentages of generated images at fixed seeds in which the
demo model's classifier sees what was asked for, as mean ± standard deviation over concepts and training seeds. Acc_e:
the erased concept, with the worst concept in brackets; Acc_g: its synonyms; attacks: other ways to write it; all better
when lower. Acc_ir: what should stay, where no preservation prompt held its nouns, and "seen" where one did; better when
higher. Drift: mean distance of untouched prompts' images in the classifier's features (0 to 2); PSNR the same in dB.
""".splitlines()


def page_of(results: dict[str, dict[str, Any]]) -> str:
    """The page, from the result files' contents by name."""
    summaries = {name: SECTIONS[name][1](result["rows"]) for name, result in results.items()}
    signs = {True: "met", False: "missed", None: "not measured"}
    lines = [*INTRO, "", "## Bars", ""]
    lines += markdown(["bar", "", "numbers"], [[text, signs[met], numbers] for text, met, numbers in bars(summaries)])
    for name, (title, _, section) in SECTIONS.items():
        if name in results:
            lines += [f"## {title}", "", *_made(results[name]), *section(summaries[name])]
    return "\n".join(lines).rstrip() + "\n"


def _made(result: dict[str, Any]) -> list[str]:
    """How a result came about, and what a reader must know about rows that are not of one make."""
    where, rows = result["machine"], result["rows"]
    device = where["gpu"] or f"{where['cores']} cores ({where['machine']})"
    lines = [f"`python {result['command']}`, {result['date']}, {device}, torch {where['torch']}.", ""]
    for what in ("model", "engine", "threads", "counts"):
        different = {json.dumps(row.get(what), sort_keys=True) for row in rows if what in row}
        if len(different) > 1:
            lines += [
                f"**These rows are of {len(different)} different states ({what}): make them again before quoting.**",
                "",
            ]
    return lines


def conclude(rows: Rows, name: str) -> None:
    """Writes the summary of all rows beside them, and shows it."""
    _, summary_of, section = SECTIONS[name]
    summary = summary_of(rows.all())
    rows.summarise(summary)
    print("\n".join(section(summary)), flush=True)


def page(args: argparse.Namespace) -> None:
    """Writes README.md beside the result files."""
    folder: Path = args.out
    results = {name: result for name in SECTIONS if (result := read_result(folder / f"{name}.json"))}
    text = page_of(results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"· written to {folder / 'README.md'}", flush=True)
