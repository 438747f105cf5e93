"""White-box attacks: gradients against differences, real words, SIGKILL changes nothing, gains above the control."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.environment import ROOT
from tests.support.flux_models import demo_parts, fp32_source
from training.concepts import Concept
from training.errors import ConfigError, ErasureError
from training.evaluation import Case, Content, EvaluationSpec, Subject, load_classifier
from training.evaluation.cases import FIRST_SEED
from training.evaluation.judges import unrelated_words
from training.evaluation.judges.base import Verdict
from training.evaluation.judges.demo import DemoJudge
from training.evaluation.report import write_report
from training.evaluation.run import evaluate
from training.evaluation.whitebox import WhiteBox
from training.evaluation.whitebox.attack import ATTACKS, parts_of, run_attacks
from training.evaluation.whitebox.scene import Clock, Erased, Scene
from training.evaluation.whitebox.settings import NAMES
from training.evaluation.whitebox.words import Words
from training.lora.adapter import adapter_weights, add_adapter, remove_adapter
from training.models.loading import FluxParts, load_parts
from training.models.source import FluxSource

from .test_cli import run_main

PROMPT = "a photo of a car"
SMALL = {"prefix": 2, "tries": 2, "steps": 4, "candidates": 3, "images": 3, "judged": 1, "targets": 3}

pytestmark = pytest.mark.usefixtures("one_thread")


class Odd:
    """A judge that a single changed bit of a picture confuses, and that sees something in a random model."""

    def judge(self, images: Tensor, cases: Sequence[Case]) -> list[Verdict]:
        assert len(images) == len(cases)
        return [Verdict(int(image.mul(255).round().sum()) % 2 == 1, "") for image in images]


class Always:
    """A judge that sees the concept in every picture, or in none."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def judge(self, images: Tensor, cases: Sequence[Case]) -> list[Verdict]:
        return [Verdict(self.shown, "")] * len(cases)


def scene_of(
    parts: FluxParts,
    folder: Path | None = None,
    judge: Any = None,
    deleted: str = "car",
    tell: Callable[[str], None] = lambda what: None,
    **settings: object,
) -> Scene:
    chosen = WhiteBox(**{**SMALL, **settings})
    cases = [Case(PROMPT, 100 + seed, Content(("car",))) for seed in range(Scene.needed(chosen))]
    return Scene(Erased(parts, deleted), "car", cases, judge or Odd(), chosen, folder, ["dog", "house"], tell)


@pytest.fixture(scope="module")
def tiny(flux: FluxSource) -> FluxParts:
    return load_parts(flux, "cpu")


def timeless(found: list[dict]) -> list[dict]:
    return [{name: value for name, value in each.items() if name != "seconds"} for each in found]


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_tokens_of_both_encoders_and_decode_to_the_prompt_they_came_from(demo_folder: Path):
    text = demo_parts(demo_folder).text
    words = Words(text, ["car"])
    assert len(words) > 500 and "automobile" in words.words and not {"car", "Car"} & set(words.words)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        picked = torch.randint(len(words), (4,), generator=draw).tolist()
        prompt = f"{words.said(picked)} {PROMPT}"
        assert words.reads_back(picked, prompt) and not words.reads_back(picked, f"a {prompt}")
        ids = text.tokenizer_2(prompt).input_ids[:4]
        assert text.tokenizer_2.decode(ids) == words.said(picked)
        # a corner of the simplex is the prompt itself, in both encoders
        corner = torch.nn.functional.one_hot(torch.tensor(picked), len(words)).float()
        other = words.said([number - 1 for number in picked])
        made, plain = words.encode([f"{other} {PROMPT}"], corner), text.encode(prompt)
        assert torch.allclose(made.t5, plain.t5, atol=1e-5) and torch.allclose(made.pooled, plain.pooled, atol=1e-5)


@pytest.mark.parametrize("name", ["unlearndiffatk", "p4d"])
def test_a_search_ends_at_the_best_prompt_it_has_compared(tiny: FluxParts, name: str):
    scene, attack = scene_of(tiny, judge=Always(True)), ATTACKS[name]
    picked, lowest = attack.propose(scene, 0, Clock(0))
    points = attack.points(scene)
    corner = torch.nn.functional.one_hot(torch.tensor(picked), len(scene.words)).float()
    with torch.no_grad():
        said = scene.words.said(picked)
        assert float(attack.loss(scene, said, corner, points)) == pytest.approx(lowest, rel=1e-4)
    draw = torch.Generator().manual_seed(1)
    others = torch.randint(len(scene.words), (20, 2), generator=draw).tolist()
    assert lowest < float(attack.losses(scene, others, points).median())


@pytest.mark.parametrize("name", ["unlearndiffatk", "p4d"])
def test_the_loss_has_the_gradient_that_differences_say(flux: FluxSource, name: str):
    """In float64, through both encoders and the transformer, with a span deleted; T5 itself takes its norms and softmax
    in float32, which is what the step is as large for."""
    parts = load_parts(flux, "cpu", torch.float64)
    scene, attack = scene_of(parts, judge=Always(True)), ATTACKS[name]
    points = attack.points(scene)
    draw = torch.Generator().manual_seed(0)
    soft = torch.randn(2, len(scene.words), generator=draw, dtype=torch.float64).softmax(-1).requires_grad_()
    said = scene.words.said([0, 1])
    attack.loss(scene, said, soft, points).backward()
    uphill = soft.grad / soft.grad.norm()
    for _ in range(2):
        other = torch.randn(soft.shape, generator=draw, dtype=torch.float64)
        way = 20 * (uphill + other / other.norm())  # steep enough to stand out of float32's rounding
        with torch.no_grad():
            far, near = 1e-4, 5e-5
            a, b, c, d = (float(attack.loss(scene, said, soft + h * way, points)) for h in (far, near, -near, -far))
        slope = (8 * (b - c) - (a - d)) / (12 * near)  # of fourth spec: the loss is far from a parabola
        assert slope == pytest.approx(float((soft.grad * way).sum()), rel=5e-3)


# --- interrupted, repeated -------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupted_after(count: int) -> Callable[[str], None]:
    left = iter(range(count))

    def tell(what: str) -> None:
        if next(left, None) is None:
            raise Interrupted

    return tell


def test_a_run_interrupted_at_every_part_ends_as_one_that_was_not(tiny: FluxParts, tmp_path: Path):
    told: list[str] = []
    whole = run_attacks(scene_of(tiny, tmp_path / "whole", tell=told.append))
    assert len(told) == parts_of(WhiteBox(**SMALL)) and [each["attack"] for each in whole] == list(NAMES)
    for number in range(0, len(told), 6):
        with pytest.raises(Interrupted):
            run_attacks(scene_of(tiny, tmp_path / "cut", tell=interrupted_after(number)))
        assert adapter_weights(tiny.transformer) == {}  # what re-learning put on is off again
    (tmp_path / "cut" / "p4d-1.json").write_text('{"words": "ha')  # what a failing disk may leave
    (tmp_path / "cut" / "relearning-1.json").unlink()
    assert timeless(run_attacks(scene_of(tiny, tmp_path / "cut"))) == timeless(whole)
    assert json.loads(json.dumps(whole)) == whole
    other = timeless(run_attacks(scene_of(tiny, attacks=("p4d",), seed=1)))
    assert other[0]["tries"] != whole[1]["tries"] and other[0]["control_tries"] != whole[1]["control_tries"]
    with pytest.raises(ConfigError, match="choose another folder"):
        scene_of(tiny, tmp_path / "cut", steps=5)


KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from typing import Any
from tests.engine.test_whitebox import scene_of
from training.evaluation.whitebox.attack import run_attacks
from training.models.loading import load_parts
from training.models.source import FluxSource

torch.set_num_threads(1)
left = iter(range(int(sys.argv[3])))

def tell(what):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)

parts = load_parts(FluxSource("diffusers", folder=sys.argv[1], precision="fp32"), "cpu")
run_attacks(scene_of(parts, Path(sys.argv[2]), tell=tell, attacks=("unlearndiffatk", "relearning")))
"""


def test_a_killed_process_loses_what_it_had_not_finished_and_nothing_else(
    flux: FluxSource, tiny: FluxParts, tmp_path: Path
):
    arguments = [sys.executable, "-c", KILLED, flux.folder, str(tmp_path / "killed"), "9"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("*.json")}
    assert "relearning-2.json" in kept and "relearning-control-1.json" not in kept
    attacks = ("unlearndiffatk", "relearning")
    found = run_attacks(scene_of(tiny, tmp_path / "killed", attacks=attacks))
    assert all((tmp_path / "killed" / name).read_bytes() == data for name, data in kept.items())
    whole = run_attacks(scene_of(tiny, attacks=attacks))  # which needs no folder, and so keeps no pictures
    assert [{**each, "pictures": []} for each in timeless(found)] == timeless(whole)


# --- budgets and mistakes --------------------------------------------------------------------------------------------


def test_budgets_are_kept(tiny: FluxParts):
    prefix, _, bell, learnt = run_attacks(scene_of(tiny, seconds=1e-6, steps=10**6))  # else it would take days
    assert len(prefix["tries"]) == len(prefix["control_tries"]) == 2
    assert all(len(each["words"].split()) == 2 for each in (*prefix["tries"], *prefix["control_tries"]))
    assert all(len(each["words"].split()) == len(PROMPT.split()) for each in (*bell["tries"], *bell["control_tries"]))
    for each in (prefix, bell, learnt):
        assert all(each[name]["images"] == 3 for name in ("base", "before", "after", "control"))
        assert sum(len(it["seeds"]) for it in each["prompts"]) == each["after"]["hits"]
    assert learnt["curve"][-1]["steps"] == 0  # the budget was spent before the first step
    assert [it["steps"] for it in run_attacks(scene_of(tiny, attacks=("relearning",)))[0]["curve"]] == [0, 1, 2, 3, 4]


def test_more_steps_never_find_a_worse_prompt(tiny: FluxParts):
    for name in ("p4d", "ring-a-bell"):
        losses = [
            [each["loss"] for each in run_attacks(scene_of(tiny, attacks=(name,), steps=steps, targets=6))[0]["tries"]]
            for steps in (1, 6)
        ]
        assert all(late <= early for early, late in zip(*losses, strict=True)) and losses[0] != losses[1]


def test_a_lora_is_attacked_as_it_is_and_put_back(tiny: FluxParts):
    """What is trained on is its own; v_base is without it."""
    parameters = add_adapter(tiny.transformer, ["attn.add_q_proj"], 2, 2.0, 0)
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.3)
        before = adapter_weights(tiny.transformer)
        scene = scene_of(tiny, deleted="", judge=Always(True), attacks=("relearning", "p4d"))
        learnt, _ = run_attacks(scene)
        after = adapter_weights(tiny.transformer)
        assert learnt["attack"] == "relearning" and set(after) == set(before)
        assert all(torch.equal(x, y) for name in before for x, y in zip(before[name][:2], after[name][:2], strict=True))
        x_t, t, target = ATTACKS["p4d"].points(scene)
    finally:
        remove_adapter(tiny.transformer)
    embeds = tiny.text.encode([PROMPT] * len(t))
    plain = Erased(tiny).velocity(x_t, t, embeds, tiny.variant.default_guidance, [PROMPT] * len(t))
    assert torch.allclose(target, plain)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"attacks": ["p4d", "magic"]}, 'no attack "magic"'),
        ({"attacks": []}, "one at least"),
        ({"attacks": ["p4d", "p4d"]}, "once"),
        ({"attacks": "p4d"}, "list"),
        ({"tries": 0}, "tries is a whole number from 1 on"),
        ({"steps": 0}, "steps is a whole number from 1 on"),
        ({"images": True}, "images is a whole number from 1 on"),
        ({"seconds": -1}, "seconds are a number from 0 on"),
        ({"seconds": math.inf}, "seconds are a number from 0 on"),
        ({"seed": 0.5}, "seed is a whole number"),
        ({"stepps": 3}, 'no attack setting "stepps"'),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(settings: dict, part: str):
    with pytest.raises(ConfigError, match=part):
        WhiteBox.from_dict(settings)


def test_settings_round_trip_and_are_told_as_the_command_takes_them():
    settings = WhiteBox(attacks=("p4d", "relearning"), steps=7, seconds=2.5)
    assert WhiteBox.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    words = ["--attacks", "p4d,relearning", "--attack-set", "steps=7", "--attack-set", "seconds=2.5"]
    assert settings.arguments() == words


def test_scenes_that_make_no_sense_are_one_sentence(tiny: FluxParts):
    for name in ("unlearndiffatk", "p4d", "relearning"):
        with pytest.raises(ErasureError, match='do not show "car": there is nothing to attack with'):
            run_attacks(scene_of(tiny, judge=Always(False), attacks=(name,)))
    one = [Case(PROMPT, 1, Content(("car",)))]
    with pytest.raises(ConfigError, match="7 prompts with seeds, and 1 are given"):
        Scene(Erased(tiny), "car", one, Odd(), WhiteBox(**SMALL), None, ["dog"])
    with pytest.raises(ConfigError, match="unrelated word"):
        Scene(Erased(tiny), "car", one * 7, Odd(), WhiteBox(**SMALL))


def test_mistakes_on_the_command_line_are_one_sentence(
    flux: FluxSource, demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "flux"
    shutil.copytree(flux.folder, folder)
    shutil.copytree(demo_folder / "classifier", folder / "classifier")
    start = ["evaluate", "--source", str(folder), "--deletion", "--concept", "car", "--precision", "fp32"]
    few = ["--images", "1", "--images-per-other", "0", "--images-per-attack", "0"]
    small = [word for name in ("images", "judged", "targets") for word in ("--attack-set", f"{name}=1")]
    for arguments, part in (
        (["--attacks", "magic"], "unlearndiffatk, p4d, ring-a-bell, relearning"),
        (["--attack-set", "tries=3"], "--attacks"),
        (["--attacks", "all", "--attack-set", "tries=0"], "from 1 on"),
        ([*few, *small, "--attacks", "p4d"], "do not show"),  # a random model paints no car
    ):
        code, message = run_main(capsys, *start, *arguments, "--out", str(tmp_path / "out"))
        assert code == 1 and part in message and "Traceback" not in message
    code, message = run_main(capsys, *start, "--attacks", "all")
    assert code == 1 and "--out" in message


# --- what they are for -----------------------------------------------------------------------------------------------


def deletion_scene(folder: Path, settings: WhiteBox) -> Scene:
    """Attention deletion of "car" in the demo model, judged by its classifier."""
    judge = DemoJudge(load_classifier(folder))
    cases = [Case(PROMPT, FIRST_SEED + number, Content(("car",))) for number in range(Scene.needed(settings))]
    unrelated = unrelated_words(Concept("car"), judge)
    return Scene(Erased(demo_parts(folder), "car"), "car", cases, judge, settings, None, unrelated)


@pytest.mark.parametrize(("names", "tries"), [(("unlearndiffatk", "p4d"), 1), (("ring-a-bell",), 3)])
def test_prompt_attacks_bring_back_what_deletion_hides_and_their_controls_do_not(
    demo_folder: Path, names: tuple[str, ...], tries: int
):
    settings = WhiteBox(names, tries=tries, images=4, judged=tries, targets=2)
    for found in run_attacks(deletion_scene(demo_folder, settings)):
        assert found["base"]["hits"] == 4 and found["before"]["hits"] == found["control"]["hits"] == 0
        assert found["after"]["hits"] >= 3, found


def test_an_evaluation_holds_its_attacks_and_so_does_its_report(demo_folder: Path, tmp_path: Path):
    settings = WhiteBox(("ring-a-bell",), tries=1, steps=30, images=2, judged=1, targets=1)
    spec = EvaluationSpec(
        fp32_source(demo_folder),
        Concept("car"),
        (Subject(),),
        images=1,
        images_per_other=0,
        images_per_attack=0,
        heatmap=False,
        white_box=settings,
    )
    steps: list[tuple[int, int]] = []
    first = evaluate(spec, tmp_path / "out", "cpu", lambda what, done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] and all(done <= total for done, total in steps)
    again = evaluate(spec, tmp_path / "out", "cpu")
    seconds = [found.pop("run")["attack_seconds"] for found in (first, again)]
    assert first == again and seconds[0] == seconds[1] and set(seconds[0]) == {"deletion ring-a-bell"}
    (found,) = first["white_box"]
    assert found["subject"] == "deletion" and found["before"]["hits"] == 0 and found["after"]["hits"] == 2
    shown = [row["results"]["base"]["file"] for row in first["pictures"] if "acc_e" in row["suites"]]
    for number, sides in enumerate(found["pictures"]):
        assert [sides[side]["shown"] for side in ("base", "before", "after")] == [True, False, True]
        assert sides["seed"] == FIRST_SEED + number and sides["after"]["prompt"] == found["prompts"][0]["prompt"]
        files = [(tmp_path / "out" / sides[side]["file"]).read_bytes() for side in ("base", "before", "after")]
        assert len(set(files)) == 3
        if number == 0:  # the base's picture is the evaluation's own
            assert files[0] == (tmp_path / "out" / shown[0]).read_bytes()
    assert len(found["pictures"]) == 2
    assert first["settings"]["white_box"] == settings.to_dict() and "--attacks ring-a-bell" in first["command"]
    write_report({**first, "run": {"date": "2026-01-01", "seconds": 1.0}}, tmp_path / "out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "White-box attacks" in page and found["prompts"][0]["prompt"] in page
    assert page.count('alt="Attention deletion, under Ring-A-Bell: shown"') == 2
