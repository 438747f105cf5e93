"""benchmarks/README.md out of the result files beside it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.environment import ROOT

from . import sections
from .bars import SIGNS, bars
from .full_size import endurance_summary, train_summary
from .readme import refresh
from .rows import Row, Rows, read_result
from .summaries import (
    ablation_summary,
    attention_summary,
    cost_summary,
    defences_summary,
    erasure_summary,
    gate_summary,
    merging_summary,
    precision_summary,
    strength_summary,
)
from .table import Summary, markdown
from .workplace import behaviour

RESULTS = ROOT / "benchmarks" / "results"

SECTIONS: dict[str, tuple[str, Callable[[list[Row]], Summary], Callable[[Summary], list[str]]]] = {
    "erasure": ("Methods", erasure_summary, sections.erasure),
    "defences": ("Defences at equal preservation", defences_summary, sections.defences),
    "ablation": ("One setting at a time", ablation_summary, sections.ablation),
    "precision": ("The base in fewer bits", precision_summary, sections.precision),
    "cost": ("Cost", cost_summary, sections.cost),
    "train": ("A training at full size", train_summary, sections.train),
    "endurance": ("Killed and resumed", endurance_summary, sections.endurance),
    "strength": ("Strength", strength_summary, sections.strength),
    "attention": ("Looking inside", attention_summary, sections.attention),
    "merging": ("Many concepts in one LoRA", merging_summary, sections.merging),
    "gate": ("Only when the prompt is about it", gate_summary, sections.gate),
}

INTRO = """# Benchmarks

Made by `python scripts/bench.py page` from the files in results/; every figure can be made again by the command
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
    lines += markdown([{"bar": text, "": SIGNS[met], "numbers": numbers} for text, met, numbers in bars(summaries)])
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
