"""What the tests of jobs share: a worker that only counts, and waiting for what it does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from training.concepts import Concept
from training.jobs import Job, JobRepository
from training.models.source import demo_source
from training.request import ErasureRequest
from training.settings import ErasureConfig

TINY_WORKER = Path(__file__).parents[1] / "unit" / "jobs" / "tiny_worker.py"


def command(job: Path) -> list[str]:
    """Runs the counting worker."""
    return [sys.executable, str(TINY_WORKER), str(job)]


def counting_request(
    loras: Path, name: str = "erase-car", manner: str = "", phrase: str = "car", steps: int = 5, seed: int = 0
) -> ErasureRequest:
    """A request that the counting worker understands; see there for `manner`."""
    concept = Concept(phrase, "custom", "{}" + manner, irrelevant=("house",), preserve=("a house",))
    return ErasureRequest(demo_source(), concept, ErasureConfig(steps=steps, seed=seed), name, str(loras), "cpu")


def wait_for(store: JobRepository, job: Job, test: Callable[[Job], bool], seconds: float = 300) -> Job:
    """The job as soon as `test` is true of it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = store.get(job.id)
        if test(now):
            return now
        time.sleep(0.02)
    raise AssertionError(f"{now.state}\n{now.folder.log_file.read_text() if now.folder.log_file.exists() else ''}")


def ended(store: JobRepository, job: Job) -> Job:
    """The job as soon as nothing more will happen to it by itself."""
    return wait_for(store, job, lambda now: now.state.state not in ("queued", "starting", "running"), seconds=1800)


def in_state(*states: str) -> Callable[[Job], bool]:
    """For wait_for()."""
    return lambda job: job.state.state in states


def at_step(step: int) -> Callable[[Job], bool]:
    """For wait_for()."""
    return lambda job: any(event.get("step", 0) >= step for event in job.folder.events())


def steps_taken(job: Job) -> list[int]:
    """What the counting worker's "LoRA" holds."""
    return json.loads(job.lora.read_text())
