"""The README's figures are those of the result files."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.page import RESULTS
from benchmarks.readme import BLOCKS, filled
from scripts.environment import ROOT
from tests.support.bench_rows import ROWS, result, row

BLOCK = "before\n<!-- erasure: made by bench.py page -->\nold\n<!-- end -->\nafter\n"


def test_the_readme_has_the_figures_of_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in BLOCKS}
    assert set(re.findall(r"<!-- (\w+): made by", text)) == set(BLOCKS)
    assert filled(text, found) == text, "Run: python scripts/bench.py page"


def test_a_block_is_made_anew_and_the_rest_stays():
    text = filled(BLOCK, {"erasure": result("erasure", ROWS)})
    assert text.startswith("before\n<!-- erasure") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert "| car | 100.0 % → 10.0 % | 90.0 % → 5.0 % | 96.0 % → 95.0 % | 10.0 % (with a prefix) | 100 s |" in text
    assert "| with a prefix | 95.0 % | 10.0 % ± 0.0 % |" in text and "(1 to 2 each)" in text
    assert filled(text, {"erasure": result("erasure", ROWS)}) == text and filled(BLOCK, {}) == BLOCK


@pytest.mark.parametrize("behaviour", [2, 3])
def test_figures_of_an_earlier_state_are_told(behaviour: int):
    block = BLOCK.replace("erasure", "cost")
    pairs = {"what": "pairs", "steps": 1, "behaviour": behaviour, "pair_flops": {}, "pair_seconds": {}}
    pairs |= {"bank_flops": {}, "bank_seconds": {}}
    trained = {**row("", "car", 0, 0.0), "what": "training", "schedule": "ours", "config": {"steps": 9}}
    found = {"erasure": result("erasure", ROWS), "cost": result("cost", [pairs, trained])}
    text = filled(block, found)
    assert ("an earlier state" in text) is (behaviour != 2) and "| 9 pairs of steps |" in text
