"""A store, requests and a scheduler whose workers only count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.job_parts import command, counting_request
from training.jobs import JobQueue, JobRepository, Scheduler
from training.request import ErasureRequest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobRepository]:
    store = JobRepository(tmp_path / "jobs")
    JobQueue(store).configure(wait_for_memory=False)  # counting needs none, however full this machine is
    yield store
    for job in store.list():
        if job.state.pid and psutil.pid_exists(job.state.pid):
            psutil.Process(job.state.pid).kill()


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., ErasureRequest]:
    return partial(counting_request, tmp_path / "loras")


@pytest.fixture
def scheduler(store: JobRepository) -> Iterator[Scheduler]:
    scheduler = Scheduler(store, command=command, patience=1)
    scheduler.start()
    yield scheduler
    scheduler.close()
