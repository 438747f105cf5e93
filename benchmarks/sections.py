"""The sections of benchmarks/README.md, each from the summary of one experiment."""

from __future__ import annotations

import itertools

from .full_size import COMPILED
from .summaries import EARLY, KINDS, NAMES, SPARED, UNNAMED
from .table import SHARES, Summary, markdown, percent

LOCALISED = {
    "pointing": "pointing",
    "iou_best": "best IoU",
    "iou_otsu": "Otsu IoU",
    "precision": "precision",
    "energy": "energy",
    "leakage": "leakage",
}
FULL_SIZE = "flux-dev-random"


def _cell(share: Summary, worst: bool = False) -> str:
    text = f"{100 * share['after']:.1f} ± {100 * share['spread']:.1f}"
    return f"{text} ({share['worst']['concept']} {100 * share['worst']['after']:.1f})" if worst else text


def _cells(table: Summary, worst: bool = True) -> dict[str, str]:
    """A summary's shares by their headings; with the worst concept of Acc_e."""
    return {heading(name): _cell(share, worst and name == "acc_e") for name, share in table["shares"].items()}


def heading(share: str) -> str:
    """What a share is called in a table."""
    return NAMES.get(share, share.removeprefix("part: "))


def erasure(summary: Summary) -> list[str]:
    lines: list[str] = []
    for kind in KINDS.values():
        tables = {method: kinds[kind] for method, kinds in summary.items() if kind in kinds}
        if not tables:
            continue
        # which nouns a seed's prompts hold differs, and so does the base's share: it is that of the most seeds
        tables = dict(sorted(tables.items(), key=lambda item: -item[1]["rows"]))
        before: dict[str, str] = {}
        for table in tables.values():
            for name, share in table["shares"].items():
                before.setdefault(heading(name), f"{100 * share['before']:.1f}")
        body = [{"": "base", **before, "drift": "0", "PSNR": "∞", "s": "", "rows": ""}]
        for method, table in tables.items():
            drift, seconds = table.get("drift"), table.get("seconds")
            moved = {"drift": f"{drift['perceptual']:.3f}", "PSNR": f"{drift['psnr']:.1f} dB"} if drift else {}
            took = {"s": f"{seconds['mean']:.0f}" if seconds else "0", "rows": str(table["rows"])}
            body.append({"": method, **_cells(table), **moved, **took})
        lines += [f"### {kind.capitalize()}", "", *markdown(body)]
        if UNNAMED in tables:
            lines += [
                f'The base gives a picture a style where none is asked for; "{UNNAMED}" says how often it is the',
                "erased one, for the same nouns and seeds.",
                "",
            ]
    return lines


def ablation(summary: Summary) -> list[str]:
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
            lines += [f"### {kind.capitalize()}, one setting at a time", "", *variants(summary[kind])]
    return lines


def variants(tables: Summary) -> list[str]:
    """The table of one kind's variants."""
    body = []
    for variant, table in tables.items():
        cells = _cells(table, worst=False)
        if "drift" in table:
            cells["drift"] = f"{100 * table['drift']['perceptual']:.1f}"
        if variant not in ("defaults", EARLY):
            for name, difference in table["difference"].items():
                cells[heading(name)] = f"{100 * difference['mean']:+.1f} ± {100 * difference['error']:.1f}"
        body.append({"": variant, **cells, "rows": str(table["rows"])})
    names = dict.fromkeys(heading(name) for table in tables.values() for name in table["shares"])
    return markdown(body, ["", *names, "drift", "rows"])


def precision(summary: Summary) -> list[str]:
    first = next(iter(summary.values()), {"shares": {}})["shares"]
    before = {heading(name): f"{100 * share['before']:.1f}" for name, share in first.items()}
    body = [{"": "base", **before, "s": "", "rows": ""}]
    for name, table in summary.items():
        body.append({"": name, **_cells(table), "s": f"{table['seconds']['mean']:.0f}", "rows": str(table["rows"])})
    return [
        "What the transformer's blocks are stored in while the bank is filled and the LoRA is trained. What the LoRA",
        "does is measured on the model as it is, with the same prompts and seeds for all.",
        "",
        *markdown(body),
    ]


def cost(summary: Summary) -> list[str]:
    body = [
        {
            "": name,
            "FLOPs per pair": f"{one['flops']} ×",
            "FLOPs to the end": f"{one['flops_to_the_end']} ×",
            "time per pair": f"{one['time']} × ({one['time_range'][0]} to {one['time_range'][1]})",
            "time to the end": f"{one['time_to_the_end']} ×",
        }
        for name, one in summary.items()
        if name != "trainings"
    ]
    trained = [
        {"": name, **_cells(table, worst=False), "rows": str(table["rows"])}
        for name, table in summary["trainings"].items()
    ]
    return [
        "How many times more the authors' schedule takes than ours: per pair of an erase and a preserve step (of one",
        "sample each, theirs and ours), and to the end with our bank counted.",
        "",
        *markdown(body),
        "After equally many pairs:",
        "",
        *markdown(trained, ["", *map(heading, SHARES), "rows"]),
    ]


def train(summary: Summary) -> list[str]:
    lines = [
        "Batch 1, random weights: time and memory are those of real ones. Share: of what the device reached in a large",
        "product in bf16, without what checkpointing computes twice. Bank: by the defaults, extrapolated from a small",
        "one. Estimate: what users are told before the start. ×: how many times more the authors' pair takes.",
        "",
    ]
    for name, one in summary.items():
        body = []
        for row in one["rows"]:
            cells = {"precision": row["precision"], "way": row["mode"], "side": f"{row['resolution']}²"}
            if "out_of_memory" in row:
                body.append(cells | {"s per pair": "out of memory"})
                continue
            cells |= {"s per pair": f"{row['pair_seconds']:.3f}", "s per grad step": f"{row['step_seconds']:.3f}"}
            cells |= {"share": percent(row["share_of_peak"]), "bank, s": f"{row['bank_seconds']:.0f}"}
            for heading_, field in (("peak, GB", "peak_bytes"), ("estimate, GB", "estimated_bytes")):
                cells[heading_] = "–" if row[field] is None else f"{row[field] / 1024**3:.1f}"
            less = {"time": "times_less_time", "FLOPs": "times_less_flops"}
            body.append(cells | {head: f"{row[field]:.0f} ×" for head, field in less.items() if field in row})
        lines += [f"### {name} ({one['peak_tflops']} TFLOP/s)", "", *markdown(body)]
        if any(row.get("peak_bytes", 0) is None for row in one["rows"]):
            lines += ["On a CPU a process cannot tell the peak of one part of its work: that column is missing.", ""]
        if missing := _missing(one):
            lines += [f"Missing: {', '.join(missing)}.", ""]
    if not any(name.startswith(FULL_SIZE) and not name.endswith("cpu") for name in summary):
        lines += ["**Missing: everything at full size on a GPU.**", ""]
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


def endurance(summary: list[Summary]) -> list[str]:
    signs = {True: "yes", False: "**no**", None: "–"}
    facts = {
        "as one left alone": "identical",
        "finite": "finite",
        "host's keys": "taken_by_the_host",
        "diffusers": "taken_by_diffusers",
    }
    body = [
        {
            **{name: row[name] for name in ("model", "device", "precision")},
            "pairs": str(row["steps"]),
            "killed after": str(row["killed_after"]),
            "s": f"{row['seconds']:.0f}",
            **{head: signs[row.get(name)] for head, name in facts.items()},
        }
        for row in summary
    ]
    lines = [
        "Killed by SIGKILL once it was half done, resumed, and compared to the last bit with one that was left",
        "alone (on a CPU). Keys: the host's stock loader and diffusers have a place for each.",
        "",
        *markdown(body),
    ]
    if not any(row["model"] == FULL_SIZE and row["device"] != "cpu" for row in summary):
        lines += ["**Missing: 1,000 pairs at full size on a GPU.**", ""]
    return lines


def strength(summary: Summary) -> list[str]:
    if not summary:
        return []
    heads = [f"{s:g}" for s in summary["strengths"]]

    def line(name: str, cells: list[str], correlation: object) -> dict[str, str]:
        return {"strength": name, **dict(zip(heads, cells, strict=True)), "Spearman": f"{correlation}"}

    body = []
    for name, text, correlation in (
        ("rates", "concept seen, %", summary["mean_spearman"]),
        ("acc_ir", "Acc_ir, %", ""),
    ):
        cells = zip(summary[name]["mean"], summary[name]["spread"], strict=True)
        body.append(line(text, [f"{100 * mean:.0f} ± {100 * far:.0f}" for mean, far in cells], correlation))
    curves = [
        (f"{concept}, mean of {one['seeds']} seeds, %", one["rates"], one["spearman"])
        for concept, one in summary["concepts"].items()
        if one["seeds"] > 1
    ]
    curves += [(f"{name}, %", rates, correlation) for name, (rates, correlation) in sorted(summary["each"].items())]
    body += [line(name, [f"{100 * rate:.1f}" for rate in rates], correlation) for name, rates, correlation in curves]
    note = "Equal rates, at the ends where all or none are left, share a rank, which keeps a correlation from −1."
    return [note, "", *markdown(body)]


def attention(summary: Summary) -> list[str]:
    lines = [
        "One pass over composed scenes with known masks, noised to t. Pointing: the highest value lies on the object;",
        "IoU at the best threshold and at Otsu's; average precision over pixels; energy: share of the map on it;",
        "leakage: that on the other objects. Area: a map without information. Ceiling: a perfect map on the image",
        "tokens' grid. Best: the default blocks. Weighted: what the model's maps hold at most, every block and head",
        "weighted by a ridge regression on one half of the objects and measured on the other half.",
        "",
    ]
    for kind, row in summary["scenes"].items():
        body, blocks = [], {}
        for name, measures in row["table"].items():
            if name in ("area", "ceiling") or "best" in name or "weighted" in name:
                body.append({"": name, **{head: f"{measures[m]:.3f}" for m, head in LOCALISED.items()}})
            elif name.startswith("block "):
                block, t = name.split(", t ")
                blocks.setdefault(block, {"": block})[t] = f"{measures['iou_best']:.3f}"
        lines += [f"### {kind.capitalize()} ({row['objects']} objects)", "", *markdown(body)]
        lines += ["Best IoU by block and t:", "", *markdown(list(blocks.values()))]
    body = [
        {
            "erased": name,
            "its attention on its own object falls": f"{row['falls']['median']} × (least {row['falls']['worst']} ×)",
            "correlation of other words' maps": f"{row['others']['mean']} (worst {row['others']['worst']})",
            "scenes": str(row["scenes"]),
        }
        for name, row in summary["erased"].items()
        if "falls" in row
    ]
    lines += markdown(body) if body else []
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


def merging(summary: Summary) -> list[str]:
    ways, heads = summary["ways"], sorted({count for table in summary["ways"].values() for count in table})
    lines = [
        f"Concepts in the order in which they join: {', '.join(summary['concepts'])}. Acc_e: mean over those merged,",
        "the worst in brackets; Acc_ir: nouns that are none of them, seen in preservation prompts or not. The more are",
        "merged, the fewer nouns are left for it, so that the base's own share differs.",
        "",
    ]
    columns = ["N", *map(str, heads)]
    for share in ("acc_e", "acc_ir"):
        one_way = {count: row for table in ways.values() for count, row in table.items()}
        body = [{"N": "base", **{str(n): f"{100 * row[share]['before']:.1f}" for n, row in one_way.items()}}]
        for way, table in ways.items():
            cells = {"N": way}
            for count, row in table.items():
                cells[str(count)], worst = f"{100 * row[share]['after']:.1f}", row["worst"]
                if share == "acc_e" and worst["after"]:
                    cells[str(count)] += f" ({worst['concept']} {100 * worst['after']:.0f})"
            body.append(cells)
        title = NAMES[share]
        if "single" in summary:
            alone = [
                f"{name} {100 * one[share]['after']:.1f} (base {100 * one[share]['before']:.1f})"
                for name, one in summary["single"].items()
            ]
            title += f", %; with each concept's own LoRA: {', '.join(alone)}"
        lines += [f"### {title}", "", *markdown(body, columns)]
    body = [{"N": way, **{str(n): str(row["rank"]) for n, row in table.items()}} for way, table in ways.items()]
    lines += ["### Highest rank of a layer", "", *markdown(body, columns)]
    if summary["by_concept"]:
        body = [
            {"": phrase, **{c: f"{100 * share:.0f}" for c, share in found.items() if share is not None}}
            for phrase, found in summary["by_concept"].items()
        ]
        columns = ["", *next(iter(summary["by_concept"].values()))]
        lines += ["### Acc_e of each of ten, %", "", *markdown(body, columns)]
    return lines


def _counted(count: Summary, more: bool = True) -> str:
    if not count["images"]:
        return "–"
    low, high = count["interval"]
    return f"{100 * count['share']:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if more else "")


def defences(summary: Summary) -> list[str]:
    if not summary:
        return []
    methods, seconds = summary["methods"], summary["seconds"]
    base, suites = methods["base"], [s for s in methods["base"]["suites"] if not s.startswith("preserved")]
    heads = {s: {"concept": "Acc_e", "synonyms": "Acc_g"}.get(s, s.removeprefix("attack ")) for s in suites}
    body = []
    for rank, (name, table) in enumerate(methods.items()):
        cells = {"rank": str(rank or ""), "": name}
        cells["strength"] = f"{table['strength']:g}" if "strength" in table else "–"
        cells["erased"] = _counted(table["erased"])
        cells |= {head: _counted(table["suites"][suite], more=False) for suite, head in heads.items()}
        cells["Acc_ir"] = _counted(table["kept"]) + ("" if table["held"] else " **lost more**")
        cells["s"] = f"{table['training_seconds']:.0f}" if "training_seconds" in table else "–"
        body.append(cells)
    images = {head: str(base["suites"][suite]["images"]) for suite, head in heads.items()}
    images |= {"erased": str(base["erased"]["images"]), "Acc_ir": str(base["kept"]["images"])}
    body.append({"rank": "", "": "pictures", "strength": "", **images, "s": ""})
    lines = [
        "Methods are compared where they preserve alike: each at the largest strength at which its mean Acc_ir over",
        f"{summary['concepts']} concepts is within {100 * SPARED:g} points of the base's, so that none wins by",
        "breaking the model or loses by being timid; one that never is, however low, ranks behind. Their order is by",
        "the share of pictures that still show the concept among all that ask for it: by its name, a synonym, or in",
        "another way of asking. Acc_ir is over all other nouns; presets: the pack's other everyday concepts. In",
        "brackets 95 % intervals; s: of a training.",
        "",
        *markdown(body),
        "With the weights in hand: how often the concept is back under each attack, and under its control, which is as",
        "many random words in the same place or, for re-learning, a training on something else.",
        "",
    ]
    body = []
    for name, table in methods.items():
        if attacks := list(table["white_box"].values()):
            plain = f"plain prompt (base {_counted(attacks[0]['base'], more=False)})"
            cells = {"": name, plain: _counted(attacks[0]["before"])}
            for one in attacks:
                head = f"{one['title']}, of {one['after']['images']}"
                cells[head] = f"{_counted(one['after'])}, control {_counted(one['control'])}"
            body.append(cells)
    lines += markdown(body)
    strengths = sorted({strength for one in summary["fair"].values() for strength in one["strengths"]})
    body = [
        {"": name}
        | {
            f"{strength:g}": f"{100 * rate:.1f}, {100 * kept:.1f}"
            for strength, rate, kept in zip(one["strengths"], one["rates"], one["acc_ir"], strict=True)
        }
        for name, one in summary["fair"].items()
    ]
    columns = ["", *(f"{strength:g}" for strength in strengths)]
    lines += ["Concept seen and Acc_ir, %, by strength:", "", *markdown(body, columns)]
    spent = ", ".join(f"{name} {value / 60:.0f}" for name, value in seconds.items())
    wall = "".join(f" On the clock {one['seconds'] / 60:.0f} with {one['workers']} workers." for one in summary["runs"])
    return [*lines, f"Minutes of one core: {spent}; together {sum(seconds.values()) / 60:.0f}.{wall}", ""]


def gate(summary: Summary) -> list[str]:
    if not summary:
        return []
    counts = summary["prompts"]
    body = [
        {
            "threshold": f"**{threshold}**" if threshold == summary["default"] else threshold,
            "precision": percent(row["precision"]),
            **{f"{kind} ({counts[kind]})": percent(share) for kind, share in row["recall"].items()},
            f"unrelated ({counts['unrelated']})": percent(row["unrelated"]),
        }
        for threshold, row in summary["thresholds"].items()
    ]
    return [
        f"The share of prompts that the gates of {summary['concepts']} nouns let through; bold: the default threshold.",
        "Misspelt and painted: spellings in whose picture the base shows the concept. Unrelated prompts are about",
        "other nouns and should not pass.",
        "",
        *markdown(body),
    ]
