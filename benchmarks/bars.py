"""What was set as a bar, judged by the summaries."""

from __future__ import annotations

from collections.abc import Callable

from .summaries import AUTHORS, DELETION, EARLY, EVERY, SHARES, Summary, attacked, attacks_in
from .text import percent

TERMS = ("esd", "attn", "lora")
LEFT = 0.15  # of a concept, at most
ENOUGH = 3  # concepts and seeds behind a difference that a bar is judged by
OFF = {"rsc": 0.01}  # the term that is off by default: the weight it is measured with
# methods, what EraseAnything does beside each, whether a draw is too little
RIVALS = (
    ("esd", "beats ESD", True),
    ("concept_ablation", "beats Concept Ablation", True),
    ("gem", "is no worse than GEM", False),
    ("multi_objective", "in two levels beats itself in one", True),
)
NAMES = {"acc_e": "Acc_e", "acc_g": "Acc_g", "acc_ir": "Acc_ir", "acc_ir_seen": "Acc_ir, seen"}
REACHED = 0.9  # of a ceiling
PRECISIONS = ("bf16", "fp8", "int8", "nf4")  # of the base in training
COMPILED = "compiled"  # of the ways of a full-size training; with weights in bf16 alone

Bar = tuple[str, bool | None, str]  # what is asked, whether it is met (None: not measured), the numbers


def bars(results: dict[str, Summary]) -> list[Bar]:
    """What was set as a bar, judged by the summaries, strictly: a mean over a bar by any amount misses it."""
    erasure, ablation = results.get("erasure") or {}, results.get("ablation") or {}
    return [
        *_first(erasure.get("eraseanything", {})),
        *_second(erasure, ablation.get(EVERY, {}), results.get("defences") or {}),
        *_third(results.get("cost") or {}),
        *_precisions(results.get("precision") or {}),
        *_full_size(results.get("train") or {}),
        *_endurance(results.get("endurance") or []),
        *_fourth(results.get("strength") or {}),
        *_fifth(erasure.get("eraseanything", {})),
        *_maps(results.get("attention") or {}),
        *_defended(results.get("defences") or {}),
        *_merges(results.get("merging") or {}),
        *_gates(results.get("gate") or {}),
    ]


def _kept(table: Summary) -> tuple[bool | None, str]:
    ir = table["shares"].get("acc_ir")
    if ir is None:
        return None, ""
    return ir["after"] >= ir["before"] - 0.02, f"{percent(ir['before'])} → {percent(ir['after'])}"


def _first(kinds: Summary) -> list[Bar]:
    """Of nouns; that none is left, of styles and relations too."""
    from training.evaluation.attacks import BESIDE

    table = kinds.get("nouns")
    asked = [("acc_e", "1. Acc_e ≤ 5 %", 0.05), ("acc_g", "1. Acc_g ≤ 8 %", 0.08)]
    attacks = attacks_in(table) if table else []
    # of two things beside one another the base itself often forgets one
    understood = {name: ", base ≥ 90 %" for name in attacks if name != BESIDE}
    asked += [
        (name, f"1. Attack {name} ≤ 12 %{understood.get(name, '')}", 0.12)
        for name in attacks or ["by any other spelling"]
    ]
    rest = ("1. Acc_ir within 2 points of the base", "1. No concept's Acc_e above 15 %", "1. ≤ 6 minutes per concept")
    if table is None:
        return [(text, None, "") for text in [*(text for _, text, _ in asked), *rest]]
    found: list[Bar] = []
    for name, text, limit in asked:
        share = table["shares"].get(name)
        if share is None:
            found.append((text, None, ""))
        else:
            met = share["after"] <= limit and (name not in understood or share["before"] >= 0.9)
            found.append(
                (text, met, f"{percent(share['before'])} → {percent(share['after'])} ± {percent(share['spread'])}")
            )
    left = [one["shares"]["acc_e"]["worst"] for one in kinds.values()]
    worst, slow = max(left, key=lambda one: one["after"]), table["seconds"]
    found.append((rest[0], *_kept(table)))
    found.append((rest[1], worst["after"] <= LEFT, f"{worst['concept']} {percent(worst['after'])}"))
    found.append((rest[2], slow["max"] <= 360, f"mean {slow['mean']:.0f} s, slowest {slow['max']:.0f} s"))
    return found


def _second(erasure: Summary, ablation: Summary, defences: Summary) -> list[Bar]:
    found = [_rival(erasure, defences, *rival) for rival in RIVALS]
    for term in TERMS:
        told = {when: _beyond(each, 1) for when, each in _differences(ablation, f"without {term}").items()}
        text = f"2. The term {term} earns its place"
        if not told:
            found.append((text, None, ""))
            continue
        numbers = [
            f"without it{when}: {worse or 'nothing worse by two standard errors'}" for when, worse in told.items()
        ]
        if left := _left(ablation.get(f"without {term}")):
            numbers.append(left)
        found.append((text, any(told.values()), "; ".join(numbers)))
    for term in OFF:
        told = {when: _beyond(each, -1) for when, each in _differences(ablation, f"with {term}").items()}
        numbers = [
            f"with it{when}: {better or 'nothing better by two standard errors'}" for when, better in told.items()
        ]
        met = not any(told.values()) if told else None
        found.append((f"2. The term {term} is off by default, as it does not earn its place", met, "; ".join(numbers)))
    return found


def _left(table: Summary | None) -> str:
    """The concept that a variant leaves above bar 1's limit, mean over its seeds: the mean over concepts hides it."""
    worst = table["shares"]["acc_e"]["worst"] if table else {"after": 0.0}
    return f"{worst['concept']} is left in {percent(worst['after'])}" if worst["after"] > LEFT else ""


def _differences(ablation: Summary, variant: str) -> dict[str, Summary]:
    """When → the variant's differences to the defaults of that time, where there are enough pairs to tell an error."""
    found = {
        when: {
            name: d
            for name, d in ablation.get(f"{prefix}{variant}", {}).get("difference", {}).items()
            if d["pairs"] >= ENOUGH
        }
        for when, prefix in (("", ""), (f" after {EARLY}", f"{EARLY} "))
    }
    return {when: each for when, each in found.items() if each}


def _rival(erasure: Summary, defences: Summary, name: str, beats: str, strict: bool) -> Bar:
    """Met at the defaults, or where both preserve alike: one that breaks the model at its defaults is no comparison."""
    text = f"2. EraseAnything {beats} on Acc_g and attacks at equal or better Acc_ir"
    met: list[bool] = []
    told: list[str] = []
    ours, theirs = (erasure.get(method, {}).get("nouns") for method in ("eraseanything", name))
    if ours and theirs and "acc_ir" in ours["shares"] and attacks_in(ours):
        a, b = attacked(ours), attacked(theirs)
        ir_a, ir_b = (table["shares"]["acc_ir"]["after"] for table in (ours, theirs))
        met.append((a < b if strict else a <= b) and ir_a >= ir_b)
        drifts = " against ".join(f"{table['drift']['perceptual']:.3f}" for table in (ours, theirs))
        told.append(
            f"{percent(a)} against {percent(b)}, Acc_ir {percent(ir_a)} against {percent(ir_b)}, drift {drifts}"
        )
    methods = defences.get("methods", {})
    if "eraseanything" in methods and name in methods:
        one, other = methods["eraseanything"], methods[name]
        less = (
            one["erased"]["interval"][1] < other["erased"]["interval"][0]
            if strict
            else (one["erased"]["share"] <= other["erased"]["share"])
        )
        # one that preserves as much at no strength is no rival
        met.append(one["held"] and (less or not other["held"]))
        shares = (
            f"{percent(each['erased']['share'])}, Acc_ir {percent(each['kept']['share'])}" for each in (one, other)
        )
        told.append("by any name at strengths at which all preserve alike " + " against ".join(shares))
    return text, any(met) if met else None, "; ".join(told)


def _beyond(difference: Summary, sign: int) -> str:
    """What is worse (`sign` 1) or better (-1) by more than two standard errors."""
    return ", ".join(
        f"{NAMES.get(name, name)} {100 * d['mean']:+.1f} ± {100 * d['error']:.1f} points"
        for name, d in difference.items()
        if not name.startswith("part")
        and sign * (-d["mean"] if name.startswith("acc_ir") else d["mean"]) > max(2 * d["error"], 1e-9)
    )


def _third(cost: Summary) -> list[Bar]:
    texts = (
        "3. ≥ 30 × fewer FLOPs per pair",
        "3. ≥ 20 × less time per pair",
        "3. At equal or better Acc, as many pairs",
    )
    one, trained = cost.get("ours"), cost.get("trainings", {})
    if one is None:
        return [(text, None, "") for text in texts]
    low, high = one["time_range"]
    found: list[Bar] = [
        (texts[0], one["flops"] >= 30, f"{one['flops']} ×; to the end, bank included, {one['flops_to_the_end']} ×"),
        (texts[1], one["time"] >= 20, f"{one['time']} × ({low} to {high}); to the end {one['time_to_the_end']} ×"),
    ]
    if not {"ours", AUTHORS} <= set(trained):
        return [*found, (texts[2], None, "")]
    ours, theirs = trained["ours"]["shares"], trained[AUTHORS]["shares"]
    both = [(n, ours[n]["after"], theirs[n]["after"]) for n in SHARES[:3] if n in ours and n in theirs]
    met = all(a >= b if n == "acc_ir" else a <= b for n, a, b in both)
    told = ", ".join(f"{NAMES[n]} {percent(a)} against {percent(b)}" for n, a, b in both)
    return [*found, (texts[2], met, told)]


def _precisions(summary: Summary) -> list[Bar]:
    """What bar 1 asks of nouns, of each precision of the base in training."""
    found: list[Bar] = []
    for precision in PRECISIONS:
        text = f"Trained on {precision}: Acc_e ≤ 5 %, Acc_g ≤ 8 %, Acc_ir within 2 points of the base"
        table = summary.get(precision)
        if table is None or not {"acc_e", "acc_g", "acc_ir"} <= set(table["shares"]):
            found.append((text, None, ""))
            continue
        (kept, numbers), shares = _kept(table), table["shares"]
        met = kept and shares["acc_e"]["after"] <= 0.05 and shares["acc_g"]["after"] <= 0.08
        erased = ", ".join(f"{NAMES[name]} {percent(shares[name]['after'])}" for name in ("acc_e", "acc_g"))
        found.append((text, met, f"{erased}, Acc_ir {numbers}"))
    return found


def _full_size(train: Summary) -> list[Bar]:
    """At Flux.1-dev's shape on a GPU; rows of small shapes and of CPUs do not count."""
    gb = 1024**3
    rows = [
        row
        for name, one in train.items()
        if name.startswith("flux-dev-random") and not name.endswith("cpu")
        for row in one["rows"]
        if "pair_seconds" in row
    ]

    def best(text: str, shown: str, wanted: list[float], met: Callable[[float], bool], pick: Callable) -> Bar:
        if not wanted:
            return text, None, ""
        value = pick(wanted)
        return text, met(value), shown.format(value)

    found: list[Bar] = []
    for side in (512, 1024):
        shares = [100 * row["share_of_peak"] for row in rows if row["resolution"] == side and row["mode"] != "streamed"]
        found.append(
            best(
                f"Full size, {side}²: ≥ 40 % of measured peak per grad step",
                "{:.1f} %",
                shares,
                lambda value: value >= 40,
                max,
            )
        )
    for mode, limit in (("checkpointed", 10), ("streamed", 6)):
        peaks = [row["peak_bytes"] / gb for row in rows if row["resolution"] == 512 and row["mode"] == mode]
        found.append(
            best(
                f"Full size, 512²: ≤ {limit} GB {mode}",
                "{:.1f} GB",
                peaks,
                lambda value, limit=limit: value <= limit,
                min,
            )
        )
    for field, text, limit in (("times_less_flops", "fewer FLOPs", 30), ("times_less_time", "less time", 20)):
        plain = [row[field] for row in rows if (row["precision"], row["mode"]) == ("bf16", "plain") and field in row]
        found.append(
            best(
                f"Full size: ≥ {limit} × {text} per pair than the authors'",
                "{:.1f} ×",
                plain,
                lambda value, limit=limit: value >= limit,
                min,
            )
        )
    over = [row["estimate_over_peak"] for row in rows]
    text = "Full size: the memory estimate is within 10 % of the peak, never under it, everywhere"
    if not over:
        return [*found, (text, None, "")]
    fits = all(1 <= value <= 1.1 for value in over)
    return [*found, (text, fits, f"{min(over):.2f} to {max(over):.2f} of the peak in {len(over)} combinations")]


def _endurance(rows: list[Summary]) -> list[Bar]:
    """1,000 pairs at full size on a GPU; rows of small shapes and of CPUs do not count."""
    text = "1,000 pairs at full size complete, resume after kill -9, and load in the host and diffusers"
    there = [r for r in rows if r["model"] == "flux-dev-random" and r["device"] != "cpu" and r["pairs"] >= 1000]
    if not there:
        return [(text, None, "")]
    facts = ("finite", "taken_by_the_host", "taken_by_diffusers")
    met = all(row["steps"] == row["pairs"] and all(row[fact] for fact in facts) for row in there)
    return [(text, met, ", ".join(f"{row['precision']}: {row['steps']} pairs" for row in there))]


def _fourth(strength: Summary) -> list[Bar]:
    monotone, still = "4. Strength is monotone: Spearman ≤ −0.95 per concept", "4. Strength 0 changes nothing"
    kept = "4. Acc_ir within 3 points of the base at every strength"
    over = "4. Strength is monotone over ≥ 5 concepts together: Spearman ≤ −0.95"
    if not strength:
        return [(text, None, "") for text in (monotone, over, still, kept)]
    together = strength["mean_spearman"] if strength["rows"] >= 5 else None
    preserved = strength["acc_ir"]["mean"]
    worst = strength["worst_spearman"]
    return [
        (
            monotone,
            worst is not None and worst <= -0.95,
            _worst_curve(strength) if worst is not None else "a rate never moves",
        ),
        (over, None if together is None else together <= -0.95, f"{strength['rows']} rows, {together}"),
        (still, strength["same_at_zero"], "images equal bit by bit" if strength["same_at_zero"] else "images differ"),
        (kept, min(preserved) >= preserved[0] - 0.03, f"{percent(preserved[0])} → at worst {percent(min(preserved))}"),
    ]


def _worst_curve(strength: Summary) -> str:
    name, one = max(strength["concepts"].items(), key=lambda item: item[1]["spearman"])
    return f"worst {one['spearman']}, {name}, training seeds: {one['seeds']}"


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


def _highest(table: Summary, start: str) -> dict[str, float]:
    """The largest value of each measure among the maps whose name starts so; nothing where there are none."""
    found = [row for name, row in table.items() if name.startswith(start)]
    return {measure: max(row[measure] for row in found) for measure in found[0]} if found else {}


def _maps(attention: Summary) -> list[Bar]:
    found: list[Bar] = []
    for kind, row in attention.get("scenes", {}).items():
        table = row["table"]
        shown = f"best, t {row['t']}"  # what Inspect Image shows by default
        raw, space, top = (table[name] for name in (shown, f"output space, {shown}", "ceiling"))
        own, space_own = (_highest(table, f"{space}weighted, t ") for space in ("", "output space, "))
        for measure, aim, text in (("pointing", 0.9, "pointing game ≥ 90 %"), ("iou_best", 0.55, "best IoU ≥ 0.55")):
            reached = raw[measure] >= aim or (bool(own) and raw[measure] >= REACHED * own[measure])
            told = f"{raw[measure]:.3f}, perfect maps {top[measure]:.3f}"
            told += f", the best weighting of all maps {own[measure]:.3f}" if own else ""
            found.append((f"Heatmaps, {kind}: {text}, or {percent(REACHED)} of the model's own ceiling", reached, told))
        told = f"best IoU {space['iou_best']:.3f} against {raw['iou_best']:.3f}"
        told += f", the best weighting of all output-space maps {space_own['iou_best']:.3f}" if space_own else ""
        reached = space["iou_best"] >= min(raw["iou_best"], REACHED * space_own.get("iou_best", 1))
        text = f"output space ≥ raw, or {percent(REACHED)} of the model's own ceiling"
        found.append((f"Heatmaps, {kind}: {text}", reached, told))
    for name, row in attention.get("erased", {}).items():
        fell, kept = row["falls"]["median"], row["others"]["mean"]
        found.append(
            (
                f"Heatmaps, erased {name}: its map falls ≥ 5 ×, others' correlate ≥ 0.9",
                fell >= 5 and kept >= 0.9,
                f"{fell} ×, {kept}",
            )
        )
    if cost := attention.get("cost"):
        share = cost["added_share_5_of_57_blocks"]
        found.append(("Heatmaps: recording 5 of 57 blocks adds < 3 %", share < 0.03, percent(share)))
    return found or [("Heatmaps find objects", None, "")]


CORES = 2  # that the evaluation of all defences may take three hours of


def _defended(defences: Summary) -> list[Bar]:
    text = f"Defences: six concepts, every suite and white-box attack in ≤ 3 hours on {CORES} cores"
    above = "White box: {} finds what attention deletion hides more often than its control"
    if not defences:
        return [(text, None, ""), (above.format("an attack"), None, "")]
    hours = sum(defences["seconds"].values()) / 3600
    told = f"{defences['concepts']} concepts, {hours:.2f} hours of one core"
    found: list[Bar] = [(text, defences["concepts"] >= 6 and hours <= 3 * CORES, told)]
    for one in defences["methods"][DELETION]["white_box"].values():
        after, control = one["after"], one["control"]
        shares = f"{percent(after['share'])} against {percent(control['share'])} of {after['images']}"
        found.append((above.format(one["title"]), after["interval"][0] > control["interval"][1], shares))
    return found


def _merges(merging: Summary) -> list[Bar]:
    texts = (
        "Merging: fusion of 10 within 5 points of the single LoRAs' Acc_e",
        "Merging: fusion of 10 within 3 points of the base's Acc_ir",
    )
    ten = merging.get("ways", {}).get("fusion", {}).get(10)
    if ten is None or "single" not in merging:
        return [(text, None, "") for text in texts]
    alone = merging["single"]["first 10"]["acc_e"]["after"]
    erased, kept = ten["acc_e"]["after"], ten["acc_ir"]
    diluted = merging["ways"].get("normalised", {}).get(10)
    beside = f", normalised sum {percent(diluted['acc_e']['after'])}" if diluted else ""
    return [
        (texts[0], erased <= alone + 0.05, f"{percent(erased)} against {percent(alone)}{beside}"),
        (texts[1], kept["after"] >= kept["before"] - 0.03, f"{percent(kept['before'])} → {percent(kept['after'])}"),
    ]


def _gates(gate: Summary) -> list[Bar]:
    text = "Gate: precision and recall on ≥ 500 prompts"
    if not gate:
        return [(text, None, "")]
    now = gate["thresholds"][gate["default"]]
    counted = sum(gate["prompts"].values())
    told = f"{counted} prompts, precision {percent(now['precision'])}, recall " + ", ".join(
        f"{kind} {percent(now['recall'][kind])}" for kind in now["recall"]
    )
    return [(text, counted >= 500, told)]
