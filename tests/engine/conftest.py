"""What tests of real workers share: a job store whose workers end with the test, and one that a scheduler serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from training.jobs import JobStore, Scheduler


@pytest.fixture
def idle_store(tmp_path: Path, demo_folder: Path) -> Iterator[JobStore]:
    """A store that nobody works off yet."""
    store = JobStore(tmp_path / "jobs")
    yield store
    for job in store.list():
        if job.state.pid and psutil.pid_exists(job.state.pid):
            psutil.Process(job.state.pid).kill()


@pytest.fixture
def store(idle_store: JobStore) -> Iterator[JobStore]:
    """A store with a scheduler that starts real workers."""
    scheduler = Scheduler(idle_store)
    scheduler.start()
    yield idle_store
    scheduler.close()
