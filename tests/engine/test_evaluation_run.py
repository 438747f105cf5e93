"""Evaluations in a folder: the figures of the plain measures, resumed after SIGKILL, equal for equal seeds."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts.environment import ROOT
from tests.support.flux_models import fp32_source, tiny_folder
from training import cli
from training.concepts import Concept
from training.errors import ConfigError
from training.evaluation import (
    EvaluationSpec,
    Subject,
    concept_of_loras,
    load_classifier,
    measure_erasure,
    read_evaluation,
)
from training.evaluation.run import evaluate
from training.lora.format import make_metadata, read_lora, write_lora
from training.models.loading import load_parts

from .test_cli import lora_of, run_main

KINDS = {
    "noto": ("abstraction", "a {subject} in the style of {}"),
    "above": ("relationship", "a {subject} {} a {object}"),
}


@pytest.fixture(scope="module")
def flux(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's parts and classifier around a tiny random transformer."""
    folder = tiny_folder(demo_folder, tmp_path_factory.mktemp("tiny-flux"))
    shutil.copytree(demo_folder / "classifier", folder / "classifier")
    return folder


def without_run(folder: Path) -> dict:
    """evaluation.json without the one place that may differ."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert set(found.pop("run")) == {"date", "seconds", "pictures_made", "threads"}
    return found


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_run_killed_at_a_random_moment_goes_on_to_the_same_end(flux: Path, tmp_path: Path):
    lora = lora_of(flux, tmp_path / "car.safetensors", "car", 3.0)
    arguments = [
        "evaluate",
        "--source",
        str(flux),
        "--lora",
        str(lora),
        "--deletion",
        "--images",
        "3",
        "--images-per-other",
        "0",
        "--images-per-attack",
        "1",
        "--batch-size",
        "3",
        "--strengths",
        "0,0.5,1",
        "--precision",
        "fp32",
    ]
    assert cli.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    whole = pictures(tmp_path / "whole")
    made = read_evaluation(tmp_path / "whole")["run"]["pictures_made"]
    assert made == len([name for name in whole if name.startswith("pictures")]) > 20

    killed = tmp_path / "killed"
    moment = random.SystemRandom().randrange(1, made - 8)
    command = [sys.executable, "-m", "training.cli", *arguments, "--out", str(killed)]
    # as many threads as here: sums of another number of parts differ in their last bits
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("pictures/*/*.png"))) < moment:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = pictures(killed)
    print(f"killed after {len(before)} of {made} pictures")
    assert not (killed / "evaluation.json").exists() and len(before) < made
    for path in list(killed.glob("pictures/*/*.png"))[:1]:  # what a failing disk may leave
        path.write_bytes(path.read_bytes()[:60])

    assert cli.main([*arguments, "--out", str(killed)]) == 0
    assert without_run(killed) == without_run(tmp_path / "whole")
    assert pictures(killed) == whole
    assert 0 < read_evaluation(killed)["run"]["pictures_made"] <= made - len(before) + 6  # a batch, and the broken one
    assert cli.main([*arguments, "--out", str(killed)]) == 0  # nothing is left to do
    assert read_evaluation(killed)["run"]["pictures_made"] == 0 and pictures(killed) == whole

    text = (killed / "evaluation.json").read_text(encoding="utf-8")
    assert not any(str(place) in text for place in (tmp_path, flux, ROOT, Path.home(), Path(sys.prefix)))
    assert cli.main([*arguments[:-4], "--precision", "fp32", "--out", str(killed)]) == 1  # no curve: another evaluation
    assert pictures(killed) == whole and without_run(killed) == without_run(tmp_path / "whole")


def wilson_by_hand(hits: int, count: int) -> tuple[float, float]:
    """Wilson (1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)."""
    z, p = 1.959963984540054, hits / count
    middle, far = p + z * z / 2 / count, z * math.sqrt(p * (1 - p) / count + z * z / 4 / count**2)
    return (middle - far) / (1 + z * z / count), (middle + far) / (1 + z * z / count)


def test_the_figures_are_those_of_the_plain_measure_and_every_picture_has_its_verdict(demo_folder: Path, tmp_path):
    """A LoRA that breaks the model, then one of zeros: the first is gone when the second is measured."""
    broken, zeros = (lora_of(demo_folder, tmp_path / f"{size}.safetensors", "car", size) for size in (30.0, 0.0))
    source = fp32_source(demo_folder)
    classifier = load_classifier(demo_folder)
    concept = concept_of_loras([broken, zeros], "", classifier)
    counts = {"images": 3, "images_per_other": 0, "images_per_attack": 1}
    found = evaluate(
        EvaluationSpec(source, concept, (Subject(broken, 0.8), Subject(zeros)), **counts, strengths=(0.0, 0.8)),
        tmp_path / "out",
        "cpu",
    )
    weights = {name: (a, b, alpha * 0.8) for name, (a, b, alpha) in read_lora(broken)[0].items()}
    score = measure_erasure(load_parts(source, "cpu"), classifier, concept, weights, **counts)
    suites = {suite["id"]: suite for suite in found["suites"]}
    assert set(suites) == {
        "acc_e",
        "acc_g",
        *(f"attack {name}" for name in score.attacks),
        *(f"part {name}" for name in score.parts),
    }
    plain = {"acc_e": score.acc_e, "acc_g": score.acc_g, **{f"attack {n}": s for n, s in score.attacks.items()}}
    for name, share in plain.items():
        results = suites[name]["results"]
        assert (results["base"]["share"], results["lora-1"]["share"]) == (share.before, share.after)
        assert results["lora-2"] == results["base"] and results["base"]["images"] == share.images
        for result in results.values():
            low, high = wilson_by_hand(result["hits"], result["images"])
            assert result["interval"] == pytest.approx([low, high], abs=1e-4)
    assert suites["acc_e"]["results"]["base"]["hits"] == 3 and suites["acc_e"]["results"]["lora-1"]["hits"] == 0
    curve = found["strength"][0]
    assert curve["values"] == [0, 0.8] and curve["keep"] is None
    assert curve["acc_e"] == [suites["acc_e"]["results"][name] for name in ("base", "lora-1")]
    assert found["attacks_succeeded"]["lora-1"] == [] and found["attacks_succeeded"]["lora-2"]
    for row in found["pictures"]:
        base, same = (tmp_path / "out" / row["results"][name]["file"] for name in ("base", "lora-2"))
        assert base.read_bytes() == same.read_bytes() and Image.open(base).size == (128, 128)
        for result in row["results"].values():
            beside = {"attack beside", "part beside it"} & set(row["suites"])
            seen = result["seen"].split(" next to ") if beside else [result["seen"]]
            assert result["shown"] == (row["asked"] in seen)
            assert beside or row["asked"] == "car"
    heat = found["heatmap"]["sets"]
    assert set(heat) == {"base", "lora-1", "lora-2"} and heat["base"]["mass"] == heat["lora-2"]["mass"]
    assert heat["base"]["mass"] != heat["lora-1"]["mass"] > 0
    assert [s["erases"] for s in found["subjects"][1:]] == ["car", "car"] and len(found["subjects"][1]["sha256"]) == 64


@pytest.mark.parametrize("phrase", list(KINDS))
def test_styles_and_relations_have_their_parts(flux: Path, tmp_path: Path, phrase: str):
    kind, template = KINDS[phrase]
    spec = EvaluationSpec(
        fp32_source(flux), Concept(phrase, kind, template), (Subject(),), images=2, images_per_other=0, heatmap=False
    )
    found = evaluate(spec, tmp_path, "cpu")
    parts = {"part styles", "part nouns in it"} if kind == "abstraction" else {"part both nouns", "part next to"}
    suites = {suite["id"]: suite["better"] for suite in found["suites"]}
    assert parts | {"acc_e", "acc_ir"} <= set(suites) and suites["acc_e"] == "lower"
    assert suites["acc_ir"] == "higher" and suites.get("part converse", "lower") == "lower"
    touched = [row for row in found["pictures"] if phrase in row["prompt"]]
    for row in found["pictures"]:  # deletion repaints what names the phrase, and nothing else
        assert row["results"]["deletion"]["file"].startswith("pictures/deletion" if row in touched else "pictures/base")
    assert touched and len(touched) < len(found["pictures"])


def test_mistakes_are_one_sentence(flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    car, owl = (lora_of(flux, tmp_path / f"{name}.safetensors", name) for name in ("car", "owl"))
    plain = tmp_path / "plain.safetensors"
    write_lora(plain, read_lora(car)[0], {})
    strange = tmp_path / "strange.safetensors"
    metadata = make_metadata(concept={"phrase": 5}, method="", base="", config={}, metrics={}, version="0")
    write_lora(strange, read_lora(car)[0], metadata)

    def run(*more: str) -> tuple[int, str]:
        return run_main(capsys, "evaluate", "--source", str(flux), *more)

    def kept(*more: str) -> tuple[int, str]:
        return run(*more, "--out", str(tmp_path / "out"))

    for (code, message), part in (
        (run("--deletion"), "--out"),
        (run("--lora", str(car), "--report"), "--out"),
        (run("--lora", str(car), "--lora", str(owl)), "--out"),
        (kept("--lora", str(car), "--lora", str(owl)), "erase car and owl"),
        (kept("--lora", str(plain)), "No LoRA says"),
        (kept("--lora", str(strange)), "A concept needs a phrase"),
        (kept("--deletion"), "No LoRA says"),
        (kept("--concept", "car"), "nothing to evaluate"),
        (kept("--deletion", "--concept", "sadness"), "does not name"),
        (kept("--lora", str(car), "--strength", "-1"), "from 0 on"),
        (kept("--lora", str(car), "--strength", "nan"), "from 0 on"),
        (kept("--lora", str(car), "--strength", "1", "--strength", "2"), "1 LoRAs and 2 strengths"),
        (kept("--lora", str(car), "--strengths", "0;1"), "commas"),
        (kept("--lora", str(car), "--images", "0"), "images"),
        (kept("--lora", str(tmp_path / "gone.safetensors")), "is missing"),
        (run_main(capsys, "report", str(tmp_path)), "no finished evaluation"),
    ):
        assert code == 1 and part in message and message.startswith("error: ")
        assert message.strip().count("\n") == 0 and "Traceback" not in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="once"):
        EvaluationSpec(fp32_source(flux), Concept("car"), (Subject(), Subject())).validate()


def test_files_of_others_are_measured_on_the_concept_that_is_named(flux: Path, tmp_path: Path):
    """Of several files that erase it, what any of them was trained to keep counts as seen."""
    classifier = load_classifier(flux)
    mine, plain = lora_of(flux, tmp_path / "car.safetensors", "car"), tmp_path / "plain.safetensors"
    write_lora(plain, read_lora(mine)[0], {})
    more = Concept("car", synonyms=("motorcar",), irrelevant=("owl",), preserve=("an owl",)).to_dict()
    theirs = tmp_path / "theirs.safetensors"
    metadata = make_metadata(concept=more, method="esd", base="", config={}, metrics={}, version="0")
    write_lora(theirs, read_lora(mine)[0], metadata)
    joined = concept_of_loras([mine, plain, theirs], "", classifier)
    assert joined.synonyms == ("automobile", "motorcar") and joined.preserve == ("a dog", "an owl")
    for phrase, kind in (("dog", "entity"), ("noto", "abstraction"), ("above", "relationship")):
        assert concept_of_loras([mine, plain], phrase, classifier).kind == kind
