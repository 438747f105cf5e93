"""A list of concepts on a real Ray of two CPU workers, one of which is killed midway."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from training.jobs import Job, JobQueue, JobRepository
from training.lora.format import read_lora

STEPS = 10
LIST = f"""phrase,name,steps,checkpoint_every,erase_prompts,preserve_prompts,sample_every
car,no-cars,{STEPS},1,2,2,0
penguin,no-penguins,{STEPS},1,2,2,0
"""
PATIENCE = 600  # seconds: a busy machine is no failure


def fleet(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "training.jobs.fleet", *map(str, arguments)]


def steps_of(job: Job) -> list[int]:
    return [event["step"] for event in job.folder.events() if event["type"] == "step"]


def test_a_killed_worker_of_a_cluster_loses_nothing(tmp_path: Path, demo_folder: Path) -> None:
    concepts, jobs = tmp_path / "concepts.csv", tmp_path / "jobs"
    concepts.write_text(LIST, encoding="utf-8")
    submit = fleet("submit", concepts, "--source", demo_folder, "--jobs", jobs, "--device", "cpu")
    subprocess.run(submit, check=True, timeout=PATIENCE)
    store = JobRepository(jobs)
    assert len(JobQueue(store).jobs()) == 2

    with psutil.Popen(fleet("work", "--jobs", jobs, "--ray", "--slots", 2), stdout=subprocess.PIPE, text=True) as work:
        deadline = time.monotonic() + PATIENCE
        while not (running := [job for job in store.list() if job.state.state == "running" and len(steps_of(job)) > 1]):
            assert work.poll() is None and time.monotonic() < deadline, [job.state for job in store.list()]
            time.sleep(0.1)
        victim = min(running, key=lambda job: len(steps_of(job)))
        psutil.Process(victim.state.pid).kill()
        told, _ = work.communicate(timeout=PATIENCE)
    assert work.returncode == 0, told
    assert told.count("completed") == 2

    for job in store.list():
        assert job.state.state == "completed"
        assert job.state.attempt == (2 if job.id == victim.id else 1)
        assert set(steps_of(job)) == set(range(1, STEPS + 1))
        assert read_lora(job.lora)[0]
        assert steps_of(job).count(1) == 1  # it went on from a checkpoint, not from the start

    # The same command again finds nothing to do, and the same list nothing to queue.
    subprocess.run(submit, check=True, timeout=PATIENCE)
    assert JobQueue(store).jobs() == []
