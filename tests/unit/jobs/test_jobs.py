"""Jobs on disk, the scheduler and its worker processes; the training inside only counts (tiny_worker.py)."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from tests.support.job_parts import at_step, command, in_state, steps_taken, wait_for
from training.errors import ConfigError, JobError, JobNotFound, JobOfOtherVersion, JobUnreadable
from training.jobs import JobFolder, JobQueue, JobRepository, Scheduler
from training.jobs import folder as folder_module
from training.jobs.folder import append_line
from training.request import ErasureRequest


def test_a_job_is_trained_to_its_end(store, scheduler, request_for):
    job = store.submit(request_for())
    assert job.state.state == "queued"
    job = wait_for(store, job, in_state("completed", "failed"))
    assert job.state.state == "completed", job.state.message
    assert steps_taken(job) == [1, 2, 3, 4, 5]
    assert (job.state.step, job.state.total) == (5, 5)
    result = json.loads(job.folder.result_file.read_text())
    assert result == {"lora": "erase-car.safetensors", "sha256": hashlib.sha256(job.lora.read_bytes()).hexdigest()}
    # the state is written before it is told
    wait_for(store, job, lambda job: any(event.get("state") == "completed" for event in job.folder.events()))
    events = job.folder.events()
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    states = [event["state"] for event in events if event["type"] == "state"]
    assert states == ["starting", "running", "completed"]
    assert ErasureRequest.from_dict(job.request) == request_for()


def test_one_at_a_time_in_the_order_they_came(store, scheduler, request_for):
    jobs = [store.submit(request_for(f"lora-{i}", " at 0.05", phrase=f"thing {i}")) for i in range(3)]
    most = 0
    while store.get(jobs[-1].id).state.state != "completed":
        states = [store.get(job.id).state.state for job in jobs]
        most = max(most, sum(state in ("starting", "running") for state in states))
        assert states == sorted(states, key=("completed", "running", "starting", "queued").index)
        time.sleep(0.01)
    assert most == 1


def test_the_same_request_twice_is_one_job(store, scheduler, request_for):
    first = store.submit(request_for(manner=" at 0.02"))
    assert store.submit(request_for(manner=" at 0.02")).id == first.id
    wait_for(store, first, in_state("completed"))
    again = store.submit(request_for(manner=" at 0.02"))
    assert (again.id, again.state.state, len(store.list())) == (first.id, "completed", 1)
    again.lora.unlink()
    again = store.submit(request_for(manner=" at 0.02"))
    assert (again.id, again.state.state) == (first.id, "queued")
    assert steps_taken(wait_for(store, again, in_state("completed"))) == [1, 2, 3, 4, 5]


def test_two_jobs_never_write_one_lora(store, request_for):
    store.submit(request_for(seed=0))
    with pytest.raises(JobError, match='already writes the LoRA "erase-car": choose another name'):
        store.submit(request_for(seed=1))
    if os.path.normcase("A") == "A":
        with pytest.raises(JobError, match="choose another name"):  # one file on Windows and macOS
            store.submit(request_for("Erase-Car", seed=1))
    assert len(store.list()) == 1


def test_a_lora_that_exists_is_never_overwritten(store, request_for, tmp_path):
    (tmp_path / "loras").mkdir()
    precious = tmp_path / "loras" / "erase-car.safetensors"
    precious.write_text("mine")
    with pytest.raises(JobError, match="exists already"):
        store.submit(request_for())
    assert precious.read_text() == "mine"
    assert store.list() == []


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a\\b", "/etc/x", "con", "x\0y", "."])
def test_names_with_path_parts_are_refused(store, request_for, name):
    with pytest.raises(ConfigError, match="cannot be a LoRA's name"):
        store.submit(request_for(name))
    assert store.list() == []


def test_a_nearly_full_disk_is_refused(store, request_for, monkeypatch):
    usage = shutil.disk_usage(store.root.parent)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage._replace(free=5 * 1024**2))
    with pytest.raises(JobError, match="only 5 MB free: make at least 200 MB free"):
        store.submit(request_for())
    monkeypatch.undo()
    assert store.list() == []
    assert store.submit(request_for()).state.state == "queued"


def test_a_slow_step_hides_none_before_it(store, scheduler, request_for):
    job = store.submit(request_for(manner=" stuck at 5"))
    wait_for(store, job, at_step(4), seconds=30)  # within a second, in which state.json is not written twice
    store.cancel(job.id)


def test_stop_takes_effect_within_one_step(store, scheduler, request_for):
    job = store.submit(request_for(manner=" at 0.20", steps=1000))
    wait_for(store, job, at_step(2))
    store.cancel(job.id)
    job = wait_for(store, job, in_state("cancelled"))
    asked = job.folder.stop_file.stat().st_mtime
    assert sum(event["type"] == "step" and event["time"] > asked for event in job.folder.events()) <= 1
    assert job.state.message == f"Cancelled at step {job.state.step}."


def test_pause_and_resume_lose_no_step(store, scheduler, request_for):
    job = store.submit(request_for(manner=" at 0.05", steps=30))
    wait_for(store, job, at_step(3))
    assert store.pause(job.id).stopping == "pause"
    paused = wait_for(store, job, in_state("paused"))
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(paused.state.pid).wait(60)  # its memory is free: the process is gone
    assert 3 <= paused.state.step < 30
    store.resume(job.id)
    done = wait_for(store, job, in_state("completed"))
    assert steps_taken(done) == list(range(1, 31))
    assert done.state.attempt == 2


def test_a_queued_job_can_be_paused_and_cancelled(store, request_for):
    job = store.submit(request_for())
    assert store.pause(job.id).state.state == "paused"
    assert store.cancel(job.id).state.state == "cancelled"
    with pytest.raises(JobError, match="cancelled already"):
        store.cancel(job.id)
    assert store.submit(request_for()).state.state == "queued"


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_wish_reaches_a_job_that_is_started_at_that_moment(store, request_for, wish):
    job = store.submit(request_for())
    with job.folder.locked():  # as the scheduler holds it while it starts a worker
        asking = threading.Thread(target=getattr(store, wish), args=(job.id,))
        asking.start()
        time.sleep(0.3)
        job.folder.change("starting", "Starting the worker.")
    asking.join()
    assert store.get(job.id).stopping == wish


def test_a_killed_worker_is_noticed_and_resumed(store, scheduler, request_for):
    job = store.submit(request_for(manner=" at 0.05", steps=30))
    pid = wait_for(store, job, at_step(4)).state.pid
    os.kill(pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    gone = wait_for(store, job, in_state("interrupted"))
    assert "resume the job" in gone.state.message
    assert not gone.lora.exists()
    store.resume(job.id)
    assert steps_taken(wait_for(store, job, in_state("completed"))) == list(range(1, 31))
    numbers = [event["n"] for event in store.get(job.id).folder.events()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_worker_outlives_its_scheduler_and_is_adopted(store, request_for):
    first = Scheduler(store, command=command)
    first.start()
    job = store.submit(request_for(manner=" at 0.10", steps=20))
    pid = wait_for(store, job, at_step(2)).state.pid
    first.close()
    heard: list[tuple[str, dict]] = []
    second = Scheduler(store, command=command, listener=lambda job_id, event: heard.append((job_id, event)))
    second.start()
    try:
        wait_for(store, job, at_step(6))
        assert store.get(job.id).state.pid == pid
        done = wait_for(store, job, in_state("completed"))
        assert steps_taken(done) == list(range(1, 21))
        assert done.state.attempt == 1
        deadline = time.monotonic() + 5
        while not any(event.get("state") == "completed" for _, event in heard) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        second.close()
    numbers = [event["n"] for _, event in heard]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # nothing twice, nothing left out
    assert heard[-1][1]["state"] == "completed"
    assert {job_id for job_id, _ in heard} == {job.id}


def test_the_listener_hears_of_jobs_that_come_go_and_change_their_order(store, request_for):
    heard: list[str] = []
    scheduler = Scheduler(store, slots=0, command=command, listener=lambda job_id, event: heard.append(event["type"]))

    def told() -> list[str]:
        heard.clear()
        scheduler.tick()
        return [kind for kind in heard if kind == "list"]

    first = store.submit(request_for("one"))
    assert told() == []  # whoever connects asks for the list anyway
    second = store.submit(request_for("two"))
    assert told() == ["list"]
    assert told() == []
    JobQueue(store).move(second.id, "up")
    assert told() == ["list"]
    store.cancel(first.id)
    store.delete(first.id)
    assert told() == ["list"]
    scheduler.close()


def test_two_servers_do_not_train_one_job_twice(store, scheduler, request_for):
    other_store = JobRepository(store.root)
    other = Scheduler(other_store, command=command)
    other.start()
    try:
        job = store.submit(request_for(manner=" at 0.02", steps=20))
        done = wait_for(other_store, job, in_state("completed"))
    finally:
        other.close()
    assert [event["state"] for event in done.folder.events() if event["type"] == "state"].count("starting") == 1
    assert steps_taken(done) == list(range(1, 21))


def test_a_second_worker_on_the_same_job_leaves_it_alone(store, scheduler, request_for):
    job = store.submit(request_for(manner=" at 0.05", steps=20))
    running = wait_for(store, job, at_step(2))
    second = psutil.Popen(command(running.folder.path))
    done = wait_for(store, job, in_state("completed"))
    assert second.wait(300) == 3
    assert steps_taken(done) == list(range(1, 21))


def test_a_worker_that_does_not_listen_is_ended(store, scheduler, request_for):
    job = store.submit(request_for(manner=" deaf at 0.10", steps=10000))
    wait_for(store, job, at_step(2))
    store.cancel(job.id)
    job = wait_for(store, job, in_state("cancelled"))
    assert "had to be ended" in job.state.message


@pytest.mark.parametrize(
    ("manner", "sentence"),
    [
        (" full at 3", "No disk space is left at step 2: free some and resume"),
        (" missing at 3", "The file is missing: put it back."),
        (" bug at 3", "The job failed at step 2 (ZeroDivisionError: division by zero): its log.txt says where."),
    ],
)
def test_a_failure_is_one_sentence_and_keeps_the_checkpoint(store, scheduler, request_for, manner, sentence):
    job = wait_for(store, store.submit(request_for(manner=manner)), in_state("failed"))
    assert job.state.message.startswith(sentence)
    assert "\n" not in job.state.message
    assert json.loads((job.folder.path / "checkpoints" / "count.json").read_text()) == [1, 2]
    assert "Traceback" in job.folder.log_file.read_text()
    assert store.submit(request_for("erase-dog", phrase="dog")).state.state == "queued"  # others are not affected


def test_a_full_disk_keeps_state_and_checkpoint(small_disk, request_for):
    """A real small disk that is filled up while a job trains on it."""
    with small_disk("1m") as disk:
        folder = JobFolder.create(disk / "job", {"request": request_for(manner=" at 0.05", steps=100).to_dict()})
        with folder.locked():
            folder.change("starting")
        worker = psutil.Popen(command(folder.path))
        while not any(event.get("step", 0) >= 3 for event in folder.events()):
            time.sleep(0.02)
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(b"x" * 4096)
        assert worker.wait(300) == 1
        state = folder.state()
        assert state.state == "failed"
        assert "disk space" in state.message
        (disk / "ballast").unlink()
        kept = json.loads((folder.path / "checkpoints" / "count.json").read_text())
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= 3


def test_resuming_never_overwrites_a_later_lora(store, scheduler, request_for):
    first = store.submit(request_for(manner=" at 0.20", steps=1000))
    wait_for(store, first, at_step(1))
    store.cancel(first.id)
    wait_for(store, first, in_state("cancelled"))
    second = wait_for(store, store.submit(request_for(steps=3)), in_state("completed"))
    with pytest.raises(JobError, match="has written the LoRA"):
        store.resume(first.id)
    assert steps_taken(second) == [1, 2, 3]


def test_delete_removes_the_folder_and_keeps_the_lora(store, scheduler, request_for):
    job = store.submit(request_for(manner=" at 0.05", steps=20))
    wait_for(store, job, at_step(2))
    with pytest.raises(JobError, match="cancel it before deleting"):
        store.delete(job.id)
    job = wait_for(store, job, in_state("completed"))
    store.delete(job.id)
    assert store.list() == []
    assert job.lora.exists()
    with pytest.raises(JobNotFound, match="There is no job"):
        store.get(job.id)


@pytest.mark.parametrize("job_id", ["", "..", "../jobs", "/etc", "x", "20260101-000000-a/../b", "20260101-000000-a\0"])
def test_ids_that_are_no_ids_are_refused(store, request_for, job_id):
    store.submit(request_for())
    with pytest.raises(JobNotFound, match="There is no job"):
        store.get(job_id)


def test_broken_folders_do_not_disturb_the_others(store, request_for):
    good, torn, future = (store.submit(request_for(f"l{i}", phrase=f"thing {i}")) for i in range(3))
    torn.folder.state_file.write_text('{"state": "que')
    future.folder.job_file.write_text(json.dumps({"version": 99, "request": {"later": True}}))
    fresh = JobRepository(store.root)
    assert [job.id for job in fresh.list()] == [good.id]
    with pytest.raises(JobOfOtherVersion, match="another version"):
        fresh.get(future.id)
    with pytest.raises(JobUnreadable, match="no readable state"):
        fresh.get(torn.id)
    assert torn.folder.state_file.read_text() == '{"state": "que'


def test_a_line_cut_short_is_skipped_and_numbers_go_on(store, request_for):
    folder = store.submit(request_for()).folder
    with folder.locked():
        for step in (1, 2):
            folder.append({"type": "step", "step": step})
    with folder.events_file.open("ab") as file:
        file.write(b'{"n":3,"type":"st')
    with folder.locked():
        folder.append({"type": "step", "step": 3})
    assert [(event["n"], event["step"]) for event in folder.events()] == [(1, 1), (2, 2), (3, 3)]
    assert [event["n"] for event in folder.events(since=2)] == [3]


def test_a_log_that_lost_its_end_gives_no_number_twice(store, request_for):
    folder = store.submit(request_for()).folder
    with folder.locked():
        for step in range(1, 21):
            folder.append({"type": "step", "step": step})
        folder.write_state(folder.state())
    data = folder.events_file.read_bytes()
    folder.events_file.write_bytes(data[: len(data) // 2])
    with folder.locked():
        folder.append({"type": "step", "step": 21})
    events = folder.events()
    numbers = [event["n"] for event in events]
    assert numbers == sorted(set(numbers))
    assert events[-2]["type"] == "notice"
    assert f"lost events {numbers[-3] + 1} to 20" in events[-2]["message"]
    assert events[-1]["step"] == 21
    assert [event["n"] for event in folder.events(since=20)] == numbers[-2:]  # who has heard up to 20 misses nothing


def test_ten_thousand_events_are_replayed_from_any_number(store, request_for):
    folder = store.submit(request_for()).folder
    with folder.events_file.open("w") as file:
        losses = {"esd": 0.123456, "attn": 0.5, "lora": 0.01, "rsc": 0.2}
        for n in range(1, 10_001):
            file.write(json.dumps({"n": n, "time": 1.5e9, "type": "step", "step": n, "losses": losses}) + "\n")
    assert [event["n"] for event in folder.events(since=5000)] == list(range(5001, 10_001))


def test_readers_never_see_half_a_state(store, request_for):
    folder = store.submit(request_for()).folder
    over = threading.Event()
    seen: set[int] = set()
    problems: list[JobError] = []

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(folder.state().step)
            except JobError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    state = folder.state()
    for step in range(300):
        folder.write_state(dataclasses.replace(state, step=step))
    over.set()
    reader.join()
    assert not problems
    assert len(seen) > 5


def test_append_closes_a_torn_line(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n"')
    append_line(path, {"n": 2})
    assert path.read_bytes().splitlines() == [b'{"n": 1}', b'{"n"', b'{"n":2}']


def test_a_job_tells_no_path(store, request_for, tmp_path):
    told = store.submit(request_for()).to_dict()
    assert told["concept"] == "car"
    assert str(tmp_path) not in json.dumps(told)
    assert SimpleNamespace(**told).state == "queued"
