"""Training in the background of a real server: the queue stays free, nothing is lost, errors are one sentence."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import psutil
import pytest
from safetensors import safe_open

from scripts.host import Host, HostError

JOBS = "/erase_anything/v1/jobs"
PATIENCE = 1800  # seconds; only a hanging test needs them


def stock_graph() -> dict[str, Any]:
    """A prompt of stock nodes alone."""
    return {
        "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
        "save": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
    }


def submit(host: Host, graph: dict[str, Any]) -> dict[str, Any]:
    """Runs a graph with a Train node; the job."""
    return job_of(host, host.run(graph)["outputs"]["train"]["job"][0])


def job_of(host: Host, job_id: str) -> dict[str, Any]:
    return host.get(f"{JOBS}/{job_id}")


def wait_for(
    host: Host, job_id: str, test: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE
) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = job_of(host, job_id)
        if test(job):
            return job
        if job["state"] in ("failed", "interrupted") and not test(job):
            break
        time.sleep(0.1)
    raise AssertionError(f"{job}\n{host.get(f'{JOBS}/{job_id}/log')['log']}\n{host.log_tail()}")


def ended(job: dict[str, Any]) -> bool:
    return job["state"] not in ("queued", "starting", "running")


def steps_told(host: Host, job_id: str) -> list[int]:
    return [e["step"] for e in host.get(f"{JOBS}/{job_id}/events")["events"] if e["type"] == "step"]


def test_one_graph_trains_waits_and_uses_its_lora(host, erase_graph):
    graph = erase_graph("car", "one-graph")
    history = host.run(graph)
    assert history["outputs"]["show"]["text"] == ["one-graph.safetensors"]
    words = history["outputs"]["concept"]["concept"][0]
    assert words["phrase"] == "car"
    assert words["irrelevant"] == ["house", "tree", "apple"]
    job = job_of(host, history["outputs"]["train"]["job"][0])
    assert (job["state"], job["step"], job["total"], job["error"]) == ("completed", 4, 4, None)
    assert job["lora"] == "one-graph.safetensors"
    path = host.base / "models" / "loras" / "one-graph.safetensors"
    with safe_open(path, "pt") as file:
        assert all(key.startswith("transformer.transformer_blocks.") for key in file.keys())  # noqa: SIM118
    # The stock loader's list has it without a restart.
    assert (
        "one-graph.safetensors"
        in host.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    )
    # Samples can be looked at by the name their event gives.
    assert {sample["step"] for sample in job["samples"]} == {0, 2, 4}
    status, picture = host.request("GET", f"{JOBS}/{job['id']}/{job['samples'][0]['file']}")
    assert status == 200
    assert picture.startswith(b"\x89PNG")
    # The same graph again is the same job, and ends at once.
    assert host.run(erase_graph("car", "one-graph"))["status"]["completed"]
    assert job_of(host, job["id"])["attempt"] == 1
    assert sum(known["name"] == "one-graph" for known in host.get(JOBS)["jobs"]) == 1


def test_a_stock_prompt_runs_while_a_job_trains_and_stop_takes_one_step(host, erase_graph):
    job = submit(host, erase_graph("dog", "long-run", wait=False, steps=5000, sample_every=0))
    wait_for(host, job["id"], lambda job: job["step"] >= 2)
    before = steps_told(host, job["id"])[-1]
    assert host.run(stock_graph())["status"]["completed"]
    assert job_of(host, job["id"])["state"] == "running"
    while steps_told(host, job["id"])[-1] == before:  # it really went on meanwhile
        time.sleep(0.05)
    host.post(f"{JOBS}/{job['id']}/cancel", {})
    job = wait_for(host, job["id"], ended)
    assert job["state"] == "cancelled"
    asked = (host.base / "user" / "__erase_anything" / "jobs" / job["id"] / "stop").stat().st_mtime
    events = host.get(f"{JOBS}/{job['id']}/events")["events"]
    assert sum(event["type"] == "step" and event["time"] > asked for event in events) <= 1
    assert not (host.base / "models" / "loras" / "long-run.safetensors").exists()


def test_pause_frees_the_slot_and_resume_goes_on(host, erase_graph):
    first = submit(host, erase_graph("cat", "paused", wait=False, steps=16, sample_every=0))
    wait_for(host, first["id"], lambda job: job["step"] >= 2)
    second = submit(host, erase_graph("pig", "meanwhile", wait=False))
    assert job_of(host, second["id"])["state"] == "queued"
    host.post(f"{JOBS}/{first['id']}/pause", {})
    paused = wait_for(host, first["id"], ended)
    assert paused["state"] == "paused"
    assert wait_for(host, second["id"], ended)["state"] == "completed"
    host.post(f"{JOBS}/{first['id']}/resume", {})
    assert wait_for(host, first["id"], ended)["state"] == "completed"
    assert steps_told(host, first["id"]) == list(range(1, 17))


def test_interrupt_ends_the_waiting_only(host, erase_graph):
    graph = erase_graph("duck", "waited-for", steps=30, sample_every=0)
    prompt_id = host.queue(graph)
    while not (jobs := [job for job in host.get(JOBS)["jobs"] if job["name"] == "waited-for" and job["step"] >= 1]):
        time.sleep(0.1)
    host.post("/interrupt", {})
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, PATIENCE)
    assert job_of(host, jobs[0]["id"])["state"] == "running"
    assert wait_for(host, jobs[0]["id"], ended)["state"] == "completed"


def test_a_killed_server_finds_its_worker_again(own_host, erase_graph):
    with own_host as host:
        job = submit(host, erase_graph("lion", "survivor", wait=False, steps=60, sample_every=0))
        wait_for(host, job["id"], lambda job: job["step"] >= 2)
        host.stop(kill=True)
        state_file = host.base / "user" / "__erase_anything" / "jobs" / job["id"] / "state.json"
        worker = psutil.Process(json.loads(state_file.read_text())["pid"])
        assert worker.is_running()
        host.start()
        found = job_of(host, job["id"])
        assert found["state"] in ("running", "completed")
        assert found["attempt"] == 1
        assert wait_for(host, job["id"], ended)["state"] == "completed"
        assert steps_told(host, job["id"]) == list(range(1, 61))  # one worker, never started again


def test_a_killed_worker_is_resumed_by_queueing_the_graph_again(host, erase_graph):
    graph = erase_graph("panda", "killed", steps=20, sample_every=0)
    prompt_id = host.queue(graph)
    while not (jobs := [job for job in host.get(JOBS)["jobs"] if job["name"] == "killed" and job["step"] >= 3]):
        time.sleep(0.1)
    state_file = host.base / "user" / "__erase_anything" / "jobs" / jobs[0]["id"] / "state.json"
    psutil.Process(json.loads(state_file.read_text())["pid"]).kill()
    with pytest.raises(HostError, match=r"ended unexpectedly at step .* resume the job"):
        host.wait(prompt_id, PATIENCE)
    assert job_of(host, jobs[0]["id"])["state"] == "interrupted"
    history = host.run(graph)
    assert history["outputs"]["train"]["job"] == [jobs[0]["id"]]
    assert job_of(host, jobs[0]["id"])["attempt"] == 2


def test_events_reach_the_websocket(host, erase_graph):
    async def follow() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{host.url}/ws?clientId=test") as socket:
            prompt = {"prompt": erase_graph("owl", "on-the-wire", wait=False, sample_every=2), "client_id": "test"}
            await session.post(f"{host.url}/prompt", json=prompt)
            heard: list[dict[str, Any]] = []
            while not heard or heard[-1].get("state") not in ("completed", "failed"):
                message = await socket.receive(timeout=PATIENCE)
                if message.type == aiohttp.WSMsgType.TEXT:
                    data = json.loads(message.data)
                    if data["type"] == "erase_anything.job" and data["data"]["job"]:  # else it is about the list
                        heard.append(data["data"])
            return heard

    with ThreadPoolExecutor() as pool:  # a browser test's event loop may still be running in this thread
        heard = pool.submit(asyncio.run, follow()).result()
    job = next(job for job in host.get(JOBS)["jobs"] if job["name"] == "on-the-wire")
    assert [event["job"] for event in heard] == [job["id"]] * len(heard)
    assert [event["n"] for event in heard] == list(range(1, len(heard) + 1))
    assert [event["step"] for event in heard if event["type"] == "step"] == [1, 2, 3, 4]
    assert set(next(event for event in heard if event["type"] == "step")["losses"]) == {"esd", "attn", "lora"}
    # What came by wire can be read again from any number.
    replayed = host.get(f"{JOBS}/{job['id']}/events?since={heard[-3]['n']}")["events"]
    assert [event["n"] for event in replayed] == [heard[-2]["n"], heard[-1]["n"]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"concept": {"phrase": "  "}}, "The concept is empty: write the word or phrase to erase."),
        ({"concept": {"template": "a photo"}}, "must have {} once"),
        ({"concept": {"irrelevant": "car"}}, "cannot be an irrelevant word too"),
        ({"train": {"name": "../../evil"}}, "cannot be a LoRA's name"),
        ({"train": {"name": "/tmp/evil"}}, "cannot be a LoRA's name"),
        ({"flux": {"model": "../../etc"}}, "refresh the list, choose another"),
        ({"flux": {"model": "single files"}}, "No file is chosen for transformer"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(host, erase_graph, changes, sentence):
    graph = erase_graph("car", "bad-input")
    for name, inputs in changes.items():
        graph[name]["inputs"].update(inputs)
    jobs = [job["id"] for job in host.get(JOBS)["jobs"]]
    loras = sorted((host.base / "models" / "loras").iterdir())
    with pytest.raises(HostError) as refused:
        host.run(graph)
    message = str(refused.value)
    assert sentence in message
    assert "\n" not in message
    assert [job["id"] for job in host.get(JOBS)["jobs"]] == jobs
    assert sorted((host.base / "models" / "loras").iterdir()) == loras


def test_half_a_model_folder_is_named(host, erase_graph, demo_folder):
    half = host.base / "models" / "diffusers" / "half"
    for part in ("transformer", "scheduler"):
        (half / part).mkdir(parents=True, exist_ok=True)
        for file in (demo_folder / part).iterdir():
            (half / part / file.name).write_bytes(file.read_bytes())
    (half / "model_index.json").write_bytes((demo_folder / "model_index.json").read_bytes())
    graph = erase_graph("car", "half-a-model")
    graph["flux"]["inputs"]["model"] = "half"
    with pytest.raises(HostError, match=r"LoadFlux: .*(missing|lacks)"):
        host.run(graph)


def test_two_jobs_of_one_name(host, erase_graph):
    first = submit(host, erase_graph("frog", "same-name", wait=False, steps=5000, sample_every=0))
    with pytest.raises(HostError, match='already writes the LoRA "same-name": choose another name'):
        host.run(erase_graph("shark", "same-name"))
    assert job_of(host, first["id"])["state"] in ("queued", "starting", "running")
    host.post(f"{JOBS}/{first['id']}/cancel", {})
    wait_for(host, first["id"], ended)


def test_a_nearly_full_disk_is_refused(host_folder, demo_folder, erase_graph, small_disk):
    with small_disk("100m") as disk, Host(host_folder, disk / "comfyui") as host:
        with pytest.raises(HostError, match="MB free: make at least 200 MB free and queue this again"):
            host.run(erase_graph("car", "no-room"))
        assert host.get(JOBS)["jobs"] == []


def test_a_name_is_chosen_where_none_is_given(host, erase_graph):
    jobs = [submit(host, erase_graph("rocket", "", wait=False, training_seed=seed)) for seed in (0, 1, 0)]
    assert [job["name"] for job in jobs] == ["erase-rocket", "erase-rocket-2", "erase-rocket"]
    for job in jobs[:2]:
        host.request("POST", f"{JOBS}/{job['id']}/cancel", {})


def test_new_loras_go_where_the_settings_say(host, erase_graph):
    settings = "/erase_anything/v1/settings"
    assert host.post(settings, {"lora_folder": "erased/animals/"})["lora_folder"] == "erased/animals"
    try:
        outputs = host.run(erase_graph("cow", "no-cows", sample_every=0))["outputs"]
    finally:
        host.post(settings, {"lora_folder": ""})
    name = os.path.join("erased", "animals", "no-cows.safetensors")
    assert (host.base / "models" / "loras" / name).is_file()
    assert outputs["show"]["text"] == [name]
    assert job_of(host, outputs["train"]["job"][0])["lora"] == name
    assert name in host.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
