"""The real worker process: killed without warning and resumed, it ends with the same LoRA as one left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from scripts import soak
from tests.support.job_parts import ended

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """Where the trainings of `kills` are."""
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def kills(folder: Path) -> dict:
    """What the command that does it ten times each finds at twice each."""
    return soak.soak_jobs(times=2, steps=STEPS, seed=random.randrange(10**6), folder=folder)


def test_kills_of_scheduler_and_worker_lose_nothing(kills):
    for name in ("scheduler", "worker"):
        assert kills[name]["identical"], kills
        assert kills[name]["events_whole"], kills
        assert kills[name]["every_step"], kills
    assert (kills["scheduler"]["attempts"], kills["scheduler"]["workers"]) == (1, 1), kills
    assert kills["worker"]["attempts"] == 3, kills


def test_a_paused_run_is_bit_identical_and_repeats_no_step(kills, folder, store, tmp_path):
    paused = store.submit(soak.request_into(tmp_path / "paused", STEPS))
    while not any(event["type"] == "step" for event in paused.folder.events()):
        time.sleep(0.01)
    store.pause(paused.id)
    assert ended(store, paused).state.state == "paused"
    store.resume(paused.id)
    paused = ended(store, paused)
    assert paused.state.state == "completed"
    assert paused.lora.read_bytes() == (folder / "alone" / paused.lora.name).read_bytes()
    assert [e["step"] for e in paused.folder.events() if e["type"] == "step"] == list(range(1, STEPS + 1))
