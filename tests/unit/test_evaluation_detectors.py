"""Detectors against each library's own way of judging the same pictures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor

from tests.support.judge_models import make_clip, make_vit
from training.errors import ErasureError, SourceError
from training.evaluation import load_classifier
from training.evaluation.judges.base import Detection, Finding, Judge, count
from training.evaluation.judges.clip import CLIP_TEMPLATE, ClipJudge
from training.evaluation.judges.demo import DemoJudge
from training.evaluation.judges.image_classifier import ImageClassifierJudge
from training.evaluation.judges.nudenet import EXPOSED, NUDENET_LABELS, NudeNetJudge, count_exposed

PHOTOS = Path(skimage.__file__).parent / "data"
LABELS = ["a cat", "an astronaut", "coffee", "a red bus on a street"]


def photo(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    picture = Image.open(PHOTOS / name).convert("RGB")
    return picture.resize(size) if size else picture


def tensor(*pictures: Image.Image) -> Tensor:
    """[B, 3, H, W] in 0..1."""
    return torch.from_numpy(np.stack([np.array(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


THREE = [photo(name, (96, 72)) for name in ("astronaut.png", "chelsea.png", "coffee.png")]


@pytest.fixture(scope="module")
def nudenet() -> NudeNetJudge:
    return NudeNetJudge()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "tiny-clip", demo_folder)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vit(tmp_path_factory.mktemp("vits") / "tiny-vit", id2label={0: "crane", 1: "owl", 2: "crane", 3: "cup"})


# --- NudeNet


def test_nudenet_finds_what_its_own_api_finds_in_the_files(nudenet: NudeNetJudge) -> None:
    """A face, nothing exposed; boxes and scores as nudenet gives them for the file on the disk."""
    from nudenet import NudeDetector

    own = NudeDetector()
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"):
        (found,) = nudenet.detect(tensor(photo(name)))
        expected = [Detection(d["class"], d["score"], tuple(d["box"])) for d in own.detect(str(PHOTOS / name))]
        assert list(found.detections) == expected and not found.error and tuple(found.scores) == nudenet.labels
        assert all(group.per_detection == group.per_image == 0 for group in count_exposed([found]).values())
        if name == "astronaut.png":
            assert found.top == "FACE_FEMALE" and found.scores[found.top] == expected[0].score > 0.6
            assert count([found], ["FACE_FEMALE"], 0.6).per_detection == 1
            assert nudenet.detect(tensor(photo(name)).flip(1))[0] != found  # the order of colours counts


def test_nudenets_boxes_are_in_pixels_of_the_picture(nudenet: NudeNetJudge) -> None:
    """The same face at two places of a wide picture: boxes as far apart as they are, two detections in one picture."""
    face, canvas = photo("astronaut.png").crop((80, 20, 380, 320)), Image.new("RGB", (620, 330), (90, 90, 90))
    canvas.paste(face, (0, 0))
    canvas.paste(face, (320, 30))
    findings = nudenet.detect(tensor(canvas, Image.new("RGB", canvas.size)))
    (x, y, width, height), second = sorted(place.box for place in findings[0].detections)
    assert second == pytest.approx((x + 320, y + 30, width, height), abs=4)
    assert 80 < x < x + width < 210 and 50 < y < y + height < 180  # where a person sees it
    faces = count(findings, ["FACE_FEMALE", "FACE_MALE"], 0.6)
    assert (faces.per_detection, faces.per_image, faces.images) == (2, 1, 2)


def test_nudenets_labels_are_its_own_and_nine_are_exposed() -> None:
    import nudenet.nudenet as package

    assert list(NUDENET_LABELS) == getattr(package, "__labels")
    grouped = [label for group in EXPOSED.values() for label in group]
    assert sorted(grouped) == sorted(label for label in NUDENET_LABELS if label.endswith("_EXPOSED"))
    assert len(grouped) == len(set(grouped)) == 9


def test_without_nudenet_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)  # what Python itself does for a package that is not there
    with pytest.raises(ErasureError, match=r"pip install nudenet"):
        NudeNetJudge()


# --- CLIP


def test_clip_scores_as_transformers_zero_shot_pipeline(clip_folder: Path) -> None:
    from transformers import pipeline

    own = pipeline("zero-shot-image-classification", model=str(clip_folder), device="cpu")
    for template in (CLIP_TEMPLATE, "a drawing of {}"):
        findings = ClipJudge(clip_folder, LABELS, template).detect(tensor(*THREE))
        for picture, found in zip(THREE, findings, strict=True):
            scores = {d["label"]: d["score"] for d in own(picture, LABELS, hypothesis_template=template)}
            assert found.scores == pytest.approx(scores, abs=1e-5) and found.detections is None
            assert found.top == max(scores, key=scores.get) and max(scores.values()) - min(scores.values()) > 0.05
    spread = torch.tensor([list(found.scores.values()) for found in findings]).std(0).max()
    assert spread > 1e-3  # the pictures make a difference, or the above would say little


def test_a_clip_that_is_not_there_is_asked_for(tmp_path: Path, demo_folder: Path, clip_folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no CLIP model in .*nowhere: put one there .*nothing is downloaded"):
        ClipJudge(tmp_path / "nowhere", LABELS)
    with pytest.raises(SourceError, match="clip_text_model"):  # half a CLIP, the demo model's
        ClipJudge(demo_folder / "text_encoder", LABELS)
    broken = tmp_path / "broken"
    shutil.copytree(clip_folder, broken)
    (broken / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(SourceError, match=r"broken cannot be loaded as CLIP model: .+"):
        ClipJudge(broken, LABELS)
    (broken / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match="copy the model's folder again"):
        ClipJudge(broken, LABELS)


@pytest.mark.parametrize(
    ("labels", "template", "sentence"),
    [
        (["cat"], "{}", "at least two"),
        (["cat", "cat"], "{}", "all different"),
        (["cat", " "], "{}", "none empty"),
        (["cat", "dog"], "a cat", "must have {} once"),
        (["cat", "dog " * 90], "{}", "77 tokens"),
    ],
)
def test_labels_that_clip_cannot_use(clip_folder: Path, labels: list[str], template: str, sentence: str) -> None:
    with pytest.raises(ErasureError, match=sentence):
        ClipJudge(clip_folder, labels, template)


# --- transformers


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", None])
def test_a_classifier_scores_as_transformers_pipeline(vit_folder: Path, tmp_path: Path, problem_type: str) -> None:
    from transformers import pipeline

    folder = tmp_path / "vit"
    shutil.copytree(vit_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["problem_type"] = problem_type
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    detector = ImageClassifierJudge(folder)
    assert detector.labels == ("crane", "owl", "crane (2)", "cup")
    own = pipeline("image-classification", model=str(folder), device="cpu")
    for picture, found in zip(THREE, detector.detect(tensor(*THREE)), strict=True):
        expected = sorted((d["score"], d["label"]) for d in own(picture, top_k=4))
        scores = sorted((score, label.split(" (")[0]) for label, score in found.scores.items())
        assert [s for s, _ in scores] == pytest.approx([s for s, _ in expected], abs=1e-5)
        assert [label for _, label in scores] == [label for _, label in expected]
        total = sum(found.scores.values())
        assert (total == pytest.approx(1)) == (problem_type != "multi_label_classification")


def test_a_single_label_is_a_probability_of_its_own(tmp_path: Path) -> None:
    from transformers import pipeline

    folder = make_vit(tmp_path / "one", num_labels=1)
    (found,) = ImageClassifierJudge(folder).detect(tensor(THREE[0]))
    (expected,) = pipeline("image-classification", model=str(folder), device="cpu")(THREE[0])
    assert found.scores == pytest.approx({expected["label"]: expected["score"]}, abs=1e-5)
    assert 0 < expected["score"] < 1


def test_a_folder_that_is_no_trained_classifier_is_refused(tmp_path: Path, vit_folder: Path, demo_folder: Path) -> None:
    from transformers import ViTModel

    with pytest.raises(SourceError, match="no image classifier in"):
        ImageClassifierJudge(tmp_path)
    with pytest.raises(SourceError, match="cannot be loaded as image classifier"):
        ImageClassifierJudge(demo_folder / "text_encoder")
    headless = tmp_path / "headless"  # transformers would draw a head at random, and every score with it
    ViTModel.from_pretrained(vit_folder).save_pretrained(headless)
    shutil.copy(vit_folder / "preprocessor_config.json", headless)
    with pytest.raises(SourceError, match=r"lacks 2 weights .*classifier"):
        ImageClassifierJudge(headless)
    with pytest.raises(SourceError, match="estimates a number"):
        ImageClassifierJudge(make_vit(tmp_path / "number", num_labels=1, problem_type="regression"))


# --- all of them


def test_the_demo_detector_says_what_the_classifier_says(demo_folder: Path) -> None:
    classifier = load_classifier(demo_folder)
    sheet = np.asarray(Image.open(demo_folder / "samples.jpg").convert("RGB"))
    pictures = [Image.fromarray(sheet[y : y + 128, x : x + 128]) for y, x in ((0, 0), (0, 128), (128, 0))]
    images, detector = tensor(*pictures), DemoJudge(classifier)
    findings, verdict = detector.detect(images), classifier.classify(images)
    assert [found.top for found in findings] == verdict.nouns
    assert [list(found.scores.values()) for found in findings] == pytest.approx(verdict.probabilities.numpy(), abs=1e-6)
    assert detector.labels == (*classifier.nouns, "none")
    assert "128×128" in detector.detect(images[..., :64])[0].error


@pytest.fixture(params=["demo", "nudenet", "clip", "vit"])
def detector(request: pytest.FixtureRequest) -> Judge:
    get = request.getfixturevalue
    match request.param:
        case "demo":
            return DemoJudge(load_classifier(get("demo_folder")))
        case "nudenet":
            return get("nudenet")
        case "clip":
            return ClipJudge(get("clip_folder"), LABELS)
        case _:
            return ImageClassifierJudge(get("vit_folder"))


def test_a_picture_that_cannot_be_judged_is_named_and_the_others_are_judged(detector: Judge) -> None:
    good = tensor(photo("astronaut.png", (128, 128)), photo("chelsea.png", (128, 128)))
    images = torch.cat([good[:1], good[:1], good[:1], good[1:]])
    images[1, 0, 5, 5] = torch.nan
    images[2] *= 255
    findings = detector.detect(images)
    alone = [detector.detect(picture[None])[0] for picture in good]
    assert [findings[n].scores for n in (0, 3)] == [pytest.approx(found.scores, abs=1e-5) for found in alone]
    assert "not numbers" in findings[1].error and "255" in findings[2].error
    counted = count(findings, detector.labels, 0.0)
    assert (counted.per_image, counted.images, list(counted.failed)) == (2, 2, [1, 2])
    assert detector.detect(torch.zeros(0, 3, 128, 128)) == []
    assert "empty" in detector.detect(torch.zeros(1, 3, 0, 8))[0].error
    for wrong in (images[0], images[:, :1], torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ErasureError, match=r"RGB images as floating-point numbers"):
            detector.detect(wrong)


def test_a_model_that_fails_on_one_picture_loses_only_that_one(vit_folder: Path) -> None:
    detector = ImageClassifierJudge(vit_folder)

    def refuse(module, inputs, kwargs):
        pixels = kwargs["pixel_values"]
        if (pixels.amax((1, 2, 3)) == pixels.amin((1, 2, 3))).any() or pixels.std((1, 2, 3)).min() < 0.3:
            raise RuntimeError("a flat picture")

    images = tensor(*THREE)
    before = detector.detect(images)
    images[1] = 0.5
    detector._model.register_forward_pre_hook(refuse, with_kwargs=True)
    findings = detector.detect(images)
    assert [bool(found.error) for found in findings] == [False, True, False]
    assert findings[1] == Finding({}, error="RuntimeError: a flat picture")
    assert findings[0].scores == pytest.approx(before[0].scores, abs=1e-5)


def test_both_ways_of_counting() -> None:
    def seen(*places: tuple[str, float]) -> Finding:
        scores = dict.fromkeys(NUDENET_LABELS, 0.0)
        scores.update(sorted(places, key=lambda place: place[1]))
        return Finding(scores, tuple(Detection(label, score, (0, 0, 1, 1)) for label, score in places))

    findings = [
        seen(("FEET_EXPOSED", 0.9), ("FEET_EXPOSED", 0.6), ("BELLY_EXPOSED", 0.59)),
        seen(("MALE_BREAST_EXPOSED", 0.7), ("ARMPITS_EXPOSED", 0.8), ("FACE_MALE", 0.95)),
        seen(),
        Finding({}, error="broken"),
    ]
    counts = count_exposed(findings)
    assert {name: (c.per_detection, c.per_image) for name, c in counts.items()} == {
        "common": (3, 2),
        "female": (0, 0),
        "male": (1, 1),
        "total": (4, 2),
    }
    assert all(c.images == 3 and c.failed == {3: "broken"} for c in counts.values())
    assert count(findings, ["FACE_MALE"]).per_image == 1 and count(findings, ["ARMPITS_EXPOSED"]).per_image == 0
    assert count([Finding({"cat": 0.5, "dog": 0.5})], ["cat"]).per_detection is None
    assert count([], ["FACE_MALE"], 0.6).images == 0
    with pytest.raises(ErasureError, match="no label NOSE"):
        count(findings, ["NOSE"], 0.6)
