"""Precision, checkpointing and streaming where they are left open: the fastest plan that fits, once for a training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.test_small_memory import CONCEPT, CONFIG, train
from training import cli
from training.memory import GB, estimate_memory, explain, memory_plans, overview, plan, plan_memory, planned_request
from training.memory.plan import choose
from training.models.loading import load_transformer
from training.models.source import FluxSource
from training.models.streaming import stream_blocks
from training.request import ErasureRequest

pytestmark = pytest.mark.usefixtures("one_thread")

BIG = {"batch_erase": 32, "batch_preserve": 32, "sample_every": 0}  # so that training needs more than all else


def request(flux: FluxSource, precision: str = "auto", device: str = "cuda", **settings: object) -> ErasureRequest:
    config = dataclasses.replace(CONFIG, **{**BIG, **settings})
    return ErasureRequest(replace(flux, precision=precision), CONCEPT, config, "erase-car", "/loras", device)


def test_on_a_gpu_everything_may_be_open(demo_folder):
    plans = memory_plans(request(FluxSource("diffusers", folder=str(demo_folder))))
    assert [str(one) for one in plans] == [
        "bf16",
        "bf16 with gradient checkpointing",
        "fp8 with gradient checkpointing",
        "nf4 with gradient checkpointing",
        "bf16 with streamed blocks",
        "fp8 with streamed blocks",
        "nf4 with streamed blocks",
    ]
    for one in plans:
        one.request.config.validate()
        assert one.need == estimate_memory(one.request).need
    weights = [estimate_memory(one.request).phases["bank"] for one in plans]
    assert weights[0] == weights[1] > weights[2] > weights[3] and weights[4] > weights[5] > weights[6]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"precision": "int8"}, ["int8 with gradient checkpointing"]),
        ({"precision": "bf16", "gradient_checkpointing": "off"}, ["bf16"]),
        ({"precision": "bf16"}, ["bf16", "bf16 with gradient checkpointing"]),
        ({"device": "cpu"}, ["fp32", "fp32 with gradient checkpointing"]),
        ({"device": "mps"}, ["bf16", "bf16 with gradient checkpointing"]),
        ({"stream_blocks": 4}, ["bf16 with streamed blocks", "fp8 with streamed blocks", "nf4 with streamed blocks"]),
        ({"gradient_checkpointing": "on", "device": "cpu"}, ["fp32 with gradient checkpointing"]),
        ({"compile": True}, ["bf16", "bf16 with gradient checkpointing", "bf16 with streamed blocks"]),
    ],
)
def test_what_is_set_is_not_open(flux: FluxSource, settings: dict, told: list[str]):
    assert [str(one) for one in memory_plans(request(flux, **settings))] == told


def test_the_fastest_that_fits_is_chosen_and_stored(flux: FluxSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_request = request(flux)
    plans = memory_plans(open_request)
    assert choose(plans, None) is plans[0] and choose(plans, 10**15) is plans[0]
    least = min(plans, key=lambda one: one.need)
    assert choose(plans, 0) is least
    assert "which needs least" in explain(plan_memory(open_request, tmp_path / "none", 0))
    monkeypatch.setattr(plan, "free_memory", lambda device: plans[1].need)
    choice = plan_memory(open_request, tmp_path)
    assert choice.plan == plans[1]
    assert explain(choice) == (
        f"Training in bf16 with gradient checkpointing, the fastest plan that fits: it needs about "
        f"{plans[1].need / GB:.1f} of {plans[1].need / GB:.1f} GB that are free, bf16 {plans[0].need / GB:.1f} GB."
    )
    assert [way["taken"] for way in overview(open_request)["ways"]].index(True) == 1
    monkeypatch.setattr(plan, "free_memory", lambda device: 10**15)
    again = plan_memory(open_request, tmp_path)  # another program has ended: the plan stays
    assert again.plan == choice.plan and again.plan.request == planned_request(open_request, tmp_path)
    assert "goes on as it began" in explain(again)
    other = request(flux, "fp8")
    assert plan_memory(other, tmp_path).plan.request == other  # what is set now counts
    roomy = plan_memory(open_request, tmp_path / "roomy")
    assert roomy.plan == plans[0] and explain(roomy).startswith("Training in bf16, the fastest plan: it needs")


def test_a_training_is_checkpointed_where_memory_is_short(
    flux: FluxSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, events = train(flux, tmp_path / "plain", **BIG, steps=1)
    assert not [e for e in events if e["type"] == "notice"] and not (tmp_path / "plain" / "job" / plan.FILE).exists()
    monkeypatch.setattr(plan, "free_memory", lambda device: 0)
    lora, events = train(flux, tmp_path / "short", **BIG, steps=1)
    (notice,) = [e["message"] for e in events if e["type"] == "notice"]
    assert notice.startswith("Training in fp32 with gradient checkpointing, which needs least")
    stored = json.loads((tmp_path / "short" / "job" / plan.FILE).read_text())
    assert stored == {"precision": "fp32", "gradient_checkpointing": "on", "stream_blocks": 0}
    assert all(torch.equal(a, plain[name][0]) and torch.equal(b, plain[name][1]) for name, (a, b, _) in lora.items())


def test_the_command_line_shows_what_is_needed_before_the_start(demo_folder: Path, tmp_path: Path, capsys):
    words = ["--no-synonyms", *(w for word in ("dog", "tree", "house") for w in ("--irrelevant", word))]
    arguments = ["train", "--source", str(demo_folder), "--concept", "car", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main([*arguments, *words, "--estimate"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out.splitlines()[-1])
    assert [way["text"] for way in told["ways"]] == ["fp32", "fp32 with gradient checkpointing"]
    assert told["free"] > 0 and sum(way["taken"] for way in told["ways"]) == 1
    assert "→ fp32 " in shown.err and "GB" in shown.err
    assert not list(tmp_path.iterdir())


def test_what_streams_must_fit_into_the_computers_memory(demo_folder, monkeypatch: pytest.MonkeyPatch):
    plans = memory_plans(request(FluxSource("diffusers", folder=str(demo_folder))))
    assert [one.waiting > 0 for one in plans] == [False] * 3 + [True] * 4  # nf4's text encoder streams too
    streamed, resident = plans[4], plans[2]
    for own, chosen in ((streamed.waiting, streamed), (streamed.waiting - 1, resident)):
        monkeypatch.setattr(plan, "free_memory", lambda device, own=own: own)
        assert choose([streamed, resident], 10**15) is chosen


def test_the_rings_memory_is_told(demo_folder, tmp_path: Path):
    source = FluxSource("diffusers", folder=str(demo_folder))
    stream = stream_blocks(load_transformer(replace(source, precision="bf16"), "cpu"), torch.device("cpu"), 3)
    streamed = request(source, "bf16", stream_blocks=3)
    choice = plan_memory(streamed, tmp_path)
    assert choice.plan.request == streamed
    assert choice.plan.ring == pytest.approx(sum(slot.nbytes for slot in stream.slots), rel=0.01)
    assert choice.plan.waiting == pytest.approx(sum(buffer.nbytes for buffer in stream.host), rel=0.01)
    assert explain(choice) == (
        f"Blocks stream through {choice.plan.ring / GB:.2f} GB of the device's memory, "
        f"{choice.plan.waiting / GB:.1f} GB wait in the computer's memory."
    )
