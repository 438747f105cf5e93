"""The background jobs of this host: where they are stored, how they start, who is notified of their events."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from server import PromptServer

from ..training.concepts import Concept
from ..training.errors import JobError
from ..training.evaluation import EvaluationSpec, read_evaluation
from ..training.evaluation.report import write_report
from ..training.evaluation.request import EvaluationRequest
from ..training.jobs import Job, JobQueue, JobRepository, Scheduler
from ..training.memory import overview as memory_overview
from ..training.models.source import FluxSource
from ..training.request import ErasureRequest
from ..training.settings import ErasureConfig
from .compat import lora_name
from .text import check_phrase

# websocket: {"job": id, "n": number, "time": …, "type": "state" | "step" | …, …}, as in events.jsonl; and
# {"job": "", "type": "list"} where jobs came, went or changed their order
EVENT = "erase_anything.job"

_deleted: list[str] = []  # in this server's life, as long as the host's cache of node outputs lives


@cache
def repository() -> JobRepository:
    """The jobs of this host, in a user folder that the host's own routes do not serve."""
    return JobRepository(Path(folder_paths.get_system_user_directory("erase_anything")) / "jobs")


def queue() -> JobQueue:
    """The queue of this host's jobs."""
    return JobQueue(repository())


def words_folder() -> Path:
    """The folder for answers of chat endpoints about words, beside the jobs."""
    return repository().root.parent / "words"


@cache
def scheduler() -> Scheduler:
    """The scheduler of this host; it works after start()."""
    return Scheduler(repository(), make_room=_free_memory, listener=_send)


def _free_memory(_: Job) -> None:
    """Asks the host to unload its models before the next prompt, so that the training finds room on the GPU."""
    if comfy.model_management.get_torch_device().type != "cpu":
        PromptServer.instance.prompt_queue.set_flag("unload_models", True)
        PromptServer.instance.prompt_queue.set_flag("free_memory", True)


def _send(job_id: str, event: dict[str, Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the server is shutting down; the event is on disk
        PromptServer.instance.send_sync(EVENT, {"job": job_id, **event})


def submit(source: FluxSource, concept: Concept, config: ErasureConfig, name: str) -> Job:
    """Queues a training whose LoRA goes into the host's first loras folder (or where the queue's settings say below
    it), or finds the job of the same request.

    An empty `name` is chosen: erase-<phrase>, with a number where that is taken by something else.
    Raises ErasureError's subclasses.
    """
    output = Path(folder_paths.get_folder_paths("loras")[0]).absolute() / queue().settings().lora_folder
    request = ErasureRequest(source, concept, config, name.strip(), str(output), device())
    named = bool(request.name)
    if not named:
        concept.validate()  # before a name is made of it
        stem = "erase-" + re.sub(r"[^\w]+", "-", concept.phrase.lower()).strip("-")[:60]
        request = replace(request, name=stem)
    request.validate()
    check_phrase(concept, source)  # here rather than after minutes in the worker
    return repository().submit(request, choose_name=not named)


def memory(source: FluxSource, concept: Concept, config: ErasureConfig) -> dict[str, Any]:
    """What training this would need on the host's device, and what is free there now: see `training.memory.overview`.

    Raises ErasureError's subclasses.
    """
    source.validate()
    return memory_overview(
        ErasureRequest(source, concept, config, "lora", folder_paths.get_output_directory(), device())
    )


def submit_evaluation(spec: EvaluationSpec, name: str) -> Job:
    """Queues an evaluation, or finds the job of the same request; an empty `name` is evaluate-<phrase>.

    Raises ErasureError's subclasses.
    """
    spec.concept.validate()  # before a name is made of it
    stem = "evaluate-" + re.sub(r"[^\w]+", "-", spec.concept.phrase.lower()).strip("-")[:60]
    return repository().submit(EvaluationRequest.of(spec, name.strip() or stem, device()))


def device() -> str:
    """The host's device as a request names it."""
    chosen = comfy.model_management.get_torch_device()
    if chosen.type not in ("cpu", "cuda", "mps", "xpu"):
        return "auto"
    return chosen.type if chosen.index is None else f"{chosen.type}:{chosen.index}"


def unfinished() -> str:
    """Changes when a Train or Evaluate node must run again: a job ended without what it makes, that is gone, or a job
    was deleted."""

    def lost(job: Job) -> bool:
        state = job.state.state
        return state in ("failed", "cancelled", "interrupted") or (state == "completed" and not job.product.exists())

    return " ".join([*(job.id for job in repository().list() if lost(job)), *_deleted])


def description(job: Job, samples: bool = True) -> dict[str, Any]:
    """A job's description for clients, with its LoRA under the name in the host's lists."""
    data = job.to_dict(samples)
    return {**data, "lora": lora_name(job.lora)} if data["lora"] else data


def overview() -> dict[str, Any]:
    """All jobs, newest first, the ids of the queued ones in their order, the queue's settings, and what is broken."""
    jobs, problems = repository().scan()
    return {
        "jobs": [description(job, samples=False) for job in reversed(jobs)],
        "queue": [job.id for job in queue().jobs(jobs)],
        "settings": queue().settings().to_dict(),
        "problems": problems,
    }


def report(job_id: str) -> Path:
    """The page of an evaluation that is completed, made in its job's folder. Raises ErasureError's subclasses."""
    job = repository().get(job_id)
    if job.kind != "evaluation" or job.state.state != "completed":
        raise JobError("The job has no report: only an evaluation that is completed has one.")
    folder = job.product.parent
    page = folder / "report.html"
    if not page.is_file() or page.stat().st_mtime < job.product.stat().st_mtime:
        write_report(read_evaluation(folder), folder, page)
    return page


def delete(job_id: str, lora: bool = False) -> dict[str, Any]:
    """Removes a job, and its LoRA only where `lora` says so; what JobRepository.delete returns. Raises JobError."""
    deleted = repository().delete(job_id, lora)
    _deleted.append(job_id)
    return deleted


def act(job_id: str, action: str, **options: Any) -> dict[str, Any]:
    """Does what a button says, `action` being one of routes.ACTIONS with its body's fields. Raises JobError."""
    if action == "delete":
        return delete(job_id, **options)
    if action == "move":
        return {"queue": queue().move(job_id, **options)}
    if action == "clone":
        return description(repository().clone(job_id, options["config"], options["name"]))
    actions = {
        "pause": repository().pause,
        "resume": repository().resume,
        "retry": repository().retry,
        "cancel": repository().cancel,
        "stop": repository().cancel,
    }
    return description(actions[action](job_id, **options))
