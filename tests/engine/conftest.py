"""What engine tests share: a tiny Flux to train, one thread, and job stores whose workers end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.support.flux_models import tiny_folder
from training.jobs import JobRepository, Scheduler
from training.models.source import FluxSource


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Bit-identical runs need one number of threads; processes that are killed use one too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def flux(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FluxSource:
    """The demo model with a tiny random transformer in its place, in fp32."""
    folder = tiny_folder(demo_folder, tmp_path_factory.mktemp("tiny-flux"))
    return FluxSource("diffusers", folder=str(folder), precision="fp32")


@pytest.fixture
def idle_store(tmp_path: Path, demo_folder: Path) -> Iterator[JobRepository]:
    """A store that nobody works off yet."""
    store = JobRepository(tmp_path / "jobs")
    yield store
    for job in store.list():
        if job.state.pid and psutil.pid_exists(job.state.pid):
            psutil.Process(job.state.pid).kill()


@pytest.fixture
def store(idle_store: JobRepository) -> Iterator[JobRepository]:
    """A store with a scheduler that starts real workers."""
    scheduler = Scheduler(idle_store)
    scheduler.start()
    yield idle_store
    scheduler.close()
