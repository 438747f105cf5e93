"""The routes under /erase_anything/v1 of a real server: what they refuse, and that they never leave their folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

JOBS = "/erase_anything/v1/jobs"
DOCUMENTED = Path(__file__).parents[2] / "docs" / "routes.md"


@pytest.fixture(scope="module")
def job(host) -> dict[str, Any]:
    """A job that was submitted by HTTP alone, without a graph."""
    body = {
        "concept": {"phrase": "umbrella", "synonyms": [], "irrelevant": ["house", "tree", "apple"]},
        "config": {"steps": 2, "erase_prompts": 2, "preserve_prompts": 2, "sample_every": 0},
        "name": "by-http",
    }
    job = host.post(JOBS, body)
    assert host.post(JOBS, body)["id"] == job["id"]
    return job


def refused(host, status: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> str:
    """The sentence of a refusal with this status."""
    got, answer = host.request(method, path, body, headers)
    assert got == status, answer
    sentence = json.loads(answer)["error"]
    assert sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


def test_jobs_are_listed_newest_first(host, job):
    jobs = host.get(JOBS)["jobs"]
    assert job["id"] in [known["id"] for known in jobs]
    assert [known["created"] for known in jobs] == sorted((known["created"] for known in jobs), reverse=True)
    assert host.get(f"/api{JOBS}/{job['id']}")["concept"] == "umbrella"


def test_every_route_is_described_and_documented(host):
    described = host.get("/erase_anything/v1/openapi.json")
    routes = {f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods}
    documented = re.findall(r"^\| `((?:GET|POST) /[^`]*)` \|", DOCUMENTED.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(routes)
    known = described["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described))) <= set(known)
    for route in routes - {"POST /wordnet"}:  # the server has each of them
        method, path = route.split()
        body = None if method == "GET" else {"no such field": 1}
        status, answer = host.request(method, f"/erase_anything/v1{re.sub('{.*?}', 'x', path)}", body)
        assert status in (200, 400, 404) and (status == 200 or json.loads(answer)["error"]), route


def test_answers_tell_no_path(host, job):
    told = json.dumps([host.get(JOBS), host.get(f"{JOBS}/{job['id']}"), host.get(f"{JOBS}/{job['id']}/events")])
    assert str(host.base) not in told
    assert str(host.folder) not in told


@pytest.mark.parametrize(
    "name", ["..", "../state.json", "../job.json", "..\\job.json", "/etc/passwd", "a\0.png", "x.png"]
)
def test_samples_stay_inside_their_folder(host, job, name):
    status, body = host.request("GET", f"{JOBS}/{job['id']}/samples/{quote(name, safe='')}")
    assert status == 404
    assert b"request" not in body


def test_a_linked_sample_is_not_followed(host, job):
    samples = host.base / "user" / "__erase_anything" / "jobs" / job["id"] / "samples"
    secret = host.base / "secret.png"
    secret.write_bytes(b"secret")
    (samples / "link.png").symlink_to(secret)
    try:
        refused(host, 404, "GET", f"{JOBS}/{job['id']}/samples/link.png")
    finally:
        (samples / "link.png").unlink()


@pytest.mark.parametrize("job_id", ["nothing", "..", "../../..", "20260101-000000-x", "%00", "a" * 5000, "c:\\x"])
@pytest.mark.parametrize("tail", ["", "/events", "/log", "/samples/x.png"])
def test_unknown_jobs(host, job_id, tail):
    assert host.request("GET", f"{JOBS}/{quote(job_id, safe='')}{tail}")[0] == 404


def test_forms_are_refused(host, job):
    path = f"{JOBS}/{job['id']}/delete"
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"):
        assert "JSON" in refused(host, 415, "POST", path, b"{}", {"Content-Type": kind})
    assert host.get(f"{JOBS}/{job['id']}")["id"] == job["id"]


def test_another_site_cannot_act(host, job):
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert host.request("POST", f"{JOBS}/{job['id']}/delete", {}, headers)[0] in (403, 415)
    assert host.get(f"{JOBS}/{job['id']}")["id"] == job["id"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"[" * 100_000, "JSON"),
        ({}, "concept"),
        ({"concept": {"phrase": 3}}, "concept.phrase"),
        ({"concept": {"phrase": "car"}, "extra": 1}, "extra"),
        ({"concept": {"phrase": ""}}, "empty"),
        ({"concept": {"phrase": "car", "irrelevant": ["house"]}, "config": {"steps": -1}}, "steps"),
        ({"concept": {"phrase": "car", "irrelevant": ["house"]}, "config": {"stepz": 1}}, "stepz"),
        ({"concept": {"phrase": "car", "irrelevant": ["house"]}, "name": "../x"}, "name"),
        ({"concept": {"phrase": "car", "irrelevant": ["house"]}, "model": "/etc"}, "model"),
    ],
)
def test_bad_submissions(host, body, word):
    before = [job["id"] for job in host.get(JOBS)["jobs"]]
    assert word in refused(host, 400, "POST", JOBS, body)
    assert [job["id"] for job in host.get(JOBS)["jobs"]] == before


def test_a_body_that_is_too_large(host):
    refused(host, 413, "POST", JOBS, b'"' + b"x" * 1_000_000 + b'"')


def test_unknown_actions_and_bad_numbers(host, job):
    assert "Unknown action" in refused(host, 409, "POST", f"{JOBS}/{job['id']}/explode", {})
    for since in ("-1", "x", "1e9", "9" * 40):
        refused(host, 400, "GET", f"{JOBS}/{job['id']}/events?since={since}")


@pytest.fixture
def held(host):
    """The queue held, so that jobs stay in it; and a way to submit some."""
    settings = "/erase_anything/v1/settings"
    assert host.get(settings) == {"slots": 1, "wait_for_memory": True, "lora_folder": ""}
    assert host.post(settings, {"slots": 0})["slots"] == 0
    made: list[str] = []

    def submit(name: str) -> str:
        concept = {"phrase": name, "synonyms": [], "irrelevant": ["house", "tree", "apple"]}
        made.append(host.post(JOBS, {"concept": concept, "config": {"steps": 2}, "name": name})["id"])
        return made[-1]

    yield submit
    for job_id in made:
        host.request("POST", f"{JOBS}/{job_id}/delete", {})  # some are gone already
    assert host.post(settings, {"slots": 1}) == {"slots": 1, "wait_for_memory": True, "lora_folder": ""}


def test_the_queue_is_reordered(host, held):
    others = host.get(JOBS)["queue"]  # what other tests have left in this server
    first, second, third = (held(name) for name in ("kettle", "teapot", "spoon"))
    assert host.post(f"{JOBS}/{third}/move", {"to": "up"})["queue"] == [*others, first, third, second]
    end = len(others) + 3
    assert host.post(f"{JOBS}/{first}/move", {"to": end})["queue"] == [*others, third, second, first]
    assert host.get(JOBS)["queue"] == [*others, third, second, first]
    for to in ("sideways", 0, None, [1]):
        assert "to" in refused(host, 400, "POST", f"{JOBS}/{first}/move", {"to": to})
    assert host.get(JOBS)["queue"] == [*others, third, second, first]
    host.post(f"{JOBS}/{first}/cancel", {})
    assert "only a queued job has a place" in refused(host, 409, "POST", f"{JOBS}/{first}/move", {"to": "up"})


def test_a_training_is_cloned_with_other_settings_or_the_next_seed(host, held):
    first = held("ladle")
    again = host.post(f"{JOBS}/{first}/clone", {})
    other = host.post(f"{JOBS}/{first}/clone", {"config": {"steps": 3}, "name": "ladle-longer"})
    try:
        assert (again["name"], again["parent"], again["state"]) == ("ladle-2", first, "queued")
        assert (other["name"], other["total"]) == ("ladle-longer", 3)
        assert "steps" in refused(host, 400, "POST", f"{JOBS}/{first}/clone", {"config": {"steps": 0}})
        assert "name" in refused(host, 400, "POST", f"{JOBS}/{first}/clone", {"name": "../up"})
    finally:
        for job in (again, other):
            host.post(f"{JOBS}/{job['id']}/delete", {})


def test_deleting_tells_of_the_lora(host, held):
    first = held("whisk")
    assert "lora" in refused(host, 400, "POST", f"{JOBS}/{first}/delete", {"lora": "yes"})
    told = host.post(f"{JOBS}/{first}/delete", {"lora": True})
    assert told == {"deleted": first, "lora": None, "lora_deleted": False}
    refused(host, 404, "POST", f"{JOBS}/{first}/delete", {})


def test_settings_out_of_range_are_refused(host):
    for body in (
        {"slots": -1}, {"slots": 17}, {"slots": "1"}, {"slots": True}, {"slot": 1}, {"wait_for_memory": 1},
        {"lora_folder": "../x"}, {"lora_folder": "a/con"}, {"lora_folder": "a\0b"}, {"lora_folder": 1},
    ):  # fmt: skip
        refused(host, 400, "POST", "/erase_anything/v1/settings", body)
    assert host.get("/erase_anything/v1/settings") == {"slots": 1, "wait_for_memory": True, "lora_folder": ""}


def test_words_can_be_asked_for(host):
    words = host.post("/erase_anything/v1/concept", {"phrase": "dog"})
    assert words["phrase"] == "dog"
    assert len(words["irrelevant"]) == 3
    assert "dog" not in words["irrelevant"]


def test_what_may_be_wrong_with_words_is_said_beside_them(host):
    def ask(**body):
        return host.post("/erase_anything/v1/concept", body)

    gun = ask(phrase="gun")
    assert {"word": "pistol", "reason": "narrower"} in gun["remarks"]["left_out"] and not gun["remarks"]["hints"]
    assert gun["remarks"]["prompt"] == "a photo of a gun"
    mine = ask(phrase="gun", synonyms=["pistol"])
    left_out = {each["word"]: each["reason"] for each in mine["remarks"]["left_out"]}
    assert "pistol" not in left_out and left_out[gun["synonyms"][0]] == ""  # the user's own list lacks it
    [hint] = ask(phrase="next to")["remarks"]["hints"]
    assert "choose the kind relationship" in hint
    assert ask(phrase="next to", kind="relationship")["remarks"]["hints"] == []


def test_an_answer_can_be_sent_back_as_it_is(host):
    first = host.post("/erase_anything/v1/concept", {"phrase": "the moon", "irrelevant": ["lamp", "kite", "spoon"]})
    assert host.post("/erase_anything/v1/concept", first) == first
    host.post("/erase_anything/v1/settings", {"slots": 0})
    try:
        job = host.post(JOBS, {"concept": first, "config": {"steps": 2}, "name": "sent-back"})
        concept = host.get(f"{JOBS}/{job['id']}/request")["concept"]
        assert concept == {name: part for name, part in first.items() if name != "remarks"}
        host.post(f"{JOBS}/{job['id']}/cancel", {})
    finally:
        host.post("/erase_anything/v1/settings", {"slots": 1})


def test_meanings_and_presets_can_be_listed(host):
    found = host.get("/erase_anything/v1/senses?phrase=a%20crane")["senses"]
    assert [sense["number"] for sense in found] == list(range(1, len(found) + 1))
    assert found[0]["visual"] and found[0]["gloss"]
    refused(host, 400, "GET", "/erase_anything/v1/senses")
    assert "senses" in refused(host, 400, "POST", "/erase_anything/v1/concept", {"phrase": "crane", "sense": 99})
    presets = host.get("/erase_anything/v1/presets")["presets"]
    assert {"label", "group", "kind", "phrase", "template", "synonyms"} == set(presets[0])
    assert host.post("/erase_anything/v1/wordnet", {}) == {"wordnet": True}  # they are there: nothing is fetched


def test_a_job_tells_what_would_queue_it_again(host, job):
    asked = host.get(f"{JOBS}/{job['id']}/request")
    assert asked["model"] == "demo (flux-emoji)"
    assert asked["concept"]["phrase"] == "umbrella"
    assert asked["config"]["steps"] == 2
    assert host.post(JOBS, asked)["id"] == job["id"]
    defaults = host.get("/erase_anything/v1/config")["config"]
    assert set(defaults) == set(asked["config"])
    assert defaults["steps"] != 2


@pytest.fixture
def rewritten(host, job) -> Iterator[Callable[..., str]]:
    """Copies the job's folder to a new one with another request and state; gives its id."""
    store = host.base / "user" / "__erase_anything" / "jobs"
    made = []

    def make(state: str, **changes: Any) -> str:
        folder = store / f"20200101-00000{len(made)}-rewritten"
        made.append(shutil.copytree(store / job["id"], folder, ignore=shutil.ignore_patterns("lock", ".*")))
        record = json.loads((folder / "job.json").read_text())
        record["request"] |= changes
        record["digest"] = folder.name
        (folder / "job.json").write_text(json.dumps(record))
        known = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**known, "state": state, "pid": None, "process_created": None}))
        return folder.name

    yield make
    for folder in made:
        shutil.rmtree(folder)


def test_single_files_are_told_by_name(host, rewritten):
    models = host.base / "models"
    listed = models / "diffusion_models" / "flux" / "dev.safetensors"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_bytes(b"x")
    source = {"kind": "files", "transformer": str(listed), "clip_l": str(models / "gone.safetensors")}
    source |= {"t5": str(models / "gone.safetensors"), "vae": str(models / "gone.safetensors")}
    job_id = rewritten("failed", source=source)
    asked = host.get(f"{JOBS}/{job_id}/request")
    assert asked["model"] == "single files"
    assert asked["files"]["transformer"] == "flux/dev.safetensors"
    assert asked["files"]["vae"] == "gone.safetensors"
    assert host.get(f"{JOBS}/{job_id}")["model"] == "dev"
    assert str(host.base) not in json.dumps([asked, host.get(f"{JOBS}/{job_id}")])


def test_only_a_completed_job_has_a_lora_to_download(host, rewritten, tmp_path):
    path = host.base / "models" / "loras" / "download me.safetensors"
    path.write_bytes(b"weights")
    (host.base / "models" / "loras" / "link.safetensors").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(b"secret")
    done = rewritten("completed", name="download me")
    status, body = host.request("GET", f"{JOBS}/{done}/lora")
    assert (status, body) == (200, b"weights")
    for job_id in (rewritten("failed", name="download me"), rewritten("completed", name="link")):
        assert "no LoRA" in refused(host, 404, "GET", f"{JOBS}/{job_id}/lora")
    path.unlink()
    assert "no LoRA" in refused(host, 404, "GET", f"{JOBS}/{done}/lora")
