"""The benchmark commands from end to end, on the demo model with a tiny random transformer in its place."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import summaries, workplace
from benchmarks.experiments import gate
from tests.support.flux_models import tiny_folder

SETTINGS = [
    "--set",
    "steps=2",
    "--set",
    "erase_prompts=2",
    "--set",
    "preserve_prompts=2",
    "--set",
    "t_min=0.8",
    "--set",
    "rank=2",
    "--concepts",
    "car",
    "--seeds",
    "1",
    "--images",
    "2",
    "--images-per-other",
    "0",
    "--images-per-attack",
    "1",
]


@pytest.fixture(scope="module")
def flux(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_folder(demo_folder, tmp_path_factory.mktemp("tiny-flux"))
    shutil.copytree(demo_folder / "classifier", folder / "classifier")
    return folder


@pytest.fixture
def run(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command; → its rows."""
    monkeypatch.setattr(workplace, "CACHE", tmp_path / "cache")

    def run(command: str, *arguments: str) -> list[dict]:
        where = ["--source", str(flux), "--device", "cpu", "--out", str(tmp_path)]
        args = bench.parser().parse_args([command, *where, *SETTINGS, *arguments])
        args.run(args)
        return json.loads((tmp_path / f"{command}.json").read_text(encoding="utf-8"))["rows"]

    return run


def test_methods_are_trained_and_measured_once(run, tmp_path: Path):
    rows = run("erasure", "--methods", "eraseanything,multi_objective,attention_deletion")
    by_method = {row["method"]: row for row in rows}
    assert list(by_method) == ["eraseanything", "multi_objective", "attention_deletion"]
    trained = by_method["eraseanything"]
    assert trained["bank_seconds"] == by_method["multi_objective"]["bank_seconds"] > 0  # they share one
    assert trained["cpu_seconds"] > 0 and trained["config"]["steps"] == 2 and "seconds" not in rows[2]
    assert {share["images"] for share in trained["attacks"].values()} == {1} and trained["acc_e"]["images"] == 2
    assert not list(tmp_path.glob("cache/bench/*/work/*"))
    assert list(tmp_path.glob("cache/bench/*/base-*/*.png"))
    again = run("erasure", "--methods", "eraseanything,multi_objective,attention_deletion")
    assert again == rows


def test_what_a_style_falls_to_is_measured_where_it_is_not_named(run):
    *_, row = run("erasure", "--methods", "attention_deletion", "--concepts", "car,fluent")
    assert (row["method"], row["concept"], row["kind"]) == (summaries.UNNAMED, "fluent", "abstraction")
    assert row["acc_e"]["images"] == 2 and row["acc_ir"]["images"] == 0 and row["drift"] is None


def test_a_lora_that_is_kept_is_not_trained_again(run, tmp_path: Path):
    (first,) = run("erasure", "--methods", "esd")
    (lora,) = tmp_path.glob("cache/bench/*/loras/*.safetensors")
    made = lora.stat().st_mtime_ns
    (second,) = run("erasure", "--methods", "esd", "--images", "3")
    assert lora.stat().st_mtime_ns == made and second["acc_e"]["images"] == 3
    assert all(second[name] == first[name] for name in ("seconds", "cpu_seconds", "bank_seconds"))
    assert first["seconds"] > 0 and first["cpu_seconds"] > 0  # the tiny model's bank may take less than is written down
    run("erasure", "--methods", "esd", "--set", "rank=3")
    assert len(list(tmp_path.glob("cache/bench/*/loras/*.safetensors"))) == 2


def test_defences_are_evaluated_together_at_the_strength_that_is_fair(run, tmp_path: Path):
    # Ring-A-Bell asks the text encoders alone: the other attacks need a base that paints the concept
    budget = {"attacks": '["ring-a-bell"]', "images": 2, "steps": 1, "tries": 1, "judged": 1, "targets": 1}
    asked = [word for name, value in budget.items() for word in ("--attack-set", f"{name}={value}")]
    rows = run("defences", "--workers", "1", *asked)
    curves, whole = rows[:5], rows[5]
    methods = ["eraseanything", "multi_objective", "esd", "concept_ablation", "gem"]
    assert [row["method"] for row in curves] == methods and curves[0]["strengths"] == [0, 0.5, 0.75, 1, 1.25, 1.5]
    assert len(list(tmp_path.glob("cache/bench/*/loras/*.safetensors"))) == 5
    subjects = ["base", "attention_deletion", *methods]
    assert list(whole["suites"]["concept"]) == subjects and whole["suites"]["attack suffix"]["gem"]["images"] == 1
    assert [(each["method"], each["attack"]) for each in whole["white_box"]] == [
        (name, "ring-a-bell") for name in subjects[1:]
    ]
    assert whole["strengths"] == dict.fromkeys(methods, 1.5)  # nothing was to be kept
    assert rows[6]["what"] == "run" and rows[6]["seconds"] > whole["seconds"] > 0
    assert run("defences", "--workers", "1", *asked) == rows


def test_one_setting_at_a_time(run):
    rows = run("ablation", "--variants", "rank 4")
    assert [(row["variant"], row["config"]["rank"]) for row in rows] == [("defaults", 2), ("rank 4", 4)]
    if importlib.util.find_spec("resvg_py"):  # draws the scenes that attention is looked at in
        assert all(0 < row["attention"]["after"] < 2 and row["attention"]["images"] for row in rows)
    else:
        assert all("attention" not in row for row in rows)


def test_each_precision_fills_a_bank_of_its_own(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workplace.shutil, "rmtree", lambda *_, **__: None)  # trainings stay, to be looked at
    rows = run("precision", "--precisions", "bf16,nf4", "--threads", "1")
    assert [row["precision"] for row in rows] == ["bf16", "nf4"] and rows[0]["config"] == rows[1]["config"]
    banks = {path.parent.parent.name: path for path in tmp_path.glob("cache/bench/*/work/*/*/*/bank.safetensors")}
    assert set(banks) == {"bf16", "nf4"} and banks["bf16"].read_bytes() != banks["nf4"].read_bytes()
    args = bench.parser().parse_args(["page", "--out", str(tmp_path)])
    args.run(args)
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## The base in fewer bits" in written and "| Trained on int8: Acc_e ≤ 5 %" in written


def test_merges_keep_their_loras_for_the_next_command(run, tmp_path: Path):
    rows = run("merging", "--concepts", "car,dog", "--numbers", "2", "--ways", "sum,fusion")
    slots = [(row["what"], row.get("concept"), row.get("way"), row.get("n")) for row in rows]
    assert slots[:2] == [("single", "car", None, None), ("single", "dog", None, None)]
    assert slots[2:] == [("merge", None, "sum", 2), ("merge", None, "fusion", 2)]
    both = rows[-1]
    assert list(both["concepts"]) == ["car", "dog"] and both["acc_e"]["images"] == 4 and both["notes"] == []
    assert both["acc_ir"]["images"] == 0 and both["rank"] <= 4
    loras = sorted(tmp_path.glob("cache/bench/*/loras/*"))
    assert len(loras) == 6  # LoRA, concept inputs and facts of each
    times = [path.stat().st_mtime_ns for path in loras]
    (row,) = run("strength")
    assert row["concept"] == "car" and [path.stat().st_mtime_ns for path in loras] == times
    assert row["strengths"] == [n / 10 for n in range(11)] and len(row["rates"]) == len(row["acc_ir"]) == 11
    assert row["same_at_zero"] is True and row["spearman"] == summaries.spearman(row["strengths"], row["rates"])


def test_the_gate_is_counted_by_kind_of_prompt(run):
    (row,) = run("gate")
    prompts = row["prompts"]
    assert prompts["direct"]["prompts"] == 11 and prompts["misspelt"]["prompts"] <= gate.MISSPELT
    for kind in prompts.values():
        assert kind["passed"] == sorted(kind["passed"], reverse=True) and kind["passed"][0] <= kind["prompts"]
    assert prompts["direct"]["passed"][0] == 11 and prompts["unrelated"]["passed"][-1] < 20


def test_cost_counts_the_authors_schedule_against_ours(run, tmp_path: Path):
    pairs, *trainings = run("cost", "--repeats", "1", "--pairs", "1", "--set", "steps=1")
    flops = pairs["pair_flops"]
    # 142 passes and 3 with backward against 2 with backward, one of which also makes a short pass for L_rsc
    assert 25 < flops[summaries.AUTHORS] / flops["ours"] < 50 and pairs["bank_flops"][summaries.AUTHORS] == 0
    assert [len(seconds) for seconds in pairs["pair_seconds"].values()] == [1, 1]
    assert [row["schedule"] for row in trainings] == ["ours", summaries.AUTHORS]
    assert len({row["config"]["steps"] for row in trainings}) == 1
    args = bench.parser().parse_args(["page", "--out", str(tmp_path)])
    args.run(args)
    assert "## Cost" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_training_is_timed_in_every_combination_and_goes_on_where_it_stopped(tmp_path: Path):
    def timed(*arguments: str) -> tuple[list[dict], dict | None]:
        shape = ["--model", "flux-tiny-random", "--device", "cpu", "--resolution", "32", "--repeats", "1"]
        args = bench.parser().parse_args(["train", *shape, "--out", str(tmp_path), *arguments])
        args.run(args)
        found = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
        return found["rows"], found["summary"]["flux-tiny-random, cpu"] if found["rows"] else None

    assert timed("--precision", "bf16", "--minutes", "0")[0] == []  # no time, no row
    first, _ = timed("--precision", "bf16", "--modes", "plain,streamed")
    assert [(row["what"], row.get("mode")) for row in first] == [
        ("combination", "plain"),
        ("authors", None),
        ("combination", "streamed"),
    ]
    rows, summary = timed("--precision", "bf16,nf4", "--modes", "plain,checkpointed,streamed")
    assert [row for row in rows if row in first] == first and len(rows) == 7
    by_mode = {row["mode"]: row for row in rows if row.get("precision") == "bf16"}
    plain, checkpointed = by_mode["plain"], by_mode["checkpointed"]
    assert plain["replayed_flops"] == 0 and plain["step_flops"] < checkpointed["step_flops"]
    useful = checkpointed["step_flops"] - checkpointed["replayed_flops"]
    assert useful == pytest.approx(plain["step_flops"], rel=0.02)  # a replay is one more pass
    assert by_mode["streamed"]["step_flops"] == checkpointed["step_flops"]
    table = {(row["precision"], row["mode"]): row for row in summary["rows"]}
    assert len(table) == 6 and 20 < table["bf16", "plain"]["times_less_flops"] < 50
    for row in table.values():
        assert min(row[name] for name in ("pair_seconds", "step_seconds", "share_of_peak", "estimated_bytes")) > 0
        assert row["peak_bytes"] is None
    args = bench.parser().parse_args(["page", "--out", str(tmp_path)])
    args.run(args)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "**Missing: everything at full size on a GPU.**" in page and "| nf4 | streamed | 32² |" in page
    assert "| Full size: ≥ 30 × fewer FLOPs per pair than the authors' | not measured |" in page
