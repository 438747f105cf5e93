"""The benchmarks' bookkeeping: rows that survive, resume and are shared by processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import workplace
from benchmarks.experiments import variants as experiment
from benchmarks.rows import Rows, command, key_of
from benchmarks.workplace import Workplace, seeds_of
from scripts.environment import ROOT
from tests.support.bench_rows import row
from training.errors import ErasureError
from training.evaluation import PictureFolder
from training.evaluation.pictures import picture_name
from training.settings import ErasureConfig


def test_keys_depend_on_every_setting_and_not_on_their_order():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    keys = {key_of(s) for s in ({"a": 1, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1.5, "b": [1, 2]}, {"a": 1})}
    assert len(keys) == 4


def test_a_row_takes_the_place_of_the_older_one_in_its_slot(tmp_path: Path):
    rows = Rows(tmp_path / "out" / "erasure.json", tmp_path / "locks")
    assert rows.all() == []
    rows.put("a", {"method": "esd", "seed": 0}, {"acc_e": 0.5})
    rows.put("b", {"method": "esd", "seed": 1}, {"acc_e": 0.6})
    rows.put("c", {"method": "esd", "seed": 0}, {"acc_e": 0.7})
    assert [r["key"] for r in rows.all()] == ["b", "c"]
    rows.summarise({"esd": 1})
    text = rows.path.read_text(encoding="utf-8")
    whole = json.loads(text)
    assert whole["summary"] == {"esd": 1} and whole["rows"] == rows.all()
    assert whole["date"] and whole["command"] and whole["machine"]["cores"]
    assert sum('"key"' in line for line in text.splitlines()) == 2  # one row a line


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from benchmarks.rows import Rows\n"
        "rows = Rows(Path(sys.argv[1]) / 'x.json', Path(sys.argv[1]) / 'locks')\n"
        "for n in range(15): rows.put(f'{sys.argv[2]}{n}', {'who': sys.argv[2], 'n': n}, {})"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path), who] for who in "ab"]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(Rows(tmp_path / "x.json", tmp_path / "locks").all()) == 30


def test_what_one_process_works_on_no_other_does_until_it_has_ended(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from benchmarks.rows import Rows\n"
        "rows = Rows(Path(sys.argv[1]) / 'x.json', Path(sys.argv[1]) / 'locks')\n"
        "with rows.claim('car 0') as mine, rows.claim('car 1') as other:\n"
        "    print(mine, other, flush=True); sys.stdin.read()"
    )
    rows = Rows(tmp_path / "x.json", tmp_path / "locks")
    with rows.claim("car 1") as here:
        assert here
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline().split() == ["True", "False"]
        with rows.claim("car 0") as mine:
            assert not mine
        process.kill()
        process.communicate()
        with rows.claim("car 0") as mine:  # the claim of a killed process is free
            assert mine


def test_pictures_on_disk_are_those_that_were_put_there(tmp_path: Path):
    pictures = PictureFolder(tmp_path / "base")
    image = torch.randint(256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures["a cat", 5] = image
    assert ("a cat", 5) in pictures and ("a cat", 6) not in pictures and len(pictures) == 1
    assert torch.equal(PictureFolder(tmp_path / "base")["a cat", 5], image)
    with pytest.raises(KeyError):
        pictures["a dog", 5]
    # the name that caches of earlier versions have
    assert picture_name("a cat", 5) == f"{key_of({'prompt': 'a cat', 'seed': 5})}.png"
    path = pictures.path(("a cat", 5))
    path.write_bytes(path.read_bytes()[:-40])
    assert not pictures.intact(("a cat", 5))
    with pytest.raises(ErasureError, match="cannot be read"):
        pictures["a cat", 5]


class DryRun(Workplace):
    """A workplace that writes down what it would train and measure, which takes minutes each."""

    def measured(self, slot: dict, key: str, folder, concept, config, factory=None, precision="", more=None) -> dict:
        self.made.append((slot, concept, config))
        facts = row("", "", 0, 0.5, measure_seconds=1.0, behaviour=self.behaviour)
        return self.rows.put(key, slot, {n: v for n, v in facts.items() if n not in ("key", *slot)})


@pytest.fixture
def dry_run(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple]]:
    """Runs `variants._fill` for a command line, without its measurements; → what would have been made."""
    monkeypatch.setattr(workplace, "CACHE", tmp_path / "cache")

    def run(column: str, variants: dict, *arguments: str) -> list[tuple]:
        args = bench.parser().parse_args(["erasure", "--source", str(demo_folder), "--out", str(tmp_path), *arguments])
        place = DryRun(args, "erasure")
        place.made = []
        experiment._fill(place, column, variants)
        return place.made

    return run


def test_a_second_run_does_nothing_and_a_wider_one_only_the_rest(dry_run, monkeypatch: pytest.MonkeyPatch):
    methods = ("eraseanything", "esd", "attention_deletion")
    variants = {name: experiment.METHODS[name] for name in methods}

    def made(*arguments: str) -> list[tuple]:
        return [
            (slot["concept"], slot["seed"], slot["method"]) for slot, _, _ in dry_run("method", variants, *arguments)
        ]

    assert made("--concepts", "car", "--seeds", "2") == [("car", seed, m) for seed in (0, 1) for m in methods]
    assert made("--concepts", "car", "--seeds", "2") == []
    assert made("--concepts", "car,owl", "--seeds", "1,2") == [
        *(("car", 2, method) for method in methods),
        *(("owl", seed, method) for seed in (1, 2) for method in methods),
    ]
    assert made("--concepts", "car", "--seeds", "1", "--fresh") == []
    monkeypatch.setattr(workplace, "behaviour", lambda: 0)
    assert made("--concepts", "car", "--seeds", "1") == []
    assert len(made("--concepts", "car", "--seeds", "1", "--fresh")) == 3
    assert len(made("--concepts", "car", "--seeds", "1", "--images", "7")) == 3  # other counts, other rows
    assert len(made("--concepts", "car", "--seeds", "1", "--images", "7", "--set", "rank=3")) == 2  # nothing to train


def test_variants_are_settings_that_exist_and_what_equals_the_defaults_is_left_out(dry_run):
    made = {
        slot["variant"]: (concept, config)
        for slot, concept, config in dry_run("variant", experiment.VARIANTS, "--concepts", "car", "--seeds", "1")
    }
    default = made["defaults"][1]
    assert default == ErasureConfig(seed=0, sample_every=0)
    thing = default.for_kind("entity")
    same = {f"rank {default.rank}", f"eta {thing.eta:g}", f"t_min {default.t_min:g}", f"targets {thing.targets}"}
    assert same <= set(experiment.VARIANTS) and not same & set(made)
    assert made["rank 32"][1].rank == 32 and made["rank 32"][1].alpha == 32
    first, second = (made[f"{half} half of the blocks"][1].blocks for half in ("first", "second"))
    assert first and second and not set(first) & set(second)
    assert len(made["K 6"][0].irrelevant) == 6 and made["K 6"][1] == default
    others = [
        concept.irrelevant for name, (concept, config) in made.items() if name != "defaults" and config == default
    ]
    assert len(set(others)) == len(others) and made["defaults"][0].irrelevant not in others


def test_a_precision_is_no_setting_and_has_rows_of_its_own(dry_run):
    made = dry_run("precision", experiment.PRECISIONS, "--concepts", "car", "--seeds", "1")
    assert [slot["precision"] for slot, _, _ in made] == list(experiment.PRECISIONS) == ["bf16", "fp8", "int8", "nf4"]
    assert {config for _, _, config in made} == {ErasureConfig(seed=0, sample_every=0)}
    assert dry_run("precision", experiment.PRECISIONS, "--concepts", "car", "--seeds", "1") == []


def test_styles_hold_another_style_out_for_each_seed(dry_run):
    variants = {"eraseanything": {}}
    made = dry_run("method", variants, "--concepts", ",".join((*bench.STYLES, *bench.RELATIONS)), "--seeds", "3")
    assert {concept.kind for _, concept, _ in made} == {"abstraction", "relationship"}
    for style in bench.STYLES:
        words = [set(concept.irrelevant) for slot, concept, _ in made if slot["concept"] == style]
        assert len(set.union(*words)) == 3 and [len(w) for w in words] == [2, 2, 2] and not set.intersection(*words)


def test_names_that_do_not_exist_are_refused():
    assert experiment.chosen("esd, gem", experiment.METHODS) == ["esd", "gem"]
    assert experiment.chosen("", experiment.METHODS) == list(experiment.METHODS)
    with pytest.raises(SystemExit, match=r"Unknown: essd\. Choose from: eraseanything"):
        experiment.chosen("essd", experiment.METHODS)


def test_seeds():
    assert seeds_of("3") == [0, 1, 2] and seeds_of("2,5") == [2, 5] and seeds_of("4,") == [4]


def test_commands_and_their_help():
    args = bench.parser().parse_args(["erasure", "--concepts", "car", "--methods", "esd", "--threads", "1"])
    assert args.run is experiment.erasure and args.images_per_attack == args.images // 2
    assert len(bench.NOUNS) >= 8 and len(bench.STYLES) == 2 and len(bench.RELATIONS) == 1
    commands = next(action.choices for action in bench.parser()._actions if action.dest == "command")
    assert all("--out" in one.format_help() for one in commands.values())


def test_a_results_command_names_no_folder_of_this_machine():
    told = command(["erasure", "--out", "/a/b", "--seeds", "1", "--worker", "--out=/c"])
    assert told == "scripts/bench.py erasure --seeds 1"
    assert command(["ablation", "--variants", "K 1,K 3"]) == "scripts/bench.py ablation --variants 'K 1,K 3'"
