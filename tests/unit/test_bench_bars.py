"""The benchmarks' summaries, what is judged by them, and the page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import bars, full_size, page, sections, summaries, table
from benchmarks.rows import read_result
from tests.support.bench_rows import ROWS, result, row, share
from training.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("second", "expected"),
    [([3, 2, 1, 0], -1.0), ([0, 0, 0, 0], None), ([1, 1, 0, 0], -0.8944), ([0, 2, 1, 3], 0.8)],
)
def test_spearman(second: list[float], expected: float | None):
    assert summaries.spearman([0, 1, 2, 3], second) == expected


def test_a_table_has_a_dash_where_a_line_has_no_cell():
    lines = [{"": "base", "a": "1.0"}, {"": "long name", "b": "2"}]
    expected = ["|  | a | b |", "| --- | --- | --- |", "| base | 1.0 | – |", "| long name | – | 2 |", ""]
    assert table.markdown(lines) == expected
    assert table.markdown(lines[:1], ["", "b"]) == ["|  | b |", "| --- | --- |", "| base | – |", ""]
    assert table.markdown([]) == []


def test_the_summary_has_means_spread_and_the_worst_concept():
    nouns = summaries.erasure_summary(ROWS)["eraseanything"]["nouns"]
    acc_e = nouns["shares"]["acc_e"]
    assert (acc_e["before"], acc_e["after"], acc_e["rows"]) == (1.0, 0.0733, 3)
    assert acc_e["worst"] == {"concept": "car", "after": 0.1} and acc_e["spread"] == pytest.approx(0.1102, abs=1e-4)
    assert nouns["seconds"] == {"mean": 100.3, "max": 101.0} and nouns["drift"] == {"perceptual": 0.1, "psnr": 20.0}


def bar(found: list[bars.Bar], start: str) -> tuple[bool | None, str]:
    (one,) = [b for b in found if b[0].startswith(start)]
    return one[1:]


def test_bars_are_judged_by_the_numbers():
    found = bars.bars({"erasure": summaries.erasure_summary(ROWS)})
    assert bar(found, "1. Acc_e") == (False, "100.0 % → 7.3 % ± 11.0 %")
    assert bar(found, "1. Acc_g")[0] and bar(found, "1. Attack prefix")[0] and bar(found, "1. Acc_ir")[0]
    assert bar(found, "1. No concept's Acc_e above 15 %, of nouns") == (True, "car 10.0 %")
    assert bar(found, "1. ≤ 6 minutes")[0]
    assert bar(found, "2. EraseAnything leaves less than ESD")[0] is True
    assert bar(found, "2. EraseAnything leaves no more than GEM")[0] is False
    assert bar(found, "2. EraseAnything leaves less than Concept Ablation") == (None, "")
    assert {met for text, met, _ in found if text[0] in "345"} == {None}


def test_every_bar_finds_its_figures_in_the_projects_results():
    """A metric's path that leads nowhere would read as "not measured"; what needs a GPU was never measured."""
    files = {name: read_result(page.RESULTS / f"{name}.json") for name in page.SECTIONS}
    found = bars.bars({name: page.SECTIONS[name][1](file["rows"]) for name, file in files.items() if file})
    missing = [text for text, met, _ in found if met is None]
    assert len(found) > 60 and missing and all(text.startswith(("Full size", "1,000 pairs")) for text in missing)
    assert not [numbers for _, met, numbers in found if met is not None and "–" in numbers]


def test_a_style_that_is_left_is_a_concept_that_is_left():
    style = row("eraseanything", "fluent", 0, 0.2, acc_ir=0.96) | {"kind": "abstraction"}
    found = bars.bars({"erasure": summaries.erasure_summary([*ROWS, style])})
    assert bar(found, "1. No concept's Acc_e above 15 %, of styles") == (False, "fluent 20.0 %")
    assert bar(found, "1. No concept's Acc_e above 15 %, of relations") == (None, "")


def test_an_attack_that_the_base_does_not_understand_is_not_won():
    rows = [row("eraseanything", "car", 0, 0.0, attacks={"prefix": share(0.6, 0.0), "beside": share(0.6, 0.0)})]
    found = bars.bars({"erasure": summaries.erasure_summary(rows)})
    assert bar(found, "1. Attack prefix ≤ 12 %, base ≥ 90 %")[0] is False
    assert bar(found, "1. Attack beside ≤ 12 %")[0] is True  # of two things the base draws one only, now and then


def ablated(variant: str, concept: str, acc_e: float) -> dict:
    return {**row("", concept, 0, acc_e), "variant": variant}


def test_differences_to_the_defaults_are_taken_concept_by_concept():
    rows = [ablated("defaults", "car", 0.1), ablated("defaults", "owl", 0.5), ablated("defaults", "bee", 0.3)]
    rows += [ablated("without esd", c, acc_e) for c, acc_e in (("car", 0.4), ("owl", 0.8), ("bee", 0.6))]
    rows += [ablated("rank 2", "car", 0.1)]
    summary = summaries.ablation_summary(rows)
    every = summary[summaries.EVERY]
    assert every["without esd"]["difference"]["acc_e"] == {"mean": 0.3, "error": 0.0, "pairs": 3}
    assert every["rank 2"]["difference"]["acc_e"] == {"mean": 0.0, "error": 0.0, "pairs": 1}
    found = bars.bars({"ablation": summary})
    assert bar(found, "2. The term esd") == (
        True,
        "without it: Acc_e +30.0 ± 0.0 points; owl is left in 80.0 % (met)",
    )
    assert bar(found, "2. The term rsc")[0] is None

    def with_rsc(**acc_e: float) -> bars.Bar:
        more = [ablated("with rsc", concept, after) for concept, after in acc_e.items()]
        return bar(bars.bars({"ablation": summaries.ablation_summary([*rows, *more])}), "2. The term rsc is off")

    assert with_rsc(car=0.1, owl=0.6, bee=0.3) == (True, "with it: nothing better by two standard errors (met)")
    assert with_rsc(car=0.0, owl=0.4, bee=0.2)[0] is False
    assert with_rsc(car=0.0, owl=0.4) == (None, "")  # too few to tell


def test_a_concept_that_is_left_without_a_term_is_told_beside_the_mean():
    def without_esd(bee: float) -> tuple[bool | None, str]:
        rows = [ablated("defaults", concept, 0.1) for concept in ("car", "owl", "bee")]
        rows += [ablated("without esd", concept, after) for concept, after in (("car", 0), ("owl", 0), ("bee", bee))]
        return bar(bars.bars({"ablation": summaries.ablation_summary(rows)}), "2. The term esd")

    told = "without it: nothing worse by two standard errors"
    assert without_esd(0.25) == (False, f"{told}; bee is left in 25.0 % (missed)")
    assert without_esd(0.15) == (False, f"{told} (missed)")


def test_terms_are_judged_before_the_end_too():
    concepts = ("car", "owl", "bee")
    rows = [ablated(name, concept, 0.0) for name in ("defaults", "without attn") for concept in concepts]
    rows += [ablated("200 steps", concept, 0.5) for concept in concepts]
    rows += [ablated("200 steps without attn", concept, 0.8) for concept in concepts]
    summary = summaries.ablation_summary(rows)
    every = summary[summaries.EVERY]
    assert every["200 steps without attn"]["difference"]["acc_e"] == {"mean": 0.3, "error": 0.0, "pairs": 3}
    assert every["200 steps"]["difference"]["acc_e"]["mean"] == 0.5
    met, numbers = bar(bars.bars({"ablation": summary}), "2. The term attn")
    assert met is True and numbers.startswith(
        "without it: nothing worse by two standard errors (missed); without it after 200 steps: "
    )
    assert numbers.endswith("Acc_e +30.0 ± 0.0 points (met)")


def test_variants_are_compared_by_attention_and_drift_too():
    def seen(variant: str, concept: str, left: float, drift: float) -> dict:
        attention = {"before": 1.0, "after": left, "images": 24}
        drifted = {"perceptual": drift, "psnr": 20.0, "images": 9}
        return {**ablated(variant, concept, 0.1), "attention": attention, "drift": drifted}

    rows = [seen("defaults", "car", 0.2, 0.04), seen("defaults", "owl", 0.1, 0.06), seen("defaults", "bee", 0.1, 0.0)]
    rows += [seen("without attn", "car", 0.4, 0.04), seen("without attn", "owl", 0.3, 0.03)]
    rows += [seen("without attn", "bee", 0.3, 0.0)]
    summary = summaries.ablation_summary(rows)
    every = summary[summaries.EVERY]
    assert every["without attn"]["difference"]["attention"] == {"mean": 0.2, "error": 0.0, "pairs": 3}
    assert every["without attn"]["difference"]["drift"] == {"mean": -0.01, "error": 0.01, "pairs": 3}
    found = bars.bars({"ablation": summary})
    assert bar(found, "2. The term attn") == (True, "without it: attention +20.0 ± 0.0 points (met)")
    assert table.attacks_in(every["defaults"]) == table.attacks_in(table.summarised(rows[:1]))
    assert "attention" not in table.attacks_in(every["defaults"])
    lines = sections.ablation(summary)
    (line,) = [line for line in lines if line.startswith("| without attn")]
    assert "| +20.0 ± 0.0 |" in line and line.endswith("| -1.0 ± 1.0 | 3 |")


def test_a_variant_that_loses_what_stands_beside_the_concept_shows_it():
    def beside(variant: str, kept: float) -> dict:
        return {**ablated(variant, "car", 0.0), "parts": {"beside it": {"before": 0.9, "after": kept, "images": 12}}}

    head, _, *body = sections.variants(summaries._variants([beside("defaults", 1.0), beside("targets all", 0.4)]))
    column = head.split("|").index(" beside it ")
    assert [line.split("|")[column] for line in body if line] == [" 100.0 ± 0.0 ", " -60.0 ± 0.0 "]


def test_a_term_is_judged_by_concepts_of_every_kind_and_each_kind_has_a_table():
    def of(kind: str, variant: str, concept: str, acc_e: float) -> dict:
        return {**ablated(variant, concept, acc_e), "kind": kind}

    rows = [of("entity", variant, "car", 0.0) for variant in ("defaults", "without esd")]
    for variant, left in (("defaults", 0.1), ("without esd", 0.4)):
        rows += [of("abstraction", variant, "fluent", left), of("relationship", variant, "above", left)]
    summary = summaries.ablation_summary(rows)
    assert summary["nouns"]["without esd"]["difference"]["acc_e"] == {"mean": 0.0, "error": 0.0, "pairs": 1}
    assert bar(bars.bars({"ablation": summary}), "2. The term esd") == (
        False,
        "without it: nothing worse by two standard errors; fluent is left in 40.0 % (missed)",
    )
    rows += [of("abstraction", variant, "twemoji", left) for variant, left in (("defaults", 0.1), ("without esd", 0.4))]
    found = bars.bars({"ablation": summaries.ablation_summary(rows)})
    assert bar(found, "2. The term esd")[1].startswith("without it: Acc_e +22.5 ± 7.5 points")
    table = sections.ablation(summary)
    titles = [line.split(",")[0] for line in table if line.startswith("###")]
    assert titles == ["### Nouns", "### Styles", "### Relations"]
    assert [line for line in table if line.startswith("| without esd")][1].startswith("| without esd | +30.0 ± 0.0 |")


def test_a_long_training_is_judged_at_full_size_on_a_gpu_only():
    row = {
        "model": "flux-dev-random",
        "device": "NVIDIA H200",
        "precision": "nf4",
        "pairs": 1000,
        "steps": 1000,
        "killed_after": 500,
        "seconds": 900.0,
        "finite": True,
        "taken_by_the_host": True,
        "taken_by_diffusers": True,
        "key": "k",
        "behaviour": 2,
    }
    cpu = {**row, "model": "flux-tiny-random", "device": "cpu", "identical": False}

    def judged(*rows: dict) -> bars.Bar:
        return bar(bars.bars({"endurance": full_size.endurance_summary(list(rows))}), "1,000 pairs at full size")

    assert judged(row, cpu) == (True, "nf4: 1000 pairs") and judged(cpu) == (None, "")
    assert judged({**row, "taken_by_the_host": False})[0] is False and judged({**row, "steps": 900})[0] is False
    assert judged({**row, "pairs": 10, "steps": 10}) == (None, "")
    text = "\n".join(sections.endurance(full_size.endurance_summary([cpu])))
    assert "| 1000 | 500 | 900 | **no** | yes | yes | yes |" in text and "**Missing: 1,000 pairs" in text


def test_every_precision_is_judged_by_itself():
    rows = [
        {**row("", c, 0, acc_e), "precision": p}
        for p, c, acc_e in (
            ("bf16", "car", 0.0),
            ("bf16", "owl", 0.1),
            ("fp8", "car", 0.0),
            ("fp8", "owl", 0.11),
        )
    ] + [{**row("", "car", 0, 0.0, acc_ir=0.93), "precision": "nf4"}]
    summary = summaries.precision_summary(rows)
    found = bars.bars({"precision": summary})
    assert bar(found, "Trained on bf16") == (True, "Acc_e 5.0 %, Acc_g 5.0 %, Acc_ir 96.0 % → 95.0 %")
    assert bar(found, "Trained on fp8")[0] is False and bar(found, "Trained on nf4")[0] is False
    assert bar(found, "Trained on int8") == (None, "")
    text = "\n".join(sections.precision(summary))
    assert "| fp8 | 5.5 ± 7.8 (owl 11.0) |" in text and text.count("| base |") == 1


def cost_rows(acc_e: float = 0.0, seconds: float = 0.1) -> list[dict]:
    pairs = {
        "what": "pairs",
        "steps": 100,
        "model": "m",
        "pair_flops": {"ours": 10, summaries.AUTHORS: 350},
        "bank_flops": {"ours": 1000, summaries.AUTHORS: 0},
        "bank_seconds": {"ours": 10.0, summaries.AUTHORS: 0.0},
        "pair_seconds": {"ours": [2 * seconds, seconds], summaries.AUTHORS: [3.0, 3.0]},
    }
    trained = [
        {**row("", "car", 0, left), "what": "training", "schedule": name}
        for name, left in (("ours", acc_e), (summaries.AUTHORS, 0.1))
    ]
    return [pairs, *trained]


def test_cost_is_told_against_the_authors_schedule():
    def judged(**changes: float) -> list[bars.Bar]:
        return [b for b in bars.bars({"cost": summaries.cost_summary(cost_rows(**changes))}) if b[0].startswith("3.")]

    assert summaries.cost_summary(cost_rows())["ours"] == {
        "flops": 35.0,
        "flops_to_the_end": 17.5,
        "time": 22.5,
        "time_to_the_end": 12.0,
        "time_range": [15.0, 30.0],
    }
    assert [met for _, met, _ in judged()] == [True, True, True]
    assert [met for _, met, _ in judged(seconds=1.0, acc_e=0.3)] == [True, False, False]
    assert judged(seconds=0.2)[1][2] == "11.25 × (7.5 to 15.0); to the end 7.5 ×"


STRENGTH = [
    {
        "concept": c,
        "seed": 0,
        "images": 192,
        "strengths": [0.0, 0.5, 1.0],
        "rates": r,
        "acc_ir": [0.9, 0.9, 0.8],
        "spearman": s,
        "same_at_zero": True,
    }
    for c, r, s in (("car", [1.0, 0.5, 0.0], -1.0), ("owl", [1.0, 1.0, 0.0], -0.866))
]


def test_a_concepts_curve_is_the_mean_over_its_training_seeds():
    """The bar asks for means over seeds: ties at one seed's end are no reversal, and a reversal stays one."""
    other = {**STRENGTH[1], "seed": 1, "rates": [1.0, 0.6, 0.1], "spearman": -1.0}
    summary = summaries.strength_summary([*STRENGTH, other])
    assert summary["concepts"]["owl"] == {"seeds": 2, "rates": [1.0, 0.8, 0.05], "spearman": -1.0}
    assert summary["worst_spearman"] == -1.0
    met, numbers = bar(bars.bars({"strength": summary}), "4. Strength is monotone: Spearman")
    assert met is True and numbers.startswith("worst -1.0, car, training seeds: 1")
    back = {**other, "rates": [0.6, 1.0, 1.0]}
    summary = summaries.strength_summary([*STRENGTH, back])
    assert bar(bars.bars({"strength": summary}), "4. Strength is monotone: Spearman")[0] is False


def merged(way: str, n: int, erased: float, kept: float) -> dict:
    shares = {f"noun {i}": {"before": 1.0, "after": erased, "images": 2} for i in range(n)}
    slot = {"what": "merge", "way": way, "n": n} if way else {"what": "single", "concept": f"noun {n - 1}"}
    return {
        **slot,
        "concepts": shares,
        "acc_e": {"before": 1.0, "after": erased, "images": 2 * n},
        "acc_ir": {"before": 0.96, "after": kept, "images": 50},
        "rank": 4,
        "parameters": 9,
        "merge_seconds": 0.1,
    }


def test_a_merge_is_judged_beside_its_concepts_own_loras():
    single = [{**merged("", n, 0.02, 0.95)} for n in range(1, 11)]
    rows = [*single, merged("fusion", 10, 0.06, 0.935), merged("normalised", 10, 0.9, 0.96)]
    found = bars.bars({"merging": summaries.merging_summary(rows)})
    assert bar(found, "Merging: fusion of 10 within 5") == (True, "6.0 % against 2.0 %, normalised sum 90.0 %")
    assert bar(found, "Merging: fusion of 10 within 3") == (True, "96.0 % → 93.5 %")
    rows[10] = merged("fusion", 10, 0.08, 0.92)
    found = bars.bars({"merging": summaries.merging_summary(rows)})
    assert [bar(found, f"Merging: fusion of 10 within {n}")[0] for n in (5, 3)] == [False, False]
    assert bar(bars.bars({}), "Merging: fusion of 10 within 5")[0] is None


GATE = [
    {
        "concept": concept,
        "default": 0.6,
        "thresholds": [0.5, 0.6],
        "prompts": {
            "direct": {"prompts": 300, "passed": [300, 270]},
            "misspelt": {"prompts": 100, "passed": [60, 30]},
            "misspelt and painted": {"prompts": 20, "passed": [20, 18]},
            "unrelated": {"prompts": 100, "passed": [40, 10]},
        },
    }
    for concept in ("car", "owl")
]


def test_a_gate_has_precision_and_recall():
    summary = summaries.gate_summary(GATE)
    now = summary["thresholds"]["0.6"]
    assert summary["default"] == "0.6" and now["precision"] == round(600 / 620, 4) and now["unrelated"] == 0.1
    assert now["recall"] == {"direct": 0.9, "misspelt": 0.3, "misspelt and painted": 0.9}
    met, numbers = bar(bars.bars({"gate": summary}), "Gate: ")
    assert met is True and "precision 96.8 %" in numbers and "misspelt 30.0 %" in numbers


def test_heatmaps_are_judged_at_the_defaults():
    def measures(pointing: float, iou: float) -> dict:
        return dict.fromkeys(sections.LOCALISED, 0.1) | {"pointing": pointing, "iou_best": iou}

    table = {"best, t 0.1": measures(0.91, 0.5), "output space, best, t 0.1": measures(0.3, 0.6)}
    table |= {"ceiling": measures(1, 0.8), "area": measures(0.1, 0.1)}
    rows = [
        {"what": "scenes", "kind": "two objects", "objects": 2, "t": 0.1, "table": table},
        {
            "what": "erased",
            "concept": "car",
            "seed": 0,
            "scenes": 2,
            "falls": {"median": 4.0, "worst": 1.0},
            "others": {"mean": 0.95, "worst": 0.8},
        },
    ]
    found = bars.bars({"attention": summaries.attention_summary(rows)})
    assert bar(found, "Heatmaps, two objects: pointing")[0] is True
    assert bar(found, "Heatmaps, two objects: best IoU") == (False, "the aim: 0.500, perfect maps 0.800 (missed)")
    assert bar(found, "Heatmaps, two objects: output space")[0] is True
    assert bar(found, "Heatmaps, erased car")[0] is False
    # what the model's maps hold at most decides where that is less than the aim
    for own, met in ((0.55, True), (0.56, False)):
        table |= {"weighted, t 0.1": measures(0.9, 0.4), "weighted, t 0.2": measures(0.8, own)}
        found = bars.bars({"attention": summaries.attention_summary(rows)})
        of_own = f"{50 / own:.1f} % of {own:.3f}, the best weighting of all maps ({'met' if met else 'missed'})"
        told = f"the aim: 0.500, perfect maps 0.800 (missed); of the model's own ceiling: {of_own}"
        assert bar(found, "Heatmaps, two objects: best IoU") == (met, told)


def test_the_page_is_made_of_the_files_that_are_there(tmp_path: Path):
    def written(**files: list[dict]) -> str:
        for name, rows in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(result(name, rows)), encoding="utf-8")
        page.page(argparse.Namespace(out=tmp_path))
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    assert "not measured" in written() and "## Cost" not in written()
    merges = [merged("", 1, 0.0, 0.9), merged("fusion", 1, 0.0, 0.9), merged("sum", 1, 0.5, 0.9)]
    text = written(erasure=ROWS, strength=STRENGTH, merging=merges, gate=GATE)
    assert "| sum | 50.0 (noun 0 50) |" in text and "| **0.6** | 96.8 % |" in text
    assert "| eraseanything | 7.3 ± 11.0 (car 10.0) |" in text and "| base | 100.0 |" in text
    assert "Spearman ≤ −0.95 per concept | missed | worst -0.866, owl, training seeds: 1 |" in text
    assert "`python scripts/bench.py erasure`, 2026-01-01, 2 cores (x86_64), torch 2." in text
    assert "different states" not in text
    text = written(
        erasure=[*ROWS[:-1], {**ROWS[-1], "model": "another"}],
        cost=cost_rows(),
        ablation=[ablated("defaults", "car", 0)],
    )
    assert "of 2 different states (model)" in text and "## Cost" in text and "## One setting at a time" in text
    widths: Callable[[str], int] = lambda line: line.replace("\\|", "").count("|")  # noqa: E731
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| ---"):
            block = [lines[number - 1], line, lines[number + 1]]
            assert len({widths(one) for one in block}) == 1, block


GB = 1024**3


def full_size_rows(device: str = "NVIDIA H200") -> list[dict]:
    """Two combinations that meet every bar, one that ran out of memory, and the authors'."""
    own = {"model": "flux-dev-random", "device": device, "peak_flops": 600e12, "date": "2026-01-01"}
    row = {
        "what": "combination",
        "resolution": 512,
        "pair_seconds": [0.3, 0.2, 0.25],
        "step_seconds": [0.1],
        "pair_flops": 90e12,
        "step_flops": 37e12,
        "replayed_flops": 0,
        "bank_seconds_per_pass": 0.05,
        "bank_passes": 2000,
    }
    sizes = {"peak_bytes": {"bank": 25 * GB, "train": 40 * GB}, "estimated_bytes": {"bank": 26 * GB, "train": 41 * GB}}
    small = {"peak_bytes": {"bank": 4 * GB, "train": 5 * GB}, "estimated_bytes": {"bank": 5 * GB, "train": 5.1 * GB}}
    return [
        {**own, **row, "precision": "bf16", "mode": "plain", **sizes},
        {**own, **row, "precision": "nf4", "mode": "streamed", "step_flops": 54e12, "replayed_flops": 17e12, **small},
        {**own, "what": "combination", "precision": "nf4", "mode": "plain", "resolution": 512, "out_of_memory": True},
        {**own, "what": "authors", "resolution": 512, "pair_seconds": [6.0], "forward_flops": 18e12},
    ]


def test_a_training_at_full_size_is_judged_on_a_gpu_only():
    summary = full_size.train_summary(full_size_rows())
    plain, streamed, failed = summary["flux-dev-random, NVIDIA H200"]["rows"]
    assert plain["pair_seconds"] == 0.25 and plain["share_of_peak"] == streamed["share_of_peak"] == round(37 / 60, 4)
    assert plain["bank_seconds"] == 100 and plain["times_less_time"] == 24
    assert plain["times_less_flops"] == round((142 * 18 + 3 * 37) / 90, 1)
    assert plain["estimate_over_peak"] == round(41 / 40, 3) and streamed["estimate_over_peak"] == 1.02
    assert failed == {"precision": "nf4", "mode": "plain", "resolution": 512, "out_of_memory": True}
    judged = {text: met for text, met, _ in bars.bars({"train": summary}) if text.startswith("Full size")}
    assert list(judged.values()) == [True, None, None, True, False, True, True]
    text = "\n".join(sections.train(summary))
    assert "Missing: bf16 streamed 512²." in text and "out of memory" in text and "everything" not in text
    beyond = full_size_rows()
    beyond[0]["peak_bytes"] = {"bank": 27 * GB, "train": 40 * GB}  # under its estimate in one phase
    told = {text: met for text, met, _ in bars.bars({"train": full_size.train_summary(beyond)})}
    assert told["Full size: the memory estimate is within 10 % of the peak, never under it, everywhere"] is False
    on_cpu = {text: met for text, met, _ in bars.bars({"train": full_size.train_summary(full_size_rows("cpu"))})}
    assert {met for text, met in on_cpu.items() if text.startswith("Full size")} == {None}


def defended() -> list[dict]:
    """Two concepts: a method that breaks the model at its full strength, a timid one, one that never preserves."""
    rows = []
    kept = {"eraseanything": [0.98, 0.97, 0.7], "esd": [0.98, 0.98, 0.97], "gem": [0.98, 0.9, 0.5]}
    for concept in ("car", "owl"):
        rows += [
            {
                "what": "curve",
                "method": method,
                "concept": concept,
                "seed": 0,
                "strengths": [0.0, 0.5, 1.0],
                "rates": [1.0, 0.5, 0.0],
                "acc_ir": values,
                "seconds": 60.0,
                "training_seconds": 80.0,
            }
            for method, values in kept.items()
        ]
        lower = {"strengths": [0.25], "rates": [0.9], "acc_ir": [0.95], "seconds": 30.0, "training_seconds": 80.0}
        rows.append({"what": "lower curve", "method": "gem", "concept": concept, "seed": 0, **lower})
        hits = {"base": 10, summaries.DELETION: 6, "eraseanything": 1, "esd": 4, "gem": 0}
        suites = {
            suite: {method: counted(10 - (10 - hit) * (suite != "preserved seen")) for method, hit in hits.items()}
            for suite in ("concept", "synonyms", "attack prefix", "preserved seen")
        }
        white_box = [
            {
                "method": method,
                "attack": "p4d",
                "title": "P4D",
                "before": counted(hits[method]),
                "after": counted(8),
                "control": counted(control),
                "base": counted(10),
            }
            for method, control in ((summaries.DELETION, 1), ("eraseanything", 7), ("esd", 4), ("gem", 0))
        ]
        whole = {"suites": suites, "white_box": white_box, "seconds": 900.0}
        rows.append({"what": "evaluation", "concept": concept, "seed": 0, **whole})
    return rows


def counted(hits: int, images: int = 10) -> dict:
    return {"hits": hits, "images": images, "share": hits / images}


def test_defences_are_ranked_by_erasure_where_they_preserve_alike():
    summary = summaries.defences_summary(defended())
    fair = {name: (one["strength"], one["held"]) for name, one in summary["fair"].items()}
    assert fair == {"eraseanything": (0.5, True), "esd": (1.0, True), "gem": (0.25, False)}
    assert summary["fair"]["gem"]["strengths"] == [0, 0.25, 0.5, 1]
    # the one that erases all is the last, as it never preserves what the others do
    assert list(summary["methods"]) == ["base", "eraseanything", "esd", summaries.DELETION, "gem"]
    ours = summary["methods"]["eraseanything"]
    low, high = wilson(6, 60)
    assert ours["erased"] == {"hits": 6, "images": 60, "share": 0.1, "interval": [round(low, 4), round(high, 4)]}
    assert ours["kept"]["share"] == 1 and ours["training_seconds"] == 80
    assert summary["methods"][summaries.DELETION]["white_box"]["p4d"]["after"]["images"] == 20
    spent = {"trainings": 480, "curves": 420, "evaluations": 1800}
    assert summary["seconds"] == spent and summary["concepts"] == 2
    found = bars.bars({"defences": summary})
    assert bar(found, "Defences: six") == (False, "2 concepts, 0.75 hours of one core")
    assert bar(found, "White box: P4D") == (True, "80.0 % against 10.0 % of 20")
    alike = "by any name at strengths at which all preserve alike: "
    assert bar(found, "2. EraseAnything leaves less than ESD") == (
        True,
        f"{alike}10.0 %, Acc_ir 100.0 % against 40.0 %, Acc_ir 100.0 % (met)",
    )
    assert bar(found, "2. EraseAnything leaves no more than GEM")[0] is True  # which holds Acc_ir nowhere
    assert bar(found, "2. EraseAnything leaves less than Concept Ablation") == (None, "")
    assert ours["alike"]["high"] == ours["erased"]["interval"][1] and summary["methods"]["gem"]["alike"]["low"] == 1
    ours["alike"]["high"] = 0.6
    assert bar(bars.bars({"defences": summary}), "2. EraseAnything leaves less than ESD")[0] is False
    # at the defaults ESD erases more and breaks the model: where both preserve alike it is the worse one
    broken = [row("eraseanything", "car", 0, 0.0), row("esd", "car", 0, 0.0)]
    for one, (left, kept) in zip(broken, ((0.1, 0.98), (0.0, 0.2)), strict=True):
        one |= {"acc_g": share(1.0, left), "acc_ir": share(0.98, kept)}
    results = {"erasure": summaries.erasure_summary(broken)}
    assert bar(bars.bars(results), "2. EraseAnything leaves less than ESD")[0] is False
    results["defences"] = summaries.defences_summary(defended())
    met, told = bar(bars.bars(results), "2. EraseAnything leaves less than ESD")
    assert met is True and "Acc_ir 98.0 % against 20.0 %, drift 0.100 against 0.100 (missed); by any name" in told
    rows = [
        {**each, "white_box": [{**e, "control": e["after"]} for e in each.get("white_box", [])]} for each in defended()
    ]
    assert bar(bars.bars({"defences": summaries.defences_summary(rows)}), "White box: P4D")[0] is False
    text = "\n".join(sections.defences(summary))
    assert "| 1 | eraseanything | 0.5 | 10.0 (" in text and "| 4 | gem | 0.25 |" in text and "**lost more**" in text
    assert "| eraseanything | 100.0, 98.0 | – | 50.0, 97.0 | 0.0, 70.0 |" in text
    assert "| eraseanything | 10.0 (2.8 to 30.1) | 80.0 (58.4 to 91.9), control 70.0 (48.1 to 85.5) |" in text
