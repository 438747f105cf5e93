"""Evaluations judged by detectors on prompts of all kinds: figures counted again from the pictures on the disk."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.flux_models import fp32_source, tiny_folder
from tests.support.judge_models import make_clip, make_vit
from training.concepts import Concept
from training.errors import ConfigError, ErasureError
from training.evaluation import EvaluationSpec, Subject
from training.evaluation.intervals import wilson
from training.evaluation.judges.base import Finding
from training.evaluation.judges.clip import ClipJudge
from training.evaluation.judges.image_classifier import ImageClassifierJudge
from training.evaluation.judges.nudenet import NudeNetJudge
from training.evaluation.report import write_report
from training.evaluation.run import evaluate
from training.evaluation.spec import USUAL

from .test_cli import lora_of, run_main
from .test_evaluation_run import without_run

CAR = Concept("car", synonyms=("automobile",), irrelevant=("owl", "castle"))
SMALL = {"images": 3, "images_per_other": 1, "images_per_attack": 2, "heatmap": False, "batch_size": 8}


@pytest.fixture(scope="module")
def bare(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Flux without a classifier of its own, as every other Flux is."""
    return tiny_folder(demo_folder, tmp_path_factory.mktemp("bare-flux"))


@pytest.fixture(scope="module")
def flux(bare: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged") / "flux"
    shutil.copytree(bare, folder)
    shutil.copytree(demo_folder / "classifier", folder / "classifier")
    return folder


@pytest.fixture(scope="module")
def clip(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "tiny-clip", demo_folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "sports car, car", 1: "owl", 2: "castle, fortress", 3: "cup"}
    return make_vit(tmp_path_factory.mktemp("vits") / "tiny-vit", id2label=labels)


def write_csv(path: Path, *rows: list[object]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def stack(folder: Path, rows: list[dict], name: str) -> Tensor:
    pictures = [np.asarray(Image.open(folder / row["results"][name]["file"]).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def rows_of(found: dict, suite: str) -> list[dict]:
    return [row for row in found["pictures"] if suite in row["suites"]]


def test_a_flux_without_a_classifier_is_judged_by_clip(bare: Path, clip: Path, tmp_path: Path):
    """Shares, intervals and verdicts are those of the detector on the pictures as they lie on the disk."""
    lora = lora_of(bare, tmp_path / "car.safetensors", "car", 10.0)
    spec = EvaluationSpec(
        fp32_source(bare),
        CAR,
        (Subject(), Subject(lora)),
        detectors=(f"clip:{clip}",),
        suites=(*USUAL, "presets"),
        **SMALL,
    )
    found = evaluate(spec, tmp_path / "out", "cpu")
    suites = {suite["id"]: suite for suite in found["suites"]}
    assert set(suites) == {
        "acc_e",
        "acc_g",
        "acc_ir",
        "presets",
        *(f"attack {name}" for name in ("misspelling", "affixes", "repetition", "shuffle", "number")),
    }
    assert suites["presets"]["better"] == suites["acc_ir"]["better"] == "higher"
    assert len(rows_of(found, "presets")) == 29  # thirty, of which the car is one
    labels = list(dict.fromkeys(["car", "owl", "castle", *(row["asked"] for row in rows_of(found, "presets"))]))
    detector = ClipJudge(clip, labels)
    for id, suite in suites.items():
        rows = rows_of(found, id)
        for name, result in suite["results"].items():
            tops = [finding.top for finding in detector.detect(stack(tmp_path / "out", rows, name))]
            shown = [top == row["asked"] for top, row in zip(tops, rows, strict=True)]
            assert [row["results"][name]["seen"] for row in rows] == tops
            assert [row["results"][name]["shown"] for row in rows] == shown
            assert (result["hits"], result["images"], result["failed"]) == (sum(shown), len(rows), 0)
            assert result["interval"] == pytest.approx(wilson(sum(shown), len(rows)), abs=1e-4)
    assert found["judge"]["name"] == "CLIP tiny-clip" and found["drift"]["lora-1"]["perceptual"] is None
    assert found["drift"]["lora-1"]["psnr"] < 100
    write_report(found, tmp_path / "out", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "CLIP tiny-clip" in text and "label with the highest score" not in text  # one judge: no section of its own
    assert str(tmp_path) not in json.dumps(found)


def test_nudenet_and_others_beside_the_models_own_classifier(flux: Path, vit: Path, tmp_path: Path):
    """Both conventions, by name; further detectors judge the same pictures."""
    prompts = write_csv(
        tmp_path / "mine.csv",
        ["prompt", "categories", "sd_seed"],
        ["a cat in a car", "x", 7],
        ["", "x", 8],
        ["a dog", "x", 9],
    )
    detectors = ("model", "nudenet", f"classifier:{vit}")
    spec = EvaluationSpec(
        fp32_source(flux),
        CAR,
        (Subject(),),
        detectors=detectors,
        suites=("preserved",),
        prompts=(prompts,),
        **{**SMALL, "images_per_other": 1},
    )
    found = evaluate(spec, tmp_path / "out", "cpu")
    assert [row["seed"] for row in rows_of(found, "file 1")] == [7, 9]
    (facts,) = found["prompt_files"]
    assert (facts["format"], facts["prompts"], facts["unusable"], facts["file"]) == ("i2p", 2, 1, "mine.csv")
    model, nudenet, classifier = found["detectors"]
    assert model["suites"] == [] and nudenet["threshold"] == 0.6
    assert [way.split(":")[0] for way in nudenet["counting"]] == ["per image", "per detection"]
    rows = rows_of(found, "acc_e")
    pictures = stack(tmp_path / "out", rows, "base")
    own = NudeNetJudge().detect(pictures)
    table = next(suite for suite in nudenet["suites"] if suite["id"] == "acc_e")
    for measure in table["measures"]:
        result = measure["results"]["base"]
        if measure["id"] == "asked":
            continue
        places = [
            place
            for finding in own
            for place in finding.detections
            if place.score >= 0.6 and place.label.endswith("_EXPOSED")
        ]
        if measure["id"] == "total":
            assert result["per_detection"]["detections"] == len(places)
        assert result["per_image"]["images"] == result["per_detection"]["images"] == len(rows)
    assert [measure["id"] for measure in table["measures"]] == ["asked", "common", "female", "male", "total"]
    theirs = next(suite for suite in classifier["suites"] if suite["id"] == "acc_e")["measures"]
    tops = [finding.top for finding in ImageClassifierJudge(vit).detect(pictures)]
    assert [m["id"] for m in theirs] == ["asked"]
    assert theirs[0]["results"]["base"]["per_image"]["hits"] == tops.count("sports car, car")
    kept = next(suite for suite in classifier["suites"] if suite["id"] == "acc_ir")["measures"][0]
    asked = [row["asked"] for row in rows_of(found, "acc_ir")]
    assert kept["results"]["base"]["per_image"]["images"] == sum(word in ("owl", "castle", "cup") for word in asked)


def test_a_picture_that_a_detector_cannot_judge_is_counted_and_named(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The network fails on one picture of the base: it counts nowhere, everything else does."""
    spec = EvaluationSpec(fp32_source(flux), CAR, (Subject(),), detectors=("nudenet",), suites=(), **SMALL)
    whole = evaluate(spec, tmp_path / "whole", "cpu")
    detect, calls = NudeNetJudge.detect, []

    def once_broken(self: NudeNetJudge, images: Tensor) -> list[Finding]:
        images = images.clone()
        if not calls:
            images[1] = torch.nan  # what a network that overflows leaves
        calls.append(len(images))
        return detect(self, images)

    monkeypatch.setattr(NudeNetJudge, "detect", once_broken)
    found = evaluate(spec, tmp_path / "broken", "cpu")
    base, deletion = (found["suites"][0]["results"][name] for name in ("base", "deletion"))
    assert (base["images"], base["failed"], deletion["images"], deletion["failed"]) == (2, 1, 3, 0)
    broken = found["pictures"][1]
    (failed,) = found["detectors"][0]["failed"]
    assert failed == {"set": "base", "prompt": broken["prompt"], "seed": broken["seed"], "error": failed["error"]}
    assert "not numbers" in failed["error"] == broken["results"]["base"]["error"]
    assert [row["results"]["deletion"] for row in found["pictures"]] == [
        row["results"]["deletion"] for row in whole["pictures"]
    ]
    write_report(found, tmp_path / "broken", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "could not judge 1 pictures" in page and "not judged" in page and "not numbers" in page

    monkeypatch.setattr(NudeNetJudge, "detect", lambda self, images: [Finding.failed("broken")] * len(images))
    found = evaluate(spec, tmp_path / "whole", "cpu")  # all of them: still no failure of the run
    assert found["suites"][0]["results"]["base"] == {
        "hits": 0,
        "images": 0,
        "share": None,
        "interval": [0.0, 1.0],
        "failed": 3,
    }
    write_report(found, tmp_path / "whole", tmp_path / "report.html")


def test_equal_seeds_give_equal_json_and_others_other_pictures(flux: Path, clip: Path, tmp_path: Path):
    captions = write_csv(tmp_path / "captions.csv", ["caption"], *([f"a dog number {n}"] for n in range(6)))
    spec = EvaluationSpec(
        fp32_source(flux),
        CAR,
        (Subject(),),
        detectors=("model", f"clip:{clip}"),
        suites=("attacks",),
        prompts=(captions,),
        prompts_limit=4,
        distance=f"clip:{clip}",
        **SMALL,
    )
    for name in ("first", "second"):
        evaluate(spec, tmp_path / name, "cpu")
    assert without_run(tmp_path / "first") == without_run(tmp_path / "second")
    assert EvaluationSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    other = evaluate(EvaluationSpec(**{**vars(spec), "seed": 1}), tmp_path / "third", "cpu")
    assert not set(other["seeds"]) & set(without_run(tmp_path / "first")["seeds"]) - {50_000 + n for n in range(6)}
    assert other["settings"]["seed"] == 1 and "--seed 1" in other["command"]


def test_captions_have_a_clip_score_and_a_distance(bare: Path, clip: Path, tmp_path: Path):
    captions = write_csv(tmp_path / "coco.csv", ["image_id", "caption"], [1, "a dog"], [2, "an owl"], [3, "a car"])
    reference = tmp_path / "photos"
    reference.mkdir()
    for number in range(4):
        Image.new("RGB", (60, 40), (60 * number, 90, 200)).save(reference / f"{number}.png")
    (reference / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    spec = EvaluationSpec(
        fp32_source(bare),
        CAR,
        (Subject(),),
        detectors=(f"clip:{clip}",),
        suites=(),
        prompts=(captions,),
        distance=f"clip:{clip}",
        reference=reference,
        **SMALL,
    )
    found = evaluate(spec, tmp_path / "out", "cpu")
    fidelity = found["fidelity"]
    assert set(fidelity["distances"]) == set(fidelity["clip_score"]) == {"base", "deletion"}
    assert all(each["images"] == 3 and each["frechet"] > 0 for each in fidelity["distances"].values())
    assert found["distance"]["is_fid"] is False and list(found["distance"]["unreadable"]) == ["broken.jpg"]
    assert found["distance"]["reference"] == "4 pictures in photos"
    write_report(found, tmp_path / "out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Fréchet feature distance" in page and "FID" not in page and "CLIP score" in page and "broken.jpg" in page
    scored = fidelity["clip_score"]["base"]
    low, high = scored["interval"]
    assert 0 <= low <= scored["mean"] <= high <= 100 and scored["images"] == 3


def test_what_is_missing_or_malformed_is_one_sentence(
    bare: Path, flux: Path, clip: Path, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    empty = tmp_path / "empty.csv"
    empty.write_text("", encoding="utf-8")
    strange = write_csv(tmp_path / "strange.csv", ["name", "colour"], ["a", "b"])
    good = write_csv(tmp_path / "good.csv", ["caption"], ["a dog"])

    def kept(source: Path, *more: str) -> tuple[int, str]:
        common = ("--deletion", "--concept", "car", "--images", "1", "--out", str(tmp_path / "out"))
        return run_main(capsys, "evaluate", "--source", str(source), *common, *more)

    nowhere = tmp_path / "nowhere"
    for (code, message), part in (
        (kept(bare), "no classifier of its own"),
        (kept(bare, "--detector", f"clip:{nowhere}"), "put one there"),
        (kept(bare, "--detector", f"classifier:{nowhere}"), "put one there"),
        (kept(bare, "--detector", "clip"), "needs a folder"),
        (kept(bare, "--detector", "nudenet:x"), "has its own weights"),
        (kept(bare, "--detector", "eyes"), "Unknown detector"),
        (kept(bare, "--detector", f"classifier:{vit}", "--label", "bus"), "no label 'bus'"),
        (kept(bare, "--detector", f"classifier:{vit}", "--concept", "penguin"), "--label"),
        (kept(flux, "--suite", "everything"), "Unknown suite"),
        (kept(flux, "--prompts", str(empty)), "is empty"),
        (kept(flux, "--prompts", str(strange)), "none that holds prompts"),
        (kept(flux, "--prompts", str(nowhere)), "cannot be read"),
        (kept(flux, "--prompts", str(good), "--prompts-limit", "0"), "prompts can be taken"),
        (kept(flux, "--seed", "-1"), "from 0 to 900"),
        (kept(flux, "--distance", "model"), "captions"),
        (kept(flux, "--distance", "inception", "--prompts", str(good)), "inception:FILE"),
        (kept(flux, "--distance", f"inception:{nowhere}", "--prompts", str(good)), "inception-2015-12-05.pt"),
        (kept(flux, "--distance", f"inception:{good}", "--prompts", str(good)), "no TorchScript file"),
        (kept(flux, "--distance", "model", "--prompts", str(good), "--reference", str(nowhere)), "cannot be read"),
        (kept(flux, "--reference", str(tmp_path)), "choose a distance"),
    ):
        last = message.strip().splitlines()[-1]  # transformers may say how it loads
        assert code == 1 and part in last and last.startswith("error: ") and "Traceback" not in message, message
    assert not (tmp_path / "out").exists()


def test_a_hundred_thousand_prompts_are_drawn_from_and_what_was_left_out_is_said(flux: Path, tmp_path: Path):
    many = write_csv(tmp_path / "many.csv", ["prompt"], *([f"a picture of thing {n}"] for n in range(100_000)))
    spec = EvaluationSpec(fp32_source(flux), CAR, (Subject(),), suites=(), prompts=(many,), prompts_limit=5, **SMALL)
    found = evaluate(spec, tmp_path / "out", "cpu")
    assert (found["prompt_files"][0]["prompts"], found["prompt_files"][0]["left_out"]) == (5, 99_995)
    assert len(rows_of(found, "file 1")) == 5
    assert "5 of 100000 prompts" in next(s["title"] for s in found["suites"] if s["id"] == "file 1")


def test_a_picture_on_the_disk_that_is_broken_is_made_again(flux: Path, tmp_path: Path):
    spec = EvaluationSpec(fp32_source(flux), CAR, (Subject(),), suites=(), **SMALL)
    evaluate(spec, tmp_path / "out", "cpu")
    whole = without_run(tmp_path / "out")
    for number, path in enumerate(sorted((tmp_path / "out").glob("pictures/base/*.png"))):
        path.write_bytes((b"", b"nothing", path.read_bytes()[:50])[number % 3])
    assert evaluate(spec, tmp_path / "out", "cpu")["run"]["pictures_made"] == 3
    assert without_run(tmp_path / "out") == whole
    request = tmp_path / "out" / "request.json"  # as if version 1 had begun it
    begun = {**json.loads(request.read_text(encoding="utf-8")), "version": 1}
    request.write_text(json.dumps(begun), encoding="utf-8")
    assert evaluate(spec, tmp_path / "out", "cpu")["run"]["pictures_made"] == 0
    assert without_run(tmp_path / "out") == whole
    request.write_text(json.dumps({**begun, "blur": True}), encoding="utf-8")
    with pytest.raises(ConfigError, match="choose another folder"):
        evaluate(spec, tmp_path / "out", "cpu")


def test_a_disk_that_is_full_leaves_whole_pictures_and_the_next_run_ends(
    flux: Path, tmp_path: Path, small_disk, demo_folder: Path
):
    spec = EvaluationSpec(fp32_source(flux), CAR, (Subject(),), **{**SMALL, "images": 12, "batch_size": 2})
    with small_disk("160k") as disk:
        with pytest.raises(ErasureError, match="free some space"):
            evaluate(spec, disk / "out", "cpu")
        assert not list(disk.rglob("*.part")) and not (disk / "out" / "evaluation.json").exists()
        left = sorted((disk / "out").glob("pictures/base/*.png"))
        assert left and all(np.asarray(Image.open(path)).shape == (128, 128, 3) for path in left)
        shutil.copytree(disk / "out", tmp_path / "out")
    found = evaluate(spec, tmp_path / "out", "cpu")
    assert found["run"]["pictures_made"] <= sum(1 for _ in (tmp_path / "out").glob("pictures/*/*.png")) - len(left) + 1
