"""The queue: order and settings that survive a restart, clones, deleting with and without the LoRA."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from tests.support.job_parts import at_step, command, in_state, steps_taken, wait_for
from training.errors import ConfigError, JobError, JobNotFound, JobOfOtherVersion
from training.jobs import JobQueue, JobRepository, Scheduler


@pytest.fixture
def four(store, request_for):
    """Four queued jobs, in the order they came; their letters and ids."""
    return {letter: store.submit(request_for(letter, phrase=f"thing {letter}")).id for letter in "abcd"}


def letters(store: JobRepository) -> str:
    return "".join(job.name for job in JobQueue(store).jobs())


@pytest.mark.parametrize(
    ("letter", "to", "order"),
    [
        ("c", "up", "acbd"),
        ("a", "up", "abcd"),
        ("b", "down", "acbd"),
        ("d", "down", "abcd"),
        ("d", "first", "dabc"),
        ("a", "last", "bcda"),
        ("d", 2, "adbc"),
        ("a", 3, "bcad"),
        ("b", 999, "acdb"),
    ],
)
def test_a_job_is_moved_and_the_order_survives_a_restart(store, four, letter, to, order):
    assert letters(store) == "abcd"
    ids = JobQueue(store).move(four[letter], to)
    assert ids == [four[name] for name in order]
    assert letters(JobRepository(store.root)) == order


@pytest.mark.parametrize("to", ["sideways", 0, -1, True, 1.5, None, ["up"]])
def test_places_that_are_none_change_nothing(store, four, to):
    with pytest.raises(JobError, match="is no place in the queue: use first, up, down, last or a number"):
        JobQueue(store).move(four["a"], to)
    assert letters(store) == "abcd"


def test_moves_add_up_and_new_jobs_come_last(store, four, request_for):
    JobQueue(store).move(four["d"], "first")
    JobQueue(store).move(four["a"], "last")
    store.submit(request_for("e", phrase="thing e"))
    assert letters(store) == "dbcae"
    # One that was taken out and comes back has lost its place.
    store.pause(four["d"])
    assert letters(store) == "bcae"
    store.resume(four["d"])
    assert letters(store) == "bcaed"
    with pytest.raises(JobError, match="The job is cancelled: only a queued job has a place"):
        JobQueue(store).move(store.cancel(four["b"]).id, "up")


def test_jobs_start_in_the_order_given(store, four):
    JobQueue(store).move(four["d"], "first")
    scheduler = Scheduler(store, command=command)
    scheduler.start()
    try:
        done = [wait_for(store, store.get(four[letter]), in_state("completed")) for letter in "dabc"]
    finally:
        scheduler.close()
    began = [next(e["time"] for e in job.folder.events() if e.get("state") == "running") for job in done]
    assert began == sorted(began)


def test_slots_survive_a_restart_and_hold_the_queue(store, scheduler, request_for):
    assert JobQueue(store).settings().slots == 1
    JobQueue(store).configure(slots=0)
    first, second = (store.submit(request_for(name, " at 0.05", name, steps=200)) for name in ("one", "two"))
    time.sleep(1.5)
    assert {job.state.state for job in store.list()} == {"queued"}
    JobQueue(store).configure(slots=2)
    assert JobQueue(JobRepository(store.root)).settings().slots == 2
    for job in (first, second):
        wait_for(store, job, at_step(1))
    assert [store.get(job.id).state.state for job in (first, second)] == ["running", "running"]
    for job in (first, second):
        store.cancel(job.id)


@pytest.mark.parametrize("slots", [-1, 17, 1.5, "2", True])
def test_slots_out_of_range_are_refused(store, slots):
    with pytest.raises(JobError, match="number of slots must be a whole number from 0 to 16"):
        JobQueue(store).configure(slots=slots)
    assert JobQueue(store).settings().slots == 1


def test_a_broken_queue_file_is_put_aside_and_a_newer_one_is_kept(store, four):
    file = store.root / "queue.json"
    file.write_text('{"slots": 7, "or')
    assert JobQueue(store).settings().slots == 1
    assert letters(store) == "abcd"
    JobQueue(store).move(four["b"], "first")
    assert letters(store) == "bacd"
    assert (store.root / "queue.json.broken").read_text() == '{"slots": 7, "or'
    file.write_text('{"version": 99, "slots": {"gpu": 1}}')
    with pytest.raises(JobOfOtherVersion, match="newer version of this pack: update"):
        JobQueue(store).configure(slots=2)
    assert json.loads(file.read_text())["version"] == 99
    assert letters(store) == "abcd"


def test_train_again_takes_the_next_seed_and_a_free_name(store, scheduler, request_for):
    first = wait_for(store, store.submit(request_for(seed=5)), in_state("completed"))
    again = store.clone(first.id)
    assert (again.name, again.request["config"]["seed"], again.parent) == ("erase-car-2", 6, first.id)
    third = store.clone(first.id)
    assert (third.name, third.request["config"]["seed"]) == ("erase-car-3", 7)
    assert store.clone(again.id).request["config"]["seed"] == 8
    assert steps_taken(wait_for(store, again, in_state("completed"))) == [1, 2, 3, 4, 5]
    assert again.to_dict()["parent"] == first.id
    assert store.get(first.id).parent is None


def test_a_clone_with_other_settings(store, request_for):
    first = store.submit(request_for(seed=5))
    more = store.clone(first.id, {"steps": 9, "rank": 16})
    assert (more.request["config"]["steps"], more.request["config"]["seed"], more.state.total) == (9, 5, 9)
    assert {**more.request, "config": 0, "name": 0} == {**first.request, "config": 0, "name": 0}
    assert store.clone(first.id, {"steps": 9, "rank": 16}).id == more.id  # the same request is the same job
    assert store.clone(first.id, {"steps": 10}, "my own").name == "my own"
    for settings, name, sentence in (
        ({"stepz": 1}, "", "Unknown training setting stepz"),
        ({"steps": 0}, "", "must lie between"),
        ({"rank": "8"}, "", "must be of type int"),
        ({}, "../up", "cannot be a LoRA's name"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            store.clone(first.id, settings, name)
    assert len(store.list()) == 3


def test_a_lora_goes_only_with_an_explicit_word(store, scheduler, request_for):
    one, two = (wait_for(store, store.submit(request_for(n, phrase=n)), in_state("completed")) for n in ("one", "two"))
    assert one.to_dict()["lora_exists"]
    assert store.delete(one.id) == {"deleted": one.id, "lora": "one.safetensors", "lora_deleted": False}
    assert one.lora.exists()
    assert store.delete(two.id, lora=True) == {"deleted": two.id, "lora": "two.safetensors", "lora_deleted": True}
    assert not two.lora.exists()
    assert store.list() == []
    none = store.submit(request_for("three", phrase="three", manner=" missing at 1"))
    wait_for(store, none, in_state("failed"))
    assert store.delete(none.id, lora=True) == {"deleted": none.id, "lora": None, "lora_deleted": False}


def test_a_lora_of_somebody_else_is_never_deleted(store, scheduler, request_for):
    job = wait_for(store, store.submit(request_for()), in_state("completed"))
    job.lora.unlink()
    job.lora.write_text("somebody else's")
    with pytest.raises(JobError, match="has been replaced since this job wrote it"):
        store.delete(job.id, lora=True)
    assert job.lora.read_text() == "somebody else's"
    assert store.get(job.id).state.state == "completed"
    assert store.delete(job.id)["lora_deleted"] is False


def test_broken_jobs_are_told_of_and_can_be_deleted(store, four):
    folders = {letter: store.root / job_id for letter, job_id in four.items()}
    (folders["a"] / "state.json").write_text("{")
    (folders["b"] / "job.json").write_text(json.dumps({"version": 99, "request": 0}))
    os.unlink(folders["c"] / "state.json")
    fresh = JobRepository(store.root)
    assert [job.id for job in fresh.list()] == [four["d"]]
    problems = fresh.problems()
    assert set(problems) == {four["a"], four["b"], four["c"]}
    assert "delete the job and queue it again" in problems[four["a"]]
    assert "update the pack" in problems[four["b"]]
    for letter in "ac":
        fresh.delete(four[letter])
        assert not folders[letter].exists()
    with pytest.raises(JobOfOtherVersion, match="update the pack"):
        fresh.delete(four["b"])
    assert (folders["b"] / "job.json").exists()
    shutil.rmtree(folders["b"])
    with pytest.raises(JobNotFound, match="There is no job"):
        fresh.delete(four["b"])
