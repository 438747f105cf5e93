"""The kind of job that evaluates an erasure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import JobError
from ..memory import GB, MemoryPlan, estimate_memory
from ..request import ErasureRequest
from ..settings import ErasureConfig
from .kinds import Report, digest_of

if TYPE_CHECKING:
    from ..evaluation.request import EvaluationRequest
    from .job import Job

PACE_STEPS = 50  # Euler steps over which the seconds per step are averaged


class EvaluationKind:
    """Evaluates into the job's own folder, so that several jobs may have one name. See kinds.JobKind."""

    name = "evaluation"
    makes_lora = False

    def read(self, data: dict[str, Any]) -> EvaluationRequest:
        from ..evaluation.request import EvaluationRequest

        return EvaluationRequest.from_dict(data)

    def steps(self, request: EvaluationRequest) -> int:
        return 0  # its first event says it

    def need(self, request: EvaluationRequest) -> list[MemoryPlan]:
        # Encoders, transformer and decoder are there at the same time; a batch is rendered as samples are.
        like = ErasureRequest(request.source, request.spec.concept, ErasureConfig(), request.name, "/", request.device)
        phases = estimate_memory(like, pictures=request.spec.batch_size).phases
        return [MemoryPlan(like, phases["encode"] + phases["samples"])]

    def chosen(self, plans: list[MemoryPlan], folder: Path) -> MemoryPlan:
        return plans[0]

    def shortage(self, plan: MemoryPlan, free: int) -> str:
        if plan.need <= free:
            return ""
        return (
            f"Waiting: {(plan.need - free) / GB:.1f} GB of memory are missing (the evaluation needs about "
            f"{plan.need / GB:.1f} GB, {free / GB:.1f} GB are free): close other programs, or evaluate with a smaller "
            "batch."
        )

    def cheaper(self, request: EvaluationRequest, folder: Path, phase: str) -> None:
        return None

    def run(
        self, request: EvaluationRequest, folder: Path, report: Report, should_stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """Reports each Euler step; stops within one, with all pictures on disk that are whole."""
        from ..evaluation.run import evaluate
        from ..trainer import Stopped

        began, current = time.monotonic(), ""
        times: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS)
        report({"type": "phase", "phase": "paint", "message": "Reading the model."})

        def progress(what: str, done: int, total: int) -> None:
            nonlocal current
            if should_stop():
                raise Stopped
            if what != current:
                current = what
                report({"type": "phase", "phase": "paint", "message": f"Rendering {what}."})
            times.append((time.monotonic(), done))
            steps = times[-1][1] - times[0][1]
            pace = {"seconds_per_step": (times[-1][0] - times[0][0]) / steps} if steps > 0 else {}
            report({"type": "step", "step": done, "total": total, "losses": {}, **pace})

        if should_stop():
            raise Stopped
        found = evaluate(request.spec, folder / self.name, request.device, progress)
        seconds = round(time.monotonic() - began, 1)
        report({"type": "completed", "seconds": seconds})
        shares = {suite["id"]: {name: r["share"] for name, r in suite["results"].items()} for suite in found["suites"]}
        return {"evaluation": "evaluation.json", "seconds": seconds, "shares": shares}

    def product(self, data: dict[str, Any], folder: Path) -> Path:
        return folder / self.name / "evaluation.json"

    def claim(self, request: EvaluationRequest, jobs: Sequence[Job]) -> None:
        """Nobody else writes into the job's own folder."""

    def reclaim(self, job: Job, jobs: Sequence[Job]) -> None:
        """Nobody else writes into the job's own folder."""

    def with_free_name(self, request: EvaluationRequest, jobs: Sequence[Job]) -> EvaluationRequest:
        return request

    def again(
        self, request: EvaluationRequest, settings: dict[str, Any], name: str, jobs: Sequence[Job]
    ) -> EvaluationRequest:
        """With the first seed after its own that no job has."""
        if settings:
            raise JobError("An evaluation has no settings of a training: make it again without any.")
        digests = {job.digest for job in jobs}
        new = replace(request, name=name or request.name).next_seed()
        while digest_of(new) in digests:
            new = new.next_seed()
        new.validate()
        return new
