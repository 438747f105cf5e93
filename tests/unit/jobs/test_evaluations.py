"""Evaluations among the jobs: one request is one job, another file or seed is another, and no LoRA is anybody's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.job_parts import counting_request
from tests.support.loras import random_lora
from training.concepts import Concept
from training.errors import ConfigError, ErasureError, JobError
from training.evaluation import EvaluationSpec, Subject
from training.evaluation.request import EvaluationRequest
from training.jobs import JobRepository
from training.jobs.registry import kind_of, request_of
from training.lora.format import write_lora
from training.models.source import demo_source

CAR = Concept("car", synonyms=("automobile",), irrelevant=("house",))


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "loras" / "erase-car.safetensors"
    path.parent.mkdir()
    write_lora(path, random_lora(0, hidden=256), {})
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\na red car\n", encoding="utf-8")
    return path


def asked(lora: Path, prompts: Path, **more) -> EvaluationRequest:
    spec = EvaluationSpec(demo_source("fp32"), CAR, (Subject(), Subject(lora, 0.5)), prompts=(prompts,), **more)
    return EvaluationRequest.of(spec, "evaluate-car", "cpu")


def test_a_request_is_plain_data(lora: Path, prompts: Path) -> None:
    request = asked(lora, prompts, strengths=(0.0, 1.0), detectors=("model", "nudenet"), seed=3)
    assert request_of(json.loads(json.dumps(request.to_dict()))) == request
    with pytest.raises(ConfigError, match="not complete"):
        request_of({**request.to_dict(), "order": {}})


def test_one_request_is_one_job_and_a_changed_file_another(lora: Path, prompts: Path, tmp_path: Path) -> None:
    store = JobRepository(tmp_path / "jobs")
    job = store.submit(asked(lora, prompts))
    assert store.submit(asked(lora, prompts)).id == job.id
    told = job.to_dict()
    assert (told["kind"], told["name"], told["concept"]) == ("evaluation", "evaluate-car", "car")
    assert told["lora"] is None and told["lora_exists"] is False and told["cheaper"] is None
    assert str(tmp_path) not in json.dumps(told)
    prompts.write_text("prompt\na blue car\n", encoding="utf-8")
    other = store.submit(asked(lora, prompts))
    assert other.id != job.id and other.name == job.name  # several may be called alike
    write_lora(lora, random_lora(1, hidden=256), {})
    assert store.submit(asked(lora, prompts)).id not in (job.id, other.id)


def test_measured_again_is_the_next_seed(lora: Path, prompts: Path, tmp_path: Path) -> None:
    store = JobRepository(tmp_path / "jobs")
    job = store.submit(asked(lora, prompts))
    seeds = [request_of(store.clone(job.id).request).spec.seed for _ in range(2)]
    assert seeds == [1, 2]
    with pytest.raises(JobError, match="no settings of a training"):
        store.clone(job.id, {"steps": 5})
    with pytest.raises(JobError, match="has failed"):
        store.retry(job.id, cheaper=True)
    store.cancel(job.id)
    with pytest.raises(JobError, match="No cheaper setting"):
        store.retry(job.id, cheaper=True)


def test_trainings_and_evaluations_do_not_stand_in_each_others_way(lora: Path, prompts: Path, tmp_path: Path) -> None:
    """Also where an evaluation is called like a LoRA."""
    store, folder = JobRepository(tmp_path / "jobs"), tmp_path / "others"
    evaluation = store.submit(dataclasses.replace(asked(lora, prompts), name="erase-car"))
    training = store.submit(counting_request(folder, "erase-car"))
    assert store.clone(training.id).name == "erase-car-2"
    store.cancel(evaluation.id)
    store.resume(evaluation.id)
    assert [job.kind for job in store.list()].count("evaluation") == 1
    store.cancel(evaluation.id)
    assert store.delete(evaluation.id, lora=True) == {
        "deleted": evaluation.id,
        "lora": None,
        "lora_deleted": False,
    }
    assert lora.is_file()


def test_an_evaluation_needs_room_for_everything_at_once(lora: Path, prompts: Path) -> None:
    kind = kind_of(asked(lora, prompts).to_dict())
    (small,), (large,) = (kind.need(asked(lora, prompts, batch_size=size)) for size in (1, 64))
    assert 0 < small.need < large.need
    assert kind.shortage(small, small.need) == ""
    told = kind.shortage(large, small.need)
    assert told.startswith("Waiting: ") and "smaller batch" in told and "\n" not in told


def test_what_cannot_work_is_refused_before_it_is_queued(lora: Path, prompts: Path, tmp_path: Path) -> None:
    store = JobRepository(tmp_path / "jobs")

    def refused(part: str, **more) -> None:
        with pytest.raises(ErasureError, match=part):
            store.submit(asked(lora, prompts, **more))

    refused("Unknown detector", detectors=("eyes",))
    refused("Unknown features", distance="eyes")
    refused("0 to 900", seed=901)
    with pytest.raises(ErasureError, match="does not name"):
        spec = EvaluationSpec(demo_source("fp32"), Concept("sadness"), (Subject(),))
        store.submit(EvaluationRequest.of(spec, "x"))
    prompts.write_text("colour\nred\n", encoding="utf-8")
    refused("none that holds prompts")
    prompts.unlink()
    refused("prompts.csv cannot be read")
    lora.write_bytes(b"nothing")
    prompts.write_text("prompt\na car\n", encoding="utf-8")
    refused("erase-car.safetensors")
    assert store.list() == []
