"""The kind of job that trains a LoRA."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import memory
from ..errors import JobError
from ..memory import MemoryPlan
from ..request import ErasureRequest
from ..settings import ErasureConfig
from .folder import OPEN, require_free
from .kinds import Cheaper, Report, digest_of

if TYPE_CHECKING:
    from .job import Job


class TrainingKind:
    """Trains a LoRA into its output folder. See kinds.JobKind for what each method is for."""

    name = "training"
    makes_lora = True

    def read(self, data: dict[str, Any]) -> ErasureRequest:
        return ErasureRequest.from_dict(data)

    def steps(self, request: ErasureRequest) -> int:
        return request.config.steps

    def need(self, request: ErasureRequest) -> list[MemoryPlan]:
        return memory.memory_plans(request)

    def chosen(self, plans: list[MemoryPlan], folder: Path) -> MemoryPlan:
        return memory.load_plan(plans, folder)

    def shortage(self, plan: MemoryPlan, free: int) -> str:
        return memory.shortage(plan.request, free)

    def cheaper(self, request: ErasureRequest, folder: Path, phase: str) -> Cheaper | None:
        """Where only batches become smaller it goes on from the last checkpoint, otherwise it starts anew."""
        request = memory.planned_request(request, folder)
        found = memory.cheaper(request, phase)
        if found is None:
            return None
        smaller, change = found
        return Cheaper(smaller, change, partial(_carry_over, folder, request, smaller))

    def run(
        self, request: ErasureRequest, folder: Path, report: Report, should_stop: Callable[[], bool]
    ) -> dict[str, Any]:
        from .. import trainer

        return trainer.run(request, folder, report, should_stop)

    def product(self, data: dict[str, Any], folder: Path) -> Path:
        return Path(data["output_folder"]) / f"{data['name']}.safetensors"

    def claim(self, request: ErasureRequest, jobs: Sequence[Job]) -> None:
        target = self.product(request.to_dict(), Path())
        for job in jobs:
            if job.kind == self.name and job.state.state in OPEN and _same_file(job.product, target):
                phrase = job.request["concept"]["phrase"]
                raise JobError(
                    f'Another job ("{phrase}", {job.state.state}) already writes the LoRA "{request.name}": '
                    "choose another name, or cancel that job first."
                )
        if target.exists():
            raise JobError(
                f'A LoRA called "{request.name}" exists already: choose another name, or delete that file first.'
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"The LoRA folder {target.parent.name} cannot be made ({error.strerror}).") from error
        if not os.access(target.parent, os.W_OK):
            raise JobError(f"The LoRA folder {target.parent.name} cannot be written: change its permissions.")
        require_free("LoRAs", target.parent)

    def reclaim(self, job: Job, jobs: Sequence[Job]) -> None:
        for other in jobs:
            if other.id == job.id or other.kind != self.name or not _same_file(other.product, job.product):
                continue
            if other.state.state in OPEN:
                raise JobError(f'Another job already writes the LoRA "{job.name}": cancel that one first.')
            if other.state.state == "completed" and other.product.exists():
                raise JobError(f'Another job has written the LoRA "{job.name}" since: delete that file first.')

    def with_free_name(self, request: ErasureRequest, jobs: Sequence[Job]) -> ErasureRequest:
        """Taken are names of LoRAs that exist and of jobs that may still write theirs."""
        return _numbered(request, request.name, jobs, [job for job in jobs if job.state.state in OPEN])

    def again(
        self, request: ErasureRequest, settings: dict[str, Any], name: str, jobs: Sequence[Job]
    ) -> ErasureRequest:
        """Without other settings it gets the next seed that no such training has."""
        config = ErasureConfig.from_dict({**request.config.to_dict(), **settings})
        if config == request.config:
            config = replace(config, seed=self._next_seed(request, jobs))
        new = replace(request, config=config, name=name or request.name)
        new.validate()
        return new if name else _numbered(new, re.sub(r"-\d{1,2}$", "", new.name), jobs, jobs)

    def _next_seed(self, request: ErasureRequest, jobs: Sequence[Job]) -> int:
        """The seed after the highest one that a job has which differs from `request` in name and seed alone."""

        def without_seed(data: dict[str, Any]) -> dict[str, Any]:
            return {**data, "name": None, "config": {**data["config"], "seed": None}}

        same = without_seed(request.to_dict())
        trainings = [job.request for job in jobs if job.kind == self.name]
        seeds = [data["config"]["seed"] for data in trainings if without_seed(data) == same]
        return (max([request.config.seed, *seeds]) + 1) % 2**63


def _numbered(request: ErasureRequest, stem: str, jobs: Sequence[Job], rivals: Sequence[Job]) -> ErasureRequest:
    """The request under `stem` or, where a LoRA or one of `rivals` has that name, under it with a number.

    A name under which one of `jobs` has the same request is the one: it is that job.
    """
    digests = {job.digest for job in jobs}
    real = cache(os.path.realpath)  # most of a thousand jobs have the same folder
    taken = {
        (real(job.request["output_folder"]), job.name.casefold()) for job in rivals if job.kind == TrainingKind.name
    }
    for number in itertools.count(1):
        named = replace(request, name=stem if number == 1 else f"{stem}-{number}")
        target = Path(named.output_folder) / f"{named.name}.safetensors"
        key = (real(named.output_folder), named.name.casefold())
        if digest_of(named) in digests or not (key in taken or target.exists()):
            return named
    raise AssertionError("unreachable")


def _carry_over(old_folder: Path, old: ErasureRequest, new: ErasureRequest, folder: Path) -> None:
    """Puts what a training with less memory can use of a failed one into its folder."""
    from ..checkpoint import carry_over

    carry_over(old_folder, folder, old, new)


def _same_file(first: Path, second: Path) -> bool:
    """Whether two paths name one file, also on file systems that ignore case."""
    return _key(first) == _key(second)


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path)).casefold()
