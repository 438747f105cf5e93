"""The real worker process: killed without warning and resumed, it ends with the same LoRA as one left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil

from scripts import kill_jobs
from tests.job_parts import ended
from training.concepts import Concept
from training.config import ErasureConfig, ErasureRequest
from training.flux.source import demo_source
from training.jobs import Job, JobStore

STEPS = 8


def request_into(folder: Path) -> ErasureRequest:
    """A training of a few steps; every request of this file differs in its output folder alone."""
    concept = Concept(
        "car", irrelevant=("house", "tree", "apple"), preserve=("a photo of a house", "a photo of a tree")
    )
    config = ErasureConfig(steps=STEPS, rank=4, erase_prompts=2, checkpoint_every=3, sample_every=0, batch_preserve=2)
    return ErasureRequest(demo_source("fp32"), concept, config, "erase-car", str(folder), "cpu")


def kill_at(store: JobStore, job: Job, step: int) -> None:
    """Kills the worker right after it has told of `step`."""
    while not any(event.get("step", 0) >= step for event in job.folder.events() if event["type"] == "step"):
        assert store.get(job.id).state.state in ("queued", "starting", "running"), store.get(job.id).state
        time.sleep(0.01)
    psutil.Process(store.get(job.id).state.pid).kill()
    assert ended(store, job).state.state == "interrupted"


def test_a_killed_and_resumed_run_is_bit_identical(store, tmp_path):
    left_alone = ended(store, store.submit(request_into(tmp_path / "alone")))
    assert left_alone.state.state == "completed", left_alone.folder.log_file.read_text()
    killed = store.submit(request_into(tmp_path / "killed"))
    for step in sorted(random.Random().sample(range(1, STEPS), 2)):
        kill_at(store, killed, step)
        killed = store.resume(killed.id)
    killed = ended(store, killed)
    assert killed.state.state == "completed", killed.folder.log_file.read_text()
    assert killed.state.attempt == 3
    assert killed.lora.read_bytes() == left_alone.lora.read_bytes()
    told = [event["step"] for event in killed.folder.events() if event["type"] == "step"]
    assert set(told) == set(range(1, STEPS + 1))
    assert len(told) >= STEPS


def test_kills_of_scheduler_and_worker_lose_nothing(tmp_path, demo_folder):
    """The command that does it ten times each, twice each."""
    result = kill_jobs.measure(times=2, steps=STEPS, seed=random.randrange(10**6), folder=tmp_path)
    for name in ("scheduler", "worker"):
        assert result[name]["identical"], result
        assert result[name]["events_whole"], result
    assert (result["scheduler"]["attempts"], result["scheduler"]["workers"]) == (1, 1), result
    assert result["worker"]["attempts"] == 3, result


def test_a_paused_run_is_bit_identical_and_repeats_no_step(store, tmp_path):
    left_alone = ended(store, store.submit(request_into(tmp_path / "alone")))
    paused = store.submit(request_into(tmp_path / "paused"))
    while not any(event["type"] == "step" for event in paused.folder.events()):
        time.sleep(0.01)
    store.pause(paused.id)
    assert ended(store, paused).state.state == "paused"
    store.resume(paused.id)
    paused = ended(store, paused)
    assert paused.state.state == "completed"
    assert paused.lora.read_bytes() == left_alone.lora.read_bytes()
    assert [e["step"] for e in paused.folder.events() if e["type"] == "step"] == list(range(1, STEPS + 1))
