"""Waiting for memory: what the queue says, who may pass, what the host is asked."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.support.job_parts import in_state, wait_for
from training.jobs import JobQueue
from training.jobs.admission import Admission
from training.memory import estimate_memory, memory_plans

TOO_MUCH = {"batch_erase": 256, "batch_preserve": 256, "resolution": 4096}  # about 2 TB


@pytest.fixture
def huge(request_for):
    """A request that fits into no computer; its worker only counts."""
    request = request_for("huge", phrase="huge")
    return replace(request, config=replace(request.config, **TOO_MUCH))


def test_a_job_that_does_not_fit_waits_and_lets_others_pass(store, scheduler, huge, request_for, demo_folder):
    JobQueue(store).configure(wait_for_memory=True)
    waiting = wait_for(store, store.submit(huge), lambda job: job.state.message)
    assert waiting.state.state == "queued"
    assert waiting.state.message.startswith("Waiting: ")
    assert "GB of memory are missing" in waiting.state.message
    assert re.search(
        r"train with batch_erase \d+, batch_preserve \d+, resolution \d+\.$",  # checkpointing is taken by itself
        waiting.state.message,
    )
    waiting = wait_for(store, waiting, lambda job: job.folder.events())  # told after it was written
    assert waiting.folder.events()[0]["message"].startswith("Waiting: ")
    wait_for(store, store.submit(request_for("small", phrase="small")), in_state("completed"))
    assert store.get(waiting.id).state.state == "queued"
    JobQueue(store).configure(wait_for_memory=False)
    assert wait_for(store, waiting, in_state("completed")).state.message == ""


def test_the_host_is_asked_once_and_the_job_starts_when_there_is_room(store, request_for, demo_folder):
    job = store.submit(request_for())
    need = estimate_memory(request_for()).need
    free, asked = [0], []
    admission = Admission(lambda job: asked.append(job.id), lambda device: free[0])
    sentence = admission.why_wait(job, [])
    assert "GB of memory are missing" in sentence
    free[0] = need
    assert admission.why_wait(job, []) == ""
    assert asked == [job.id]
    # Another one that has not taken its memory yet counts as if it had.
    other = store.submit(request_for("other", phrase="other"))
    assert admission.why_wait(other, [job]) != ""
    loaded = replace(job, state=replace(job.state, phase="train"))
    assert admission.why_wait(other, [loaded]) == ""
    assert asked == [job.id, other.id]
    admission.started(job.id)
    free[0] = 0
    assert admission.why_wait(job, [], check=False) == ""
    assert asked == [job.id, other.id, job.id]


def test_a_model_that_is_gone_is_the_workers_business(store, request_for, tmp_path, demo_folder):
    request = request_for()
    job = store.submit(request)
    gone = replace(job, request={**job.request, "source": {**job.request["source"], "folder": str(tmp_path)}})
    assert Admission(None, lambda device: 0).why_wait(gone, []) == ""


def test_the_host_gets_time_to_make_room_for_the_fastest_way(store, request_for, demo_folder, monkeypatch):
    large = request_for("large", phrase="large")
    large = replace(large, config=replace(large.config, batch_erase=32, batch_preserve=32))
    plain, checkpointed = memory_plans(large)
    assert checkpointed.need < plain.need
    job = store.submit(large)
    admission = Admission(None, lambda device: checkpointed.need)
    assert admission.why_wait(job, []).endswith("or train with gradient_checkpointing on.")
    monkeypatch.setattr("training.jobs.admission.PATIENCE_SECONDS", 0)
    assert admission.why_wait(job, []) == ""
