"""Evaluate Erasure and Erasure Report on a real server: a background job, its page, and what is refused."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from scripts.host import Host
from tests.conftest import DEMO, Graph, node
from training.concepts import Concept
from training.evaluation import EvaluationSpec, Subject
from training.evaluation.run import evaluate
from training.models.source import demo_source

from .graphs import refusal
from .test_jobs_in_host import JOBS, ended, job_of, wait_for

SMALL = {"images": 2, "images_per_other": 0, "images_per_attack": 1, "heatmap": False, "batch_size": 4}


def graph_of(report: bool = True, **more: Any) -> Graph:
    """Load Flux, Erasure Concept, Evaluate Erasure of attention deletion, Erasure Report."""
    files = dict.fromkeys(("transformer", "clip_l", "t5", "vae"), "none")
    words = {"kind": "entity", "template": "", "synonyms": "automobile", "irrelevant": "house", "word_seed": 0}
    inputs = {
        "name": "",
        "lora": "none",
        "strength": 1.0,
        "deletion": True,
        "detector": "the model's own classifier",
        "detector_folder": "none",
        "prompts": "",
        "strengths": "",
        "blur": False,
        **SMALL,
        **more,
    }
    graph = {
        "flux": node("EraseAnything_LoadFlux", model=DEMO, precision="fp32", **files),
        "concept": node("EraseAnything_Concept", phrase="car", **words),
        "evaluate": node("EraseAnything_Evaluate", flux=["flux", 0], concept=["concept", 0], **inputs),
    }
    if report:
        graph["report"] = node(
            "EraseAnything_Report", evaluation=["evaluate", 0], filename_prefix="erasure-report/report"
        )
    return graph


def test_a_graph_measures_and_writes_the_report(host: Host, tmp_path) -> None:
    """The figures are those of the engine; page and JSON lie in the output folder; the page is served safely."""
    outputs = host.run(graph_of())["outputs"]
    job = job_of(host, outputs["evaluate"]["job"][0])
    assert (job["kind"], job["state"], job["name"], job["lora"]) == ("evaluation", "completed", "evaluate-car", None)
    assert job["step"] == job["total"] > 0 and not job["samples"]
    page, data = outputs["report"]["report"]
    saved = host.base / "output" / data["subfolder"] / data["filename"]
    found = json.loads(saved.read_text(encoding="utf-8"))
    concept = Concept("car", synonyms=("automobile",), irrelevant=("house",))
    spec = EvaluationSpec(demo_source("fp32"), concept, (Subject(),), **SMALL)
    own = evaluate(spec, tmp_path / "own", "cpu")
    assert found["suites"] == own["suites"] and found["settings"] == own["settings"]
    text = (host.base / "output" / page["subfolder"] / page["filename"]).read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "Erasure report: car" in text
    status, served = host.request("GET", f"{JOBS}/{job['id']}/report")
    assert status == 200 and served.decode() == text
    assert str(host.base) not in saved.read_text(encoding="utf-8") + text
    assert "Base model: concept" in outputs["report"]["text"][0]
    # The same graph is the same job; another run of the report node is another file.
    again = host.run(graph_of(deletion=True))["outputs"]
    assert job_of(host, job["id"])["attempt"] == 1
    assert again.get("evaluate", outputs["evaluate"])["job"] == [job["id"]]


def test_an_evaluation_is_paused_resumed_and_measured_again(host: Host) -> None:
    graph = graph_of(report=False, images=64, batch_size=2, name="long")
    job = job_of(host, host.run(graph)["outputs"]["evaluate"]["job"][0])
    wait_for(host, job["id"], lambda job: job["step"] >= 30)
    host.post(f"{JOBS}/{job['id']}/pause", {})
    paused = wait_for(host, job["id"], ended)
    assert paused["state"] == "paused" and paused["step"] < paused["total"]
    pictures = list((host.base / "user" / "__erase_anything" / "jobs" / job["id"]).rglob("pictures/base/*.png"))
    assert pictures
    host.post(f"{JOBS}/{job['id']}/resume", {})
    wait_for(host, job["id"], lambda job: job["state"] == "running" and job["step"] > 0)
    host.post(f"{JOBS}/{job['id']}/cancel", {})
    assert wait_for(host, job["id"], ended)["state"] == "cancelled"
    other = host.post(f"{JOBS}/{job['id']}/clone", {})
    assert other["kind"] == "evaluation" and other["parent"] == job["id"] and other["name"] == "long"
    host.post(f"{JOBS}/{other['id']}/cancel", {})
    wait_for(host, other["id"], ended)
    status, answer = host.request("POST", f"{JOBS}/{job['id']}/clone", {"config": {"steps": 3}})
    assert status == 409 and "no settings of a training" in json.loads(answer)["error"]
    for part in ("request", "report", "lora"):
        status, answer = host.request("GET", f"{JOBS}/{job['id']}/{part}")
        assert status in (404, 409) and json.loads(answer)["error"].endswith(".")
    for known in (job, other):
        host.post(f"{JOBS}/{known['id']}/delete", {})
    assert not {known["id"] for known in host.get(JOBS)["jobs"]} & {job["id"], other["id"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"deletion": False}, "nothing to evaluate"),
        ({"detector": "CLIP"}, "models/clip_vision"),
        ({"prompts": "../secret.csv"}, "no CSV file"),
        ({"prompts": "missing.csv"}, "no CSV file"),
        ({"prompts": "empty.csv"}, "is empty"),
        ({"prompts": "strange.csv"}, "none that holds prompts"),
        ({"strengths": "much"}, "are no numbers"),
        ({"lora": "gone.safetensors"}, "refresh the list"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_before_any_job(host: Host, change: dict, sentence: str) -> None:
    folder = host.base / "input"
    folder.mkdir(exist_ok=True)
    (folder / "empty.csv").write_text("", encoding="utf-8")
    with (folder / "strange.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name"], ["x"]])
    before = len(host.get(JOBS)["jobs"])
    assert sentence in refusal(host, graph_of(report=False, **change))
    assert len(host.get(JOBS)["jobs"]) == before
