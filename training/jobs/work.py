"""What a job may ask for, a training or an evaluation: which it is, what it needs, what it makes and how it is done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from ..memory import GB, estimate_memory, shortage
from ..memory import MemoryPlan as Way
from ..memory import memory_plans as ways
from ..request import ErasureRequest
from ..settings import ErasureConfig

if TYPE_CHECKING:
    from ..evaluation.request import EvaluationRequest

TRAINING, EVALUATION = "training", "evaluation"
PACE = 50  # Euler steps that an evaluation's pace is taken from

Request: TypeAlias = Union[ErasureRequest, "EvaluationRequest"]
Report = Callable[[dict[str, Any]], None]


def kind_of(data: dict[str, Any]) -> str:
    """TRAINING or EVALUATION: what a request's JSON is for."""
    return EVALUATION if data.get("kind") == EVALUATION else TRAINING


def request_of(data: dict[str, Any]) -> Request:
    """The request out of its JSON. Raises ErasureError's subclasses."""
    if kind_of(data) == TRAINING:
        return ErasureRequest.from_dict(data)
    from ..evaluation.request import EvaluationRequest

    return EvaluationRequest.from_dict(data)


def product_of(data: dict[str, Any], folder: Path) -> Path:
    """The file that a job in `folder` makes: a LoRA, or an evaluation.json."""
    if kind_of(data) == TRAINING:
        return Path(data["output_folder"]) / f"{data['name']}.safetensors"
    return evaluation_folder(folder) / "evaluation.json"


def evaluation_folder(folder: Path) -> Path:
    """Where the job in `folder` keeps its evaluation."""
    return folder / EVALUATION


def ways_of(request: Request) -> list[Way]:
    """Every way to do what `request` asks for, the fastest first: see `memory.memory_plans`; an evaluation has one.

    Raises SourceError.
    """
    return ways(request) if isinstance(request, ErasureRequest) else [Way(request, need_of(request))]


def need_of(request: EvaluationRequest) -> int:
    """Bytes that must be free on the device. Raises SourceError."""
    # Encoders, transformer and decoder are there at the same time; a batch is rendered as samples are.
    like = ErasureRequest(request.source, request.spec.concept, ErasureConfig(), request.name, "/", request.device)
    phases = estimate_memory(like, pictures=request.spec.batch_size).phases
    return phases["encode"] + phases["samples"]


def why_short(request: Request, free: int) -> str:
    """Why a request does not fit into `free` bytes, as one sentence; empty where it fits. Raises SourceError."""
    if isinstance(request, ErasureRequest):
        return shortage(request, free)
    need = need_of(request)
    if need <= free:
        return ""
    return (
        f"Waiting: {(need - free) / GB:.1f} GB of memory are missing (the evaluation needs about {need / GB:.1f} GB, "
        f"{free / GB:.1f} GB are free): close other programs, or evaluate with a smaller batch."
    )


def run(request: Request, folder: Path, report: Report, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Does what `request` asks for in the job folder `folder`; see trainer.run. Raises trainer.Stopped."""
    from .. import trainer

    if isinstance(request, ErasureRequest):
        return trainer.run(request, folder, report, should_stop)
    return _evaluate(request, folder, report, should_stop)


def _evaluate(
    request: EvaluationRequest, folder: Path, report: Report, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Runs an evaluation and tells each Euler step; stops within one, and keeps all pictures that are whole."""
    from ..evaluation.run import evaluate
    from ..trainer import Stopped

    began, told = time.monotonic(), ""
    times: deque[tuple[float, int]] = deque(maxlen=PACE)
    report({"type": "phase", "phase": "paint", "message": "Reading the model."})

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told
        if should_stop():
            raise Stopped
        if what != told:
            told = what
            report({"type": "phase", "phase": "paint", "message": f"Rendering {what}."})
        times.append((time.monotonic(), done))
        steps = times[-1][1] - times[0][1]
        pace = {"seconds_per_step": (times[-1][0] - times[0][0]) / steps} if steps > 0 else {}
        report({"type": "step", "step": done, "total": total, "losses": {}, **pace})

    if should_stop():
        raise Stopped
    found = evaluate(request.spec, evaluation_folder(folder), request.device, progress)
    seconds = round(time.monotonic() - began, 1)
    report({"type": "completed", "seconds": seconds})
    shares = {suite["id"]: {name: r["share"] for name, r in suite["results"].items()} for suite in found["suites"]}
    return {"evaluation": "evaluation.json", "seconds": seconds, "shares": shares}
