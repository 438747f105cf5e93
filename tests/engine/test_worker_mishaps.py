"""The real worker where the disk lets it down: one sentence, nothing overwritten, other jobs unaffected."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support.job_parts import ended
from training.concepts import Concept
from training.errors import JobError
from training.jobs import JobFolder
from training.jobs.processes import worker_command
from training.models.source import demo_source
from training.request import ErasureRequest
from training.settings import ErasureConfig


def request_into(folder: Path, name: str = "erase-car", **settings: int) -> ErasureRequest:
    concept = Concept("car", irrelevant=("house", "tree", "apple"), preserve=("a photo of a house",))
    small = {"steps": 5, "rank": 4, "erase_prompts": 2, "sampling_steps": 2, "sample_every": 0, "checkpoint_every": 1}
    config = ErasureConfig(**{**small, **settings})
    return ErasureRequest(demo_source("fp32"), concept, config, name, str(folder), "cpu")


def test_a_full_disk_keeps_the_last_checkpoint(small_disk, tmp_path, demo_folder):
    with small_disk("20m") as disk:
        record = {"request": request_into(tmp_path / "loras", steps=400).to_dict()}
        folder = JobFolder.create(disk / "job", record)
        with folder.locked():
            folder.change("starting")
        worker = psutil.Popen(worker_command(folder.path))
        while not any(event["type"] == "checkpoint" for event in folder.events()):  # there is one to keep
            time.sleep(0.02)
        with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)
        assert worker.wait(300) == 1
        state = folder.state()
        assert state.state == "failed"
        assert "free some" in state.message
        assert str(disk) not in state.message
        kept = sorted(path.name for path in (disk / "job" / "checkpoints").glob("step-*"))
        assert kept
        # Room again: it goes on, and stops within a step when asked to.
        (disk / "ballast").unlink()
        with folder.locked():
            folder.change("queued")
        before = max(event.get("step", 0) for event in folder.events() if event["type"] == "checkpoint")
        again = psutil.Popen(worker_command(folder.path))
        while not (steps := [e["step"] for e in folder.events(since=state.events) if e["type"] == "step"]):
            assert again.poll() is None, folder.log_file.read_text()
            time.sleep(0.02)
        assert steps[0] == before + 1
        folder.ask_to_stop("pause")
        assert again.wait(300) == 0


def test_a_loras_folder_that_becomes_read_only(small_disk, store, tmp_path):
    with small_disk("220m") as disk:
        job = store.submit(request_into(disk))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        failed = ended(store, job)
        assert failed.state.state == "failed"
        assert failed.state.message == (
            "The LoRA erase-car.safetensors cannot be written: check the folder's permissions (Read-only file system)."
        )
        with pytest.raises(JobError, match="cannot be written: change its permissions"):
            store.submit(request_into(disk, "another"))
        other = ended(store, store.submit(request_into(tmp_path / "loras", "another")))
        assert other.state.state == "completed", other.folder.log_file.read_text()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        done = ended(store, store.resume(job.id))
        assert done.state.state == "completed"
        assert [e["step"] for e in done.folder.events() if e["type"] == "step"] == [1, 2, 3, 4, 5]  # none again
