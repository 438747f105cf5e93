"""What version 0.1.0 has written still works (tests/data/version_1): a paused training goes on, files are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.job_parts import ended
from training.evaluation.report import write_report
from training.evaluation.result import read_evaluation
from training.jobs import JobRepository
from training.lora.files import describe, merge_files
from training.lora.format import read_lora

DATA = Path(__file__).parents[1] / "data" / "version_1"
JOB = "20261201-055334-old-car-89f66a99"


@pytest.fixture
def with_old_job(store: JobRepository, demo_folder: Path, tmp_path: Path) -> JobRepository:
    """A store that holds a training which an earlier version has paused at step 4 of 60."""
    folder = store.root / JOB
    shutil.copytree(DATA / "job", folder)
    request = (folder / "job.json").read_text(encoding="utf-8")
    text = request.replace("@MODEL@", demo_folder.as_posix()).replace("@LORAS@", (tmp_path / "loras").as_posix())
    (folder / "job.json").write_text(text, encoding="utf-8")
    return store


def test_a_paused_training_goes_on_where_it_stood(with_old_job: JobRepository) -> None:
    job = with_old_job.get(JOB)
    assert (job.state.state, job.state.step, job.name) == ("paused", 4, "old car")
    with_old_job.resume(JOB)
    done = ended(with_old_job, job)
    assert done.state.state == "completed", done.state.message
    steps = [event["step"] for event in done.folder.events() if event["type"] == "step"]
    assert steps[4:] == list(range(5, 61)), "steps were done twice, or the checkpoint was not used"
    weights, _ = read_lora(done.lora)
    assert len(weights) > 2


def test_its_request_makes_a_new_one(with_old_job: JobRepository) -> None:
    again = with_old_job.clone(JOB, {"steps": 3}, "")
    assert again.request["config"]["steps"] == 3 and again.request["concept"]["synonyms"] == ["automobile"]


def test_a_lora_is_described_and_merged(tmp_path: Path) -> None:
    known = describe(DATA / "old-car.safetensors")
    assert (known["concept"], known["method"], known["rank"]) == ("car", "eraseanything", 2)
    report = merge_files([DATA / "old-car.safetensors"] * 2, tmp_path / "two.safetensors", "sum")
    assert len(report["sources"]) == 2


def test_an_evaluation_opens_in_the_report(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "evaluation", tmp_path / "evaluation")
    page = tmp_path / "report.html"
    write_report(read_evaluation(folder), folder, page)
    text = page.read_text(encoding="utf-8")
    assert "car" in text and "data:image/" in text
