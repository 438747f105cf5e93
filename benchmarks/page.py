"""benchmarks/README.md out of the result files beside it."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.environment import ROOT

from .bars import SIGNS, bars
from .readme import refresh
from .rows import Row, Rows, read_result
from .summaries import (
    COMPILED,
    EARLY,
    KINDS,
    NAMES,
    SPARED,
    UNNAMED,
    ablation_summary,
    attention_summary,
    cost_summary,
    defences_summary,
    endurance_summary,
    erasure_summary,
    gate_summary,
    merging_summary,
    precision_summary,
    strength_summary,
    train_summary,
)
from .table import SHARES, Summary, markdown, percent
from .workplace import behaviour

RESULTS = ROOT / "benchmarks" / "results"


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
        # which nouns a seed's prompts hold differs, and so does the base's share: it is told for the most seeds
        tables = dict(sorted(tables.items(), key=lambda item: -item[1]["rows"]))
        names = list(dict.fromkeys(name for table in tables.values() for name in table["shares"]))
        before = {n: share["before"] for t in reversed(tables.values()) for n, share in t["shares"].items()}
        base = ["base", *(f"{100 * before[n]:.1f}" for n in names)]
        body = [
            [method, *(_cell(table["shares"].get(n), worst=n == "acc_e") for n in names), *_drift(table)]
            for method, table in tables.items()
        ]
        head = ["", *map(_heading, names), "drift", "PSNR", "s", "rows"]
        lines += [f"### {kind.capitalize()}", "", *markdown(head, [[*base, "0", "∞", "", ""], *body])]
        if UNNAMED in tables:
            lines += [
                f'The base gives a picture a style where none is asked for; "{UNNAMED}" says how often it is the',
                "erased one, for the same nouns and seeds.",
                "",
            ]
    return lines


def _heading(share: str) -> str:
    return NAMES.get(share, share.removeprefix("part: "))


def _drift(table: Summary) -> list[str]:
    drift, seconds = table.get("drift"), table.get("seconds")
    moved = [f"{drift['perceptual']:.3f}", f"{drift['psnr']:.1f} dB"] if drift else ["–", "–"]
    return [*moved, f"{seconds['mean']:.0f}" if seconds else "0", str(table["rows"])]


def _ablation_page(summary: Summary) -> list[str]:
    lines = [
        "The first line has the defaults' means and standard deviations, the others the difference to them on the same",
        "concepts and seeds, in points, with its standard error. Attention: how much of a noun's attention on its own",
        f"object is left, less is better; drift: of untouched prompts, times 100. {EARLY}: trainings that are not",
        "over, as after all steps hardly anything is left of a concept, whatever is left out; their line has means",
        "too, and their variants are compared with it. The bars are judged by the concepts of every kind together.",
        "",
    ]
    for kind in KINDS.values():
        if kind in summary:
            lines += [f"### {kind.capitalize()}, one setting at a time", "", *_variants_table(summary[kind])]
    return lines


def _variants_table(variants: Summary) -> list[str]:
    names = [*dict.fromkeys(n for table in variants.values() for n in table["shares"]), "drift"]

    def cell(table: Summary, name: str, is_default: bool) -> str:
        difference = table["difference"].get(name)
        if is_default or difference is None:
            if name == "drift":
                return f"{100 * table['drift']['perceptual']:.1f}" if "drift" in table else "–"
            return _cell(table["shares"].get(name))
        return f"{100 * difference['mean']:+.1f} ± {100 * difference['error']:.1f}"

    body = [
        [variant, *(cell(table, name, variant in ("defaults", EARLY)) for name in names), str(table["rows"])]
        for variant, table in variants.items()
    ]
    return markdown(["", *map(_heading, names), "rows"], body)


def _precision_page(summary: Summary) -> list[str]:
    names = list(dict.fromkeys(n for table in summary.values() for n in table["shares"]))
    first = next(iter(summary.values()), {"shares": {}})["shares"]
    base = ["base", *(f"{100 * first[n]['before']:.1f}" if n in first else "–" for n in names), "", ""]
    body = [
        [
            precision,
            *(_cell(table["shares"].get(n), worst=n == "acc_e") for n in names),
            f"{table['seconds']['mean']:.0f}",
            str(table["rows"]),
        ]
        for precision, table in summary.items()
    ]
    return [
        "What the transformer's blocks are stored in while the bank is filled and the LoRA is trained. What the LoRA",
        "does is measured on the model as it is, with the same prompts and seeds for all.",
        "",
        *markdown(["", *map(_heading, names), "s", "rows"], [base, *body]),
    ]


def _cost_page(summary: Summary) -> list[str]:
    body = [
        [
            name,
            f"{one['flops']} ×",
            f"{one['flops_to_the_end']} ×",
            f"{one['time']} × ({one['time_range'][0]} to {one['time_range'][1]})",
            f"{one['time_to_the_end']} ×",
        ]
        for name, one in summary.items()
        if name != "trainings"
    ]
    trained = [
        [name, *(_cell(table["shares"].get(share)) for share in SHARES), str(table["rows"])]
        for name, table in summary["trainings"].items()
    ]
    return [
        "How many times more the authors' schedule takes than ours: per pair of an erase and a preserve step (of one",
        "sample each, theirs and ours), and to the end with our bank counted.",
        "",
        *markdown(["", *(f"{what} {per}" for what in ("FLOPs", "time") for per in ("per pair", "to the end"))], body),
        "After equally many pairs:",
        "",
        *markdown(["", *(NAMES[name] for name in SHARES), "rows"], trained),
    ]


def _train_page(summary: Summary) -> list[str]:
    lines = [
        "Batch 1, random weights: time and memory are those of real ones. Share: of what the device reached in a large",
        "product in bf16, without what checkpointing computes twice. Bank: by the defaults, extrapolated from a small",
        "one. Estimate: what users are told before the start. ×: how many times more the authors' pair takes.",
        "",
    ]
    for name, one in summary.items():
        body = []
        for row in one["rows"]:
            slot = [row["precision"], row["mode"], f"{row['resolution']}²"]
            if "out_of_memory" in row:
                body.append([*slot, "out of memory", *["–"] * 7])
                continue
            less = [f"{row[n]:.0f} ×" if n in row else "–" for n in ("times_less_time", "times_less_flops")]
            body.append(
                [
                    *slot,
                    f"{row['pair_seconds']:.3f}",
                    f"{row['step_seconds']:.3f}",
                    percent(row["share_of_peak"]),
                    f"{row['bank_seconds']:.0f}",
                    _gigabytes(row["peak_bytes"]),
                    _gigabytes(row["estimated_bytes"]),
                    *less,
                ]
            )
        head = [
            "",
            "",
            "",
            "s per pair",
            "s per grad step",
            "share",
            "bank, s",
            "peak, GB",
            "estimate, GB",
            "time",
            "FLOPs",
        ]
        lines += [f"### {name} ({one['peak_tflops']} TFLOP/s)", "", *markdown(head, body)]
        if any(row.get("peak_bytes", 0) is None for row in one["rows"]):
            lines += ["On a CPU a process cannot tell the peak of one part of its work: that column is missing.", ""]
        if missing := _missing(one):
            lines += [f"Missing: {', '.join(missing)}.", ""]
    if not any(name.startswith("flux-dev-random") and not name.endswith("cpu") for name in summary):
        lines += ["**Missing: everything at full size on a GPU.**", ""]
    return lines


def _endurance_page(summary: list[Summary]) -> list[str]:
    signs = {True: "yes", False: "**no**", None: "–"}
    body = [
        [
            row["model"],
            row["device"],
            row["precision"],
            str(row["steps"]),
            str(row["killed_after"]),
            f"{row['seconds']:.0f}",
            *(signs[row.get(n)] for n in ("identical", "finite", "taken_by_the_host", "taken_by_diffusers")),
        ]
        for row in summary
    ]
    head = ["", "", "", "pairs", "killed after", "s", "as one left alone", "finite", "host's keys", "diffusers"]
    lines = [
        "Killed by SIGKILL once it was half done, resumed, and compared to the last bit with one that was left",
        "alone (on a CPU). Keys: the host's stock loader and diffusers have a place for each.",
        "",
        *markdown(head, body),
    ]
    if not any(row["model"] == "flux-dev-random" and row["device"] != "cpu" for row in summary):
        lines += ["**Missing: 1,000 pairs at full size on a GPU.**", ""]
    return lines


def _missing(one: Summary) -> list[str]:
    """Combinations without a row, of the precisions, resolutions and modes that have any."""
    there = [(row["precision"], row["mode"], row["resolution"]) for row in one["rows"]]
    parts = [list(dict.fromkeys(values)) for values in zip(*there, strict=True)]
    missing = [
        f"{p} {m} {r}²"
        for p, m, r in itertools.product(*parts)
        if (p, m, r) not in there and (m != COMPILED or p == "bf16")
    ]
    sides = dict.fromkeys(row["resolution"] for row in one["rows"])
    return missing + [f"the authors' schedule {side}²" for side in sides if side not in one["authors"]]


def _gigabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1024**3:.1f}"


def _strength_page(summary: Summary) -> list[str]:
    if not summary:
        return []
    body = []
    for name, text, told in (
        ("rates", "concept seen, %", f"{summary['mean_spearman']}"),
        ("acc_ir", "Acc_ir, %", ""),
    ):
        cells = zip(summary[name]["mean"], summary[name]["spread"], strict=True)
        body.append([text, *(f"{100 * mean:.0f} ± {100 * far:.0f}" for mean, far in cells), told])
    for concept, one in summary["concepts"].items():
        if one["seeds"] > 1:
            name = f"{concept}, mean of {one['seeds']} seeds, %"
            body.append([name, *(f"{100 * rate:.1f}" for rate in one["rates"]), f"{one['spearman']}"])
    for concept, (rates, correlation) in sorted(summary["each"].items()):
        body.append([f"{concept}, %", *(f"{100 * rate:.1f}" for rate in rates), f"{correlation}"])
    head = ["strength", *(f"{s:g}" for s in summary["strengths"]), "Spearman"]
    told = "Equal rates, at the ends where all or none are left, share a rank, which keeps a correlation from −1."
    return [told, "", *markdown(head, body)]


LOCALISED = ("pointing", "iou_best", "iou_otsu", "precision", "energy", "leakage")


def _attention_page(summary: Summary) -> list[str]:
    lines = [
        "One pass over composed scenes with known masks, noised to t. Pointing: the highest value lies on the object;",
        "IoU at the best threshold and at Otsu's; average precision over pixels; energy: share of the map on it;",
        "leakage: that on the other objects. Area: a map without information. Ceiling: a perfect map on the image",
        "tokens' grid. Best: the default blocks. Weighted: what the model's maps hold at most, every block and head",
        "weighted by a ridge regression on one half of the objects and measured on the other half.",
        "",
    ]
    for kind, row in summary["scenes"].items():
        table = row["table"]
        shown = [n for n in table if n in ("area", "ceiling") or "best" in n or "weighted" in n]
        body = [[name, *(f"{table[name][measure]:.3f}" for measure in LOCALISED)] for name in shown]
        lines += [f"### {kind.capitalize()} ({row['objects']} objects)", ""]
        lines += markdown(["", "pointing", "best IoU", "Otsu IoU", "precision", "energy", "leakage"], body)
        times = list(dict.fromkeys(n.split(", t ")[1] for n in table if n.startswith("block ")))
        blocks = list(dict.fromkeys(n.split(",")[0] for n in table if n.startswith("block ")))
        cells = [[b, *(f"{table[f'{b}, t {t}']['iou_best']:.3f}" for t in times)] for b in blocks]
        lines += ["Best IoU by block and t:", "", *markdown(["", *times], cells)]
    if summary["erased"]:
        body = [
            [
                name,
                f"{row['falls']['median']} × (least {row['falls']['worst']} ×)",
                f"{row['others']['mean']} (worst {row['others']['worst']})",
                str(row["scenes"]),
            ]
            for name, row in summary["erased"].items()
            if "falls" in row
        ]
        head = ["erased", "its attention on its own object falls", "correlation of other words' maps", "scenes"]
        lines += markdown(head, body)
    if cost := summary["cost"]:
        share, apart = (cost[f"added_share_5_of_57_blocks{end}"] for end in ("", "_beside_another_kernel"))
        lines += [
            f"Recording 5 of 57 blocks at Flux's shape ({cost['dtype']}) adds {percent(share)} to attention's time, "
            f"{percent(apart)} where another kernel computes it; memory {cost['peak_mib_added_by_recording']:.0f} MiB "
            f"(one head's whole matrix: {cost['one_head_matrix_mib']:.0f} MiB); a recording of 28 steps holds "
            f"{cost['recording_28_steps_mb']:.0f} MB.",
            "",
        ]
    return lines


def _merging_page(summary: Summary) -> list[str]:
    counts = sorted({count for table in summary["ways"].values() for count in table})
    lines = [
        f"Concepts in the order in which they join: {', '.join(summary['concepts'])}. Acc_e: mean over those merged,",
        "the worst in brackets; Acc_ir: nouns that are none of them, seen in preservation prompts or not. The more are",
        "merged, the fewer nouns are left for it, so that the base's own share differs.",
        "",
    ]
    for share, title in (("acc_e", "Acc_e"), ("acc_ir", "Acc_ir")):
        one_way = {count: row for table in summary["ways"].values() for count, row in table.items()}
        body = [["base", *(f"{100 * one_way[count][share]['before']:.1f}" for count in counts)]]
        for way, table in summary["ways"].items():
            cells = []
            for count in counts:
                row = table.get(count)
                text = f"{100 * row[share]['after']:.1f}" if row else "–"
                if row and share == "acc_e" and row["worst"]["after"]:
                    text += f" ({row['worst']['concept']} {100 * row['worst']['after']:.0f})"
                cells.append(text)
            body.append([way, *cells])
        if "single" in summary:
            whole = {name: summary["single"].get(name, {}).get(share) for name in ("first 10", "all")}
            told = [
                f"{name} {100 * one['after']:.1f} (base {100 * one['before']:.1f})"
                for name, one in whole.items()
                if one
            ]
            title += f", %; with each concept's own LoRA: {', '.join(told)}"
        lines += [f"### {title}", "", *markdown(["N", *map(str, counts)], body)]
    body = [
        [way, *(str(table[count]["rank"]) if count in table else "–" for count in counts)]
        for way, table in summary["ways"].items()
    ]
    lines += ["### Highest rank of a layer", "", *markdown(["N", *map(str, counts)], body)]
    if summary["by_concept"]:
        columns = list(next(iter(summary["by_concept"].values())))
        cells = [
            [phrase, *("–" if found.get(c) is None else f"{100 * found[c]:.0f}" for c in columns)]
            for phrase, found in summary["by_concept"].items()
        ]
        lines += ["### Acc_e of each of ten, %", "", *markdown(["", *columns], cells)]
    return lines


def _counted(count: Summary, more: bool = True) -> str:
    if not count["images"]:
        return "–"
    low, high = count["interval"]
    return f"{100 * count['share']:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if more else "")


def _defences_page(summary: Summary) -> list[str]:
    if not summary:
        return []
    methods, seconds = summary["methods"], summary["seconds"]
    base, suites = methods["base"], [s for s in methods["base"]["suites"] if not s.startswith("preserved")]
    names = {"concept": "Acc_e", "synonyms": "Acc_g"}
    head = ["", "", "strength", "erased", *(names.get(s, s.removeprefix("attack ")) for s in suites), "Acc_ir", "s"]

    def line(rank: str, name: str, table: Summary) -> list[str]:
        strength = f"{table['strength']:g}" if "strength" in table else "–"
        shares = (_counted(table["suites"][suite], more=False) for suite in suites)
        trained = f"{table['training_seconds']:.0f}" if "training_seconds" in table else "–"
        kept = _counted(table["kept"]) + ("" if table["held"] else " **lost more**")
        return [rank, name, strength, _counted(table["erased"]), *shares, kept, trained]

    body = [line("" if name == "base" else str(n), name, table) for n, (name, table) in enumerate(methods.items())]
    images = [str(base["suites"][suite]["images"]) for suite in suites]
    body.append(["", "pictures", "", str(base["erased"]["images"]), *images, str(base["kept"]["images"]), ""])
    lines = [
        "Methods are compared where they preserve alike: each at the largest strength at which its mean Acc_ir over",
        f"{summary['concepts']} concepts is within {100 * SPARED:g} points of the base's, so that none wins by",
        "breaking the model or loses by being timid; one that never is, however low, ranks behind. Their order is by",
        "the share of pictures that still show the concept among all that ask for it: by its name, a synonym, or in",
        "another way of asking. Acc_ir is over all other nouns; presets: the pack's other everyday concepts. In",
        "brackets 95 % intervals; s: of a training.",
        "",
        *markdown(head, body),
        "With the weights in hand: how often the concept is back under each attack, and under its control, which is as",
        "many random words in the same place or, for re-learning, a training on something else.",
        "",
    ]
    attacks = next(iter(table["white_box"] for name, table in methods.items() if name != "base"))
    rows = [
        [
            name,
            _counted(next(iter(table["white_box"].values()))["before"]),
            *(f"{_counted(one['after'])}, control {_counted(one['control'])}" for one in table["white_box"].values()),
        ]
        for name, table in methods.items()
        if name != "base"
    ]
    first = next(iter(attacks.values()))
    told = [f"{one['title']}, of {one['after']['images']}" for one in attacks.values()]
    lines += markdown(["", f"plain prompt (base {_counted(first['base'], more=False)})", *told], rows)
    strengths = sorted({strength for one in summary["fair"].values() for strength in one["strengths"]})
    fair = []
    for name, one in summary["fair"].items():
        cells = {
            strength: f"{100 * rate:.1f}, {100 * kept:.1f}"
            for strength, rate, kept in zip(one["strengths"], one["rates"], one["acc_ir"], strict=True)
        }
        fair.append([name, *(cells.get(strength, "–") for strength in strengths)])
    lines += ["Concept seen and Acc_ir, %, by strength:", "", *markdown(["", *(f"{s:g}" for s in strengths)], fair)]
    spent = ", ".join(f"{name} {value / 60:.0f}" for name, value in seconds.items())
    wall = "".join(f" On the clock {one['seconds'] / 60:.0f} with {one['workers']} workers." for one in summary["runs"])
    return [*lines, f"Minutes of one core: {spent}; together {sum(seconds.values()) / 60:.0f}.{wall}", ""]


def _gate_page(summary: Summary) -> list[str]:
    if not summary:
        return []
    kinds = [kind for kind in summary["prompts"] if kind != "unrelated"]
    body = [
        [
            f"**{threshold}**" if threshold == summary["default"] else threshold,
            percent(row["precision"]),
            *(percent(row["recall"][kind]) for kind in kinds),
            percent(row["unrelated"]),
        ]
        for threshold, row in summary["thresholds"].items()
    ]
    head = [f"{kind} ({summary['prompts'][kind]})" for kind in kinds]
    return [
        f"The share of prompts that the gates of {summary['concepts']} nouns let through; bold: the default threshold.",
        "Misspelt and painted: spellings in whose picture the base shows the concept. Unrelated prompts are about",
        "other nouns and should not pass.",
        "",
        *markdown(["threshold", "precision", *head, f"unrelated ({summary['prompts']['unrelated']})"], body),
    ]


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], Summary], Callable[[Summary], list[str]]]] = {
    "erasure": ("Methods", erasure_summary, _erasure_page),
    "defences": ("Defences at equal preservation", defences_summary, _defences_page),
    "ablation": ("One setting at a time", ablation_summary, _ablation_page),
    "precision": ("The base in fewer bits", precision_summary, _precision_page),
    "cost": ("Cost", cost_summary, _cost_page),
    "train": ("A training at full size", train_summary, _train_page),
    "endurance": ("Killed and resumed", endurance_summary, _endurance_page),
    "strength": ("Strength", strength_summary, _strength_page),
    "attention": ("Looking inside", attention_summary, _attention_page),
    "merging": ("Many concepts in one LoRA", merging_summary, _merging_page),
    "gate": ("Only when the prompt is about it", gate_summary, _gate_page),
}

INTRO = """# Benchmarks

Made by `python scripts/bench.py page` from the JSON files beside it; every figure can be made again by the command
above its table, which does only what is missing. Shares are percentages of generated images at fixed seeds in which the
demo model's classifier sees what was asked for, as mean ± standard deviation over concepts and training seeds. Acc_e:
the erased concept, with the worst concept in brackets; Acc_g: its synonyms; attacks: other ways to write it, of which
training knows misspellings, shuffles, numbers and pairs (drawn anew) but no affixes and no repetition; all better when
lower. Acc_ir: what should stay, where no preservation prompt held its nouns, and "seen" where one did; the columns from
"beside it", "nouns in it" or "both nouns" to the drift: parts of what should stay, each counted alone; better when
higher. Drift: mean distance of untouched prompts' images in the classifier's features (0 to 2); PSNR the same in dB.
""".splitlines()


def page_of(results: dict[str, dict[str, Any]], settled: str = "") -> str:
    """The page, from the result files' contents by name; `settled`: its end, of experiments that are no more."""
    summaries = {name: SECTIONS[name][1](result["rows"]) for name, result in results.items()}
    lines = [*INTRO, "", "## Bars", ""]
    lines += markdown(["bar", "", "numbers"], [[text, SIGNS[met], numbers] for text, met, numbers in bars(summaries)])
    for name, (title, _, section) in SECTIONS.items():
        if name in results:
            lines += [f"## {title}", "", *_made(results[name]), *section(summaries[name])]
        elif name == "train":
            lines += [
                f"## {title}",
                "",
                "**Missing: `python scripts/bench.py train` has not been run on a GPU yet.**",
                "",
            ]
    return "\n".join([*lines, settled]).rstrip() + "\n"


def _made(result: dict[str, Any]) -> list[str]:
    """How a result came about, and what a reader must know about rows that are not of one make."""
    where, rows = result["machine"], result["rows"]
    device = where["gpu"] or f"{where['cores']} cores ({where['machine']})"
    lines = [f"`python {result['command']}`, {result['date']}, {device}, torch {where['torch']}.", ""]
    for what in ("model", "behaviour", "threads", "counts"):
        different = {json.dumps(row.get(what), sort_keys=True) for row in rows if what in row}
        if len(different) > 1:
            lines += [
                f"**These rows are of {len(different)} different states ({what}): make them again before quoting.**",
                "",
            ]
    today = behaviour()
    older = sum(row["behaviour"] != today for row in rows if "behaviour" in row)
    if older:
        lines += [f"**{older} of {len(rows)} rows are of an engine that computed something else than today's.**", ""]
    return lines


def conclude(rows: Rows, name: str) -> None:
    """Writes the summary of all rows beside them, and shows it."""
    _, summary_of, section = SECTIONS[name]
    summary = summary_of(rows.all())
    rows.summarise(summary)
    print("\n".join(section(summary)), flush=True)


def page(args: argparse.Namespace) -> None:
    """Writes README.md beside the result files; the project's own results fill the tables of its README too."""
    folder: Path = args.out
    results = {name: result for name in SECTIONS if (result := read_result(folder / f"{name}.json"))}
    own = folder.resolve() == RESULTS
    path = (RESULTS.parent if own else folder) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    settled = (RESULTS.parent / "settled.md").read_text(encoding="utf-8") if own else ""
    path.write_text(page_of(results, settled), encoding="utf-8")
    if own:
        refresh(ROOT / "README.md", results)
    print(f"· written to {path}", flush=True)
