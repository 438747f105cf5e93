"""Training in the background: a job is a folder, its worker a process that outlives the server that started it."""

from .folder import ACTIVE, OPEN, STATES, JobFolder, JobState
from .job import Job
from .job_queue import MAX_SLOTS, JobQueue, QueueSettings
from .processes import worker_command
from .repository import JobRepository
from .scheduler import Scheduler

__all__ = [
    "ACTIVE",
    "MAX_SLOTS",
    "OPEN",
    "STATES",
    "Job",
    "JobFolder",
    "JobQueue",
    "JobRepository",
    "JobState",
    "QueueSettings",
    "Scheduler",
    "worker_command",
]
