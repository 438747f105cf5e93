"""What a kind of job must offer is enough: a third one goes through repository, admission and runner by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from training.errors import JobError, JobOfOtherVersion
from training.jobs import Job, JobQueue, JobRepository
from training.jobs.admission import Admission
from training.jobs.registry import KINDS, kind_of, run
from training.jobs.runner import run_job
from training.memory import MemoryPlan


@dataclasses.dataclass(frozen=True)
class Sum:
    """A request to add some numbers up."""

    numbers: tuple[int, ...]
    name: str = "sum"
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        beside = {"source": {"folder": "/models/none"}, "concept": {"phrase": "numbers"}, "output_folder": ""}
        return {"kind": "sum", **beside, **dataclasses.asdict(self), "numbers": list(self.numbers)}

    def validate(self) -> None:
        if not self.numbers:
            raise JobError("There are no numbers: give some.")


class SumKind:
    """Adds up; see kinds.JobKind."""

    name, makes_lora = "sum", False

    def read(self, data: dict[str, Any]) -> Sum:
        return Sum(tuple(data["numbers"]), data["name"], data["device"])

    def steps(self, request: Sum) -> int:
        return len(request.numbers)

    def need(self, request: Sum) -> list[MemoryPlan]:
        return [MemoryPlan(request, 100 * len(request.numbers))]

    def chosen(self, plans: list[MemoryPlan], folder: Path) -> MemoryPlan:
        return plans[0]

    def shortage(self, plan: MemoryPlan, free: int) -> str:
        return f"Waiting: {plan.need - free} bytes are missing." if plan.need > free else ""

    def cheaper(self, request: Sum, folder: Path, phase: str) -> None:
        return None

    def run(
        self, request: Sum, folder: Path, report: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]
    ) -> dict[str, Any]:
        for step in range(1, len(request.numbers) + 1):
            report({"type": "step", "step": step, "total": len(request.numbers), "losses": {}})
        self.product(request.to_dict(), folder).write_text(str(sum(request.numbers)))
        return {"sum": sum(request.numbers)}

    def product(self, data: dict[str, Any], folder: Path) -> Path:
        return folder / "sum.txt"

    def claim(self, request: Sum, jobs: Sequence[Job]) -> None:
        if len(jobs) == 3:
            raise JobError("Three jobs are enough: delete one.")

    def reclaim(self, job: Job, jobs: Sequence[Job]) -> None:
        raise JobError("Its place is taken.")

    def with_free_name(self, request: Sum, jobs: Sequence[Job]) -> Sum:
        return dataclasses.replace(request, name=f"{request.name} {len(jobs)}")

    def again(self, request: Sum, settings: dict[str, Any], name: str, jobs: Sequence[Job]) -> Sum:
        return Sum((*request.numbers, *settings.get("more", ())), name or request.name)


class Stopped(Exception):
    """As trainer.Stopped."""


@pytest.fixture
def adding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind among the others."""
    monkeypatch.setitem(KINDS, SumKind.name, SumKind())


def test_a_third_kind_is_queued_run_cloned_and_deleted(adding: None, tmp_path: Path) -> None:
    repository = JobRepository(tmp_path / "jobs")
    job = repository.submit(Sum((1, 2, 3)), choose_name=True)
    assert (job.kind, job.name, job.state.total, job.to_dict()["lora"]) == ("sum", "sum 0", 3, None)
    assert repository.submit(Sum((1, 2, 3), "sum 0")).id == job.id
    assert Admission(free=lambda device: 250).why_wait(job, []) == "Waiting: 50 bytes are missing."
    assert Admission(free=lambda device: 300).why_wait(job, []) == ""

    assert run_job(job.folder.path, run, Stopped) == 0
    job = repository.get(job.id)
    assert (job.state.state, job.state.step, job.product.read_text()) == ("completed", 3, "6")
    assert json.loads(job.folder.result_file.read_text())["sum"] == 6

    more = repository.clone(job.id, {"more": [4]}, "longer")
    assert (more.request["numbers"], more.parent, more.state.total) == ([1, 2, 3, 4], job.id, 4)
    assert [each.id for each in JobQueue(repository).jobs()] == [more.id]
    repository.cancel(more.id)
    with pytest.raises(JobError, match="Its place is taken"):
        repository.resume(more.id)
    with pytest.raises(JobError, match="No cheaper setting"):
        repository.retry(more.id, cheaper=True)
    repository.submit(Sum((5,)))
    with pytest.raises(JobError, match="Three jobs are enough"):
        repository.submit(Sum((6,)))
    with pytest.raises(JobError, match="no numbers"):
        repository.submit(Sum(()))
    assert repository.delete(job.id, lora=True) == {"deleted": job.id, "lora": None, "lora_deleted": False}
    assert not job.folder.path.exists()


def test_a_kind_of_a_later_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = JobRepository(tmp_path / "jobs")
    with monkeypatch.context() as later:
        later.setitem(KINDS, SumKind.name, SumKind())
        job = repository.submit(Sum((1, 2)))
    here = JobRepository(repository.root)
    assert here.list() == []
    assert "update the pack" in here.problems()[job.id]
    with pytest.raises(JobOfOtherVersion, match="update the pack"):
        here.delete(job.id)
    assert job.folder.job_file.exists()


@pytest.mark.parametrize("kind", [None, 3, "Training"])
def test_names_that_are_no_kind(kind: object) -> None:
    with pytest.raises(JobOfOtherVersion):
        kind_of({"kind": kind})
    assert kind_of({}).name == "training"
