"""Queued jobs on a Ray cluster, one job a task: the scale-out of `python -m training.jobs.fleet work --ray`.

The job folders, the model and the LoRAs' folder must be at the same paths on all nodes (a shared disk), and the nodes
need what requirements.txt names. The package itself is sent along. A task that dies with its process or node is started
again by Ray and goes on from the job's last checkpoint; what is finished is never done twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ..errors import ConfigError, JobBusy, JobUnreadable
from .folder import ACTIVE, JobFolder
from .job import Job
from .job_queue import JobQueue
from .processes import ENVIRONMENT
from .repository import JobRepository

RETRIES = 3  # of a task whose process or node died; a training that fails by itself is not repeated
GONE = "The training's process on the cluster was ended too often: resume the job."


def train(path: str) -> str:
    """Trains the job in folder `path` in this process, wherever that is; the job's state at the end.

    Repeatable: a job that another process trains or that has ended is left alone, and one whose process has vanished
    goes on from its last checkpoint.
    """
    from .runner import main

    folder = JobFolder(Path(path))
    requeue(folder, "queued", attempt=1)
    with folder.log_file.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        main([path])
    return folder.state().state


def requeue(folder: JobFolder, new: str, message: str = "", attempt: int = 0) -> None:
    """Gives a job whose process has vanished a new state; nothing where one is at work or the job is in order.

    attempt: what to add to the number of its attempts.
    """
    try:
        with folder.locked(timeout=1):  # nobody trains it: whoever does holds the lock
            state = folder.state()
            if state.state in (*ACTIVE, "interrupted"):
                folder.change(new, message, pid=None, process_created=None, attempt=state.attempt + attempt)
    except (JobBusy, JobUnreadable):
        return


def work(
    repository: JobRepository, address: str | None, slots: int | None, changed: Callable[[Job], None], poll: float
) -> bool:
    """Trains what is queued on the cluster at `address` (None: one of this machine's own, `slots` CPUs wide) until
    nothing is left; whether all of it has been completed.

    changed: called with a job whenever its state may have changed. Each task gets one GPU where the cluster has any.
    Raises ConfigError where Ray is not installed or the cluster does not answer.
    """
    ray = _connected(address, slots)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        # max_calls: the process ends with its task, and the GPU's memory with it
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES, "retry_exceptions": False, "max_calls": 1}
        task = ray.remote(**options)(train)
        vanished = [job for job in repository.list() if job.state.state in ACTIVE]  # of an earlier run; else left alone
        ids = {task.remote(str(job.folder.path)): job.id for job in (*vanished, *JobQueue(repository).jobs())}
        all_ids, open_tasks = list(ids.values()), list(ids)
        while open_tasks:
            done, open_tasks = ray.wait(open_tasks, timeout=poll)
            for each in done:
                _end(ray, each, repository.get(ids[each]).folder)
            for job_id in all_ids:
                changed(repository.get(job_id))
            if not done:
                time.sleep(poll / 10)
        return all(repository.get(job_id).state.state == "completed" for job_id in all_ids)
    finally:
        ray.shutdown()


def _end(ray: Any, task: Any, folder: JobFolder) -> None:
    """Says in the job's state what a task that could not end by itself has left."""
    try:
        ray.get(task)
    except ray.exceptions.RayError:
        requeue(folder, "interrupted", GONE)


def _connected(address: str | None, slots: int | None) -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed: run `pip install ray`, or leave out --ray.") from None
    here = Path(__file__).resolve().parents[1]
    environment = {"py_modules": [str(here)], "env_vars": ENVIRONMENT}
    options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": slots, "include_dashboard": False}
    try:
        ray.init(address=address, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"The Ray cluster {address or 'of this machine'} does not answer ({error}).") from error
    return ray
