"""The tables of the project's README that are made from result files, between two comments that name them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .rows import Row
from .summaries import (
    KINDS,
    NAMES,
    UNNAMED,
    cost_summary,
    defences_summary,
    erasure_summary,
    merging_summary,
)
from .table import Summary, attacks_in, markdown, percent
from .workplace import behaviour

OURS = "eraseanything"
TITLES = {
    OURS: "EraseAnything",
    "multi_objective": "EraseAnything in one level",
    "esd": "ESD",
    "concept_ablation": "Concept Ablation",
    "gem": "GEM",
    "attention_deletion": "attention deletion",
    "normalised": "normalised sum (the paper's)",
}
ASKED = {
    "misspelling": "misspelt",
    "prefix": "with a prefix",
    "suffix": "with a suffix",
    "repetition": "repeated",
    "shuffle": "words shuffled",
    "number": "in a number",
    "beside": "beside another thing",
    "part: beside it": "the other thing, which should stay",
}
MERGED = (3, 10, 20, 30, 40)
WAYS = ("fusion", "sum", "normalised")
_BLOCK = re.compile(r"(<!-- (\w+): made by bench\.py page -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Mapping[str, dict[str, Any]]) -> str:
    """`text` with its blocks made anew, from the contents of result files by name; a block without one stays."""

    def block(found: re.Match[str]) -> str:
        head, name, old, end = found.groups()
        if name not in results:
            return f"{head}{old}{end}"
        lines = BLOCKS[name](results[name]["rows"])
        first = _behaviours(_trained(results["erasure"]["rows"]))
        if name == "erasure" and first - {behaviour()}:
            lines += ["*Of an earlier state of the code, which chose other words, in part or whole.*", ""]
        if name != "erasure" and _behaviours(results[name]["rows"]) - first:
            lines += ["*Of an earlier state of the code than the first table, in part or whole.*", ""]
        return "\n".join([head, *lines, end])

    return _BLOCK.sub(block, text)


def _behaviours(rows: list[Row]) -> set[int]:
    return {row["behaviour"] for row in rows if "behaviour" in row}


def _trained(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["method"] == OURS]


def refresh(readme: Path, results: Mapping[str, dict[str, Any]]) -> None:
    """Fills the blocks of a file."""
    readme.write_text(filled(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


def _arrow(shares: list[dict[str, float]]) -> str:
    """Before → after, means over shares that have images."""
    held = [share for share in shares if share["images"]]
    if not held:
        return "–"
    before, after = (statistics.mean(share[when] for share in held) for when in ("before", "after"))
    return f"{percent(before)} → {percent(after)}"


def _erasure(rows: list[Row]) -> list[str]:
    concepts: dict[str, list[Row]] = {}
    for row in sorted(_trained(rows), key=lambda row: (list(KINDS).index(row["kind"]), row["concept"])):
        concepts.setdefault(row["concept"], []).append(row)
    body = []
    for concept, found in concepts.items():
        worst = {n: statistics.mean(row["attacks"][n]["after"] for row in found) for n in found[0]["attacks"]}
        name = max(worst, key=worst.__getitem__, default="")
        hardest = "–" if not name else percent(worst[name]) + (f" ({ASKED[name]})" if worst[name] else "")
        cells = {"erased": concept}
        cells |= {NAMES[share]: _arrow([row[share] for row in found]) for share in ("acc_e", "acc_g", "acc_ir")}
        seconds = statistics.mean(row["seconds"] for row in found)
        body.append(cells | {"worst attack": hardest, "training": f"{seconds:.0f} s"})
    lines = markdown(body)
    table = erasure_summary(rows)[OURS]["nouns"]
    spread = [
        {"": ASKED[name], "base": percent(table["shares"][name]["before"]), "erased": _after(table, name)}
        for name in (*attacks_in(table), "part: beside it")
        if name in table["shares"]
    ]
    counts = sorted({len(found) for found in concepts.values()})
    seeds = " to ".join(dict.fromkeys(str(count) for count in (counts[0], counts[-1])))
    alone = [f"{row['concept']} {percent(row['acc_e']['after'])}" for row in rows if row["method"] == UNNAMED]
    return [
        *lines,
        f"Means over training seeds ({seeds} each). How often the base paints a style where the prompt names none:",
        f"{', '.join(alone) or 'not measured'}. Over all nouns and seeds, asked for in other ways:",
        "",
        *markdown(spread),
    ]


def _defences(rows: list[Row]) -> list[str]:
    body = []
    for name, table in defences_summary(rows)["methods"].items():
        if name == "base":
            continue
        share, at = table["erased"], f" ({table['strength']:g})" if "strength" in table else ""
        low, high = (f"{100 * end:.1f}" for end in share["interval"])
        cells = {"": TITLES[name] + at}
        cells["pictures that still show it, asked for in all ways"] = f"{percent(share['share'])} ({low} to {high})"
        attacks = table["white_box"].values()
        body.append(cells | {attack["title"]: percent(attack["after"]["share"]) for attack in attacks})
    return markdown(body)


def _merging(rows: list[Row]) -> list[str]:
    summary, head = merging_summary(rows), "merged by: Acc_e, Acc_ir"

    def cells(name: str, found: Mapping[int, dict[str, Any]], when: str) -> dict[str, str]:
        shares = {n: [percent(row[share][when]) for share in ("acc_e", "acc_ir")] for n, row in found.items()}
        return {head: name, **{str(n): ", ".join(both) for n, both in shares.items() if n in MERGED}}

    one_way = {count: row for table in summary["ways"].values() for count, row in table.items()}
    body = [cells("no LoRA", one_way, "before")]
    body += [cells(TITLES.get(way, way), summary["ways"].get(way, {}), "after") for way in WAYS]
    own = summary["single"]["all"]
    alone = ", ".join(percent(own[share]["after"]) for share in ("acc_e", "acc_ir"))
    return [*markdown(body, [head, *map(str, MERGED)]), f"Each concept's own LoRA: {alone}.", ""]


def _cost(rows: list[Row]) -> list[str]:
    summary, body = cost_summary(rows), []
    pairs = next(row["config"]["steps"] for row in rows if row["what"] == "training")
    for name, table in summary["trainings"].items():
        less = summary.get(name, {})
        cells = {f"{pairs} pairs of steps": name}
        for what, head in (("flops", "fewer FLOPs per pair"), ("time", "less time per pair")):
            cells[head] = f"{less.get(what, 1):.0f} ×"
        body.append(cells | {NAMES[share]: _after(table, share) for share in ("acc_e", "acc_g", "acc_ir")})
    return markdown(body)


def _after(table: Summary, share: str) -> str:
    one = table["shares"][share]
    return f"{percent(one['after'])} ± {percent(one['spread'])}"


BLOCKS: dict[str, Callable[[list[Row]], list[str]]] = {
    "erasure": _erasure,
    "cost": _cost,
    "defences": _defences,
    "merging": _merging,
}
